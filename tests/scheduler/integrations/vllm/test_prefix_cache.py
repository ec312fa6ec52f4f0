"""The simulator's prefix cache next to vLLM's block pool: how many tokens are computed, and when requests end."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import make_policy
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours

LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "enable_prefix_caching": True}


class Counting(SimulatedExecutor):
    """Counts the tokens that are computed: prefills, then one for each further token of an answer."""

    num_computed = 0

    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Add those of a prefill; it gives a token of its own."""
        self.num_computed += num_prefill_tokens - 1
        super().admit(index, num_prefill_tokens, num_generated)


@pytest.mark.parametrize("num_common", [0, 48])
@pytest.mark.parametrize("num_blocks", [60, 120])
def test_as_many_tokens_are_computed_as_with_vllm(
    make_engine: Callable[..., Any], vllms_own: Any, num_blocks: int, num_common: int
) -> None:
    """150 requests at once, first come first served, many evicted: within 5 % of vLLM, and more without a cache."""
    rng = np.random.default_rng(1)
    lens = np.clip(np.exp(rng.normal(3.6, 0.8, 150)).astype(int), 1, 95).tolist()
    prompts = (num_common + rng.integers(8, 60 - num_common // 4, 150)).tolist()
    own = make_engine(num_blocks, 1, vllms_own, vllm=LIMITS)
    for i, (prompt, output_len) in enumerate(zip(prompts, lens, strict=True)):
        words = [1000 + i] * (prompt - num_common)  # nobody else's
        own.add(f"r{i}", [*range(num_common), *words], output_len)
    computed = 0
    while own.scheduler.has_unfinished_requests():
        computed += own.step().total_num_scheduled_tokens
    requests = [Request(f"r{i}", prompt, 100, prefix=range(num_common // 16)) for i, prompt in enumerate(prompts)]
    runs = {}
    for caching in (True, False):
        worker = Worker(KvCache(num_blocks, 16), True, 256, max_batch_tokens=2048, prefix_caching=caching)
        executor = Counting(worker, lens)
        result = Loop(make_policy("fcfs", worker, rng), executor, requests).run()
        runs[caching] = (executor.num_computed + sum(lens), float(result.finish_time.mean()))
    assert runs[True][0] == pytest.approx(computed, rel=0.05)
    assert runs[True][1] == pytest.approx(own.mean_end, rel=0.05)
    assert runs[False][0] > 1.03 * computed
