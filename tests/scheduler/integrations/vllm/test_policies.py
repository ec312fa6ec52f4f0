"""Every policy in vLLM's real scheduler: tokens, memory, aborts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from scheduler.batch import RunningBatch
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.policies import POLICIES, Reads, policies_that_read
from scheduler.policies.fit_now import FitNow
from scheduler.policy import Decision

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours
POLICY_NAMES = sorted(POLICIES.keys() - policies_that_read(Reads.OUTPUT_LEN))
CACHING = {"enable_prefix_caching": True}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("vllm", [None, CACHING])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_serves_a_standing_queue(
    make_engine: Callable[..., Any], name: str, vllm: Any, depth: int
) -> None:
    """All tokens come out, in order; vLLM never has to preempt; nothing is kept at the end."""
    engine = make_engine(14, depth, vllm=vllm, policy=name)
    engine.add_random(40, np.random.default_rng(1), all_bounded=True)
    engine.run()
    engine.check_tokens(engine.requests)
    by_vllm = sum(request.num_preemptions for request in engine.requests.values())
    assert by_vllm <= engine.scheduler.governor.runner.num_evictions


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_aborts_and_arrivals_in_between_leave_nothing_behind(
    make_engine: Callable[..., Any], abort: Callable[..., Any], name: str, depth: int
) -> None:
    """Whether the aborted request waits, is in prefill or runs."""
    rng = np.random.default_rng(2)
    engine = make_engine(12, depth, vllm=CACHING, policy=name)
    aborted = set[str]()
    for wave in range(12):
        engine.add_random(4, rng, first=4 * wave, all_bounded=True)
        for _ in range(int(rng.integers(1, 40))):
            engine.step()
        aborted |= set(abort(engine, rng.choice(sorted(engine.scheduler.requests) or [""], 2).tolist()))
    engine.run()
    assert len(aborted) >= 10
    engine.check_tokens(engine.requests.keys() - aborted)


def test_aborting_everything_empties_the_policy_at_once(
    make_engine: Callable[..., Any], abort: Callable[..., Any]
) -> None:
    """The engine asks a scheduler without requests for nothing more."""
    engine = make_engine(10)
    engine.add_random(30, np.random.default_rng(3))
    for _ in range(20):
        engine.step()
    abort(engine, None)
    engine.check_empty()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["amin", "amin-survival", "fcfs"])
def test_vllm_has_the_last_word_on_memory(make_engine: Callable[..., Any], name: str, depth: int) -> None:
    """With blocks gone that the policy counts on, it learns of them, admitted requests wait, and all end."""
    engine = make_engine(16, depth, policy=name)
    pool = engine.scheduler.kv_cache_manager.block_pool
    engine.add_random(30, np.random.default_rng(4))
    for _ in range(10):
        engine.step()
    stolen = pool.get_new_blocks(min(6, pool.get_num_free_blocks()))
    engine.run(check=False)
    engine.check_tokens(engine.requests)
    assert pool.get_num_free_blocks() == 16 - len(stolen)


def test_a_request_as_long_as_the_cache_runs_alone(make_engine: Callable[..., Any]) -> None:
    """It is not evicted for a token that it will never store."""
    engine = make_engine(10, 2)
    engine.add("long", 60, 1000, output_len_lower_bound=90)
    engine.run(max_steps=110)
    assert engine.requests["long"].num_output_tokens == 100
    assert engine.scheduler.metrics.evictions == 0


def test_shorter_bounds_go_first(make_engine: Callable[..., Any]) -> None:
    """Amin admits in ascending bound, whatever the order of arrival."""
    engine = make_engine(10, policy="amin")
    for i, bound in enumerate([90, 50, 10]):
        engine.add(f"r{i}", 58, bound, output_len_lower_bound=bound)
    engine.run()
    assert sorted(engine.ends, key=engine.ends.__getitem__) == ["r2", "r1", "r0"]


class Restless(FitNow):
    """Evicts all that runs every seventh iteration and admits it in the same breath, as a decision may."""

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the decision of FCFS, or that."""
        decision = super().schedule(running)
        return Decision(list(running), list(running)) if running.clock % 7 == 0 and not decision.admit else decision


@pytest.mark.parametrize("depth", [1, 2])
def test_a_request_evicted_and_admitted_at_once_comes_back_an_iteration_later(
    make_engine: Callable[..., Any], depth: int
) -> None:
    """With all its tokens."""
    engine = make_engine(16, depth)
    governor = engine.scheduler.governor
    governor.runner = PolicyRunner(Restless(governor.runner.policy.worker, np.random.default_rng(0)))
    for i in range(4):
        engine.add(f"r{i}", 20, 30, output_len_lower_bound=5)
    engine.run()
    engine.check_tokens(engine.requests)
    assert governor.runner.num_evictions >= 16
