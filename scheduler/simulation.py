"""One simulated run of one policy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scheduler.cost_model import CostModel
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.loop import Loop, RunResult
from scheduler.policies import make_policy
from scheduler.simulator import SimulatedExecutor
from scheduler.workload import Workload


@dataclass(frozen=True, slots=True)
class Worker:
    """What a workload runs on.

    Attributes:
        kv_cache: Its memory.
        resume: Whether an evicted request keeps its generated tokens.
        limits: What it asks of an admission besides memory.
        cost_model: What an iteration takes; None for the iteration clock.
        max_batch_tokens: Most tokens of one iteration (chunked prefill), or None.
    """

    kv_cache: KvCache
    resume: bool = False
    limits: Limits = NO_LIMITS
    cost_model: CostModel | None = None
    max_batch_tokens: int | None = None


def simulate(
    policy: str,
    workload: Workload,
    worker: Worker,
    seed: int,
    on_finish: Callable[[Sequence[int]], None] | None = None,
    **options: Any,
) -> RunResult:
    """Return what happens to a workload under a policy; times in iterations, or seconds with a cost model.

    Args:
        policy: A key of `scheduler.policies.POLICIES`.
        workload: Requests and their true lengths, which go to the executor and to clairvoyant policies alone.
        worker: What it runs on.
        seed: Of what the policy leaves to chance.
        on_finish: Told the indices of the requests that end, as they do.
        options: Further arguments of the policy.
    """
    output_lens = workload.output_lens
    executor = SimulatedExecutor(
        worker.kv_cache, output_lens, cost_model=worker.cost_model, max_batch_tokens=worker.max_batch_tokens
    )
    rng = np.random.default_rng(seed)
    made = make_policy(
        policy, worker.kv_cache, rng, resume=worker.resume, output_lens=output_lens, limits=worker.limits, **options
    )
    return Loop(made, executor, workload.requests, worker.kv_cache, resume=worker.resume).run(on_finish)
