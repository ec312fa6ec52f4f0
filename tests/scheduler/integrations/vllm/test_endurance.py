"""Days in production: pauses, resets, storms of aborts, thousands of tiny requests, keys and values from elsewhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours
NUM_TINY = 20_000
CACHING = {"enable_prefix_caching": True}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["amin", "amin-survival"])
def test_the_prefix_cache_can_be_reset_while_requests_run(
    make_engine: Callable[..., Any], policy: str, depth: int
) -> None:
    """VLLM preempts them all itself; they go on, with all their tokens."""
    engine = make_engine(14, depth, vllm=CACHING, policy=policy)
    engine.add_random(40, np.random.default_rng(0), all_bounded=True)
    for _ in range(8):
        for _ in range(20):
            engine.step()
        engine.may_resume_at_once = True
        assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.step()
        engine.may_resume_at_once = False
    engine.run(check=False)
    engine.check_tokens(engine.requests)


@pytest.mark.parametrize("depth", [1, 2])
def test_pauses_hold_what_they_say(make_engine: Callable[..., Any], depth: int) -> None:
    """Paused for new requests, what runs goes on and nothing starts; paused for all, nothing moves; then all end."""
    engine = make_engine(14, depth)
    engine.add_random(30, np.random.default_rng(0), all_bounded=True)
    for _ in range(20):
        engine.step()
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    running = {request.request_id for request in engine.scheduler.running}
    for _ in range(20):
        started = set(engine.step().num_scheduled_tokens)
        assert started <= running
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(5):
        assert not engine.step().num_scheduled_tokens
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.run(check=False)
    engine.check_tokens(engine.requests)


@pytest.mark.parametrize("policy", ["amin", "amin-survival"])
def test_a_storm_of_aborts_leaves_nothing(
    make_engine: Callable[..., Any], abort: Callable[..., Any], policy: str
) -> None:
    """1,500 arrivals, nine in ten of which leave within a few iterations."""
    engine = make_engine(30, 2, vllm=CACHING, policy=policy)
    rng = np.random.default_rng(1)
    aborted = set[str]()
    for wave in range(50):
        engine.add_random(30, rng, first=30 * wave, all_bounded=True)
        for _ in range(int(rng.integers(1, 4))):
            engine.step()
        names = sorted(engine.scheduler.requests)
        aborted |= set(abort(engine, rng.choice(names, int(0.9 * len(names)), replace=False).tolist()))
    engine.run(check=False)
    engine.check_tokens(engine.requests.keys() - aborted)
    assert len(aborted) > 1200


def test_thousands_of_tiny_requests_keep_nothing(make_engine: Callable[..., Any]) -> None:
    """20,000 with a word each; the plug-in's time grows with their number, not with its square."""
    engine = make_engine(400, vllm={"max_num_seqs": 256, "max_num_batched_tokens": 2048, **CACHING})
    for i in range(NUM_TINY):
        engine.add(f"r{i}", 3, 2, output_len_lower_bound=2)
    engine.run(check=False)
    metrics = engine.scheduler.metrics
    assert metrics.bounds_covered == NUM_TINY
    assert metrics.decision_seconds < NUM_TINY * 0.005


def test_keys_and_values_from_elsewhere_hold_blocks_and_no_slots(
    make_engine: Callable[..., Any], connector: Callable[..., Any]
) -> None:
    """Four requests wait for a transfer, four may run: the others are served, then they are."""
    engine = make_engine(30, vllm={"max_num_seqs": 4})
    arrive = connector(engine, {f"remote{i}" for i in range(4)}, num_tokens=16)
    for i in range(4):
        engine.add(f"remote{i}", 20, 5, output_len_lower_bound=2)
    for i in range(6):
        engine.add(f"plain{i}", 20, 30, output_len_lower_bound=20)
    for _ in range(100):
        engine.step()
    assert sorted(engine.ends) == [f"plain{i}" for i in range(6)]
    assert all(engine.requests[f"remote{i}"].status == RequestStatus.WAITING_FOR_REMOTE_KVS for i in range(4))
    arrive()
    engine.run(check=False)
    engine.check_tokens(engine.requests)
