from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.cost_model import CostModel
from scheduler.kv_cache import KvCache
from scheduler.latency_bounds import total_latency_lower_bound
from scheduler.loop import Loop, RunResult
from scheduler.policies import POLICIES, make_policy
from scheduler.policy import Decision
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker
from scheduler.workload import Workload

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
EVERY_POLICY = pytest.mark.parametrize("name", POLICIES)
EVERY_MODE = pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])


def assert_same(result: RunResult, slow: Any) -> None:
    """Compare request by request, and the memory in use."""
    everyone = range(len(slow.requests))
    for name in ("admission_time", "first_token_time", "finish_time"):
        assert getattr(result, name).tolist() == [getattr(slow, name)[i] for i in everyone], name
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]
    assert result.num_recomputed_tokens.tolist() == [slow.num_recomputed[i] for i in everyone]
    assert result.output_len.tolist() == slow.output_lens
    timeline = result.timeline
    assert sum(timeline.num_iterations) == len(slow.durations)
    last = np.cumsum(timeline.num_iterations)
    assert timeline.kv_blocks.tolist() == [slow.blocks_used[i - 1] for i in last]
    firsts = [slow.blocks_used[i] for i in [0, *last[:-1]]]
    assert timeline.first_kv_blocks.tolist() == firsts


@EVERY_MODE
@EVERY_POLICY
@settings(PROPERTY, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 3))
def test_the_loop_agrees_with_a_slow_one(
    cases: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool, data: st.DataObject, seed: int
) -> None:
    """Every request starts and ends in the same iteration, evicted as often, as in the plain reference."""
    case = data.draw(cases(fits=False))
    slow = slow_loop(name, case, resume=resume, seed=seed)
    assert_same(run_policy(name, case, resume=resume, seed=seed), slow)


@EVERY_MODE
@EVERY_POLICY
@settings(PROPERTY, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 3))
def test_the_loop_agrees_with_a_slow_one_as_engines_run(
    cases: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool, data: st.DataObject, seed: int
) -> None:
    """The same with a cost model, chunked prefill, a limit on running requests and a watermark."""
    case = data.draw(cases(fits=False, engine=True))
    slow = slow_loop(name, case, resume=resume, seed=seed)
    assert_same(run_policy(name, case, resume=resume, seed=seed), slow)


@EVERY_MODE
@EVERY_POLICY
def test_the_loop_agrees_with_a_slow_one_on_a_crowd(
    make_case: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool
) -> None:
    """The same with enough requests that all columns and profiles outgrow their first arrays."""
    rng = np.random.default_rng(7)
    output_lens = np.ceil(rng.lognormal(1.5, 0.6, 130)).astype(int)
    lower = np.maximum(1, (output_lens * rng.uniform(0.3, 1.0, 130)).astype(int))
    case = make_case(
        output_lens.tolist(),
        400,
        prompt=rng.integers(0, 3, 130).tolist(),
        lower=lower.tolist(),
        upper=(output_lens + rng.integers(0, 4, 130)).tolist(),
    )
    slow = slow_loop(name, case, resume=resume, seed=1)
    assert_same(run_policy(name, case, resume=resume, seed=1), slow)


@EVERY_MODE
@pytest.mark.parametrize("tail", [0.3, 1.0, 3.0])
@settings(PROPERTY, max_examples=60)
@given(data=st.data())
def test_the_boosted_order_agrees_with_a_slow_one(
    cases: Callable, run_policy: Callable, slow_loop: Callable, resume: bool, tail: float, data: st.DataObject
) -> None:
    """Between the least work first and first come first served, on whatever binds."""
    case = data.draw(cases(fits=False, engine=True, max_size=14))
    slow = slow_loop("amin-survival", case, resume=resume, tail=tail)
    worker = replace(case.worker, resume=resume)
    policy = make_policy("amin-survival", worker, np.random.default_rng(0), tail=tail)
    assert_same(run_policy(policy, case, resume=resume), slow)


@EVERY_MODE
def test_sglang_reserves_at_most_4096_tokens_for_a_limit_beyond_that(
    make_case: Callable, run_policy: Callable, slow_loop: Callable, resume: bool
) -> None:
    """The sums kept up to date and the sum over all requests agree where limits of both kinds run together."""
    rng = np.random.default_rng(3)
    output_lens = rng.integers(1, 900, 60).tolist()
    case = make_case(output_lens, 9000, prompt=rng.integers(0, 50, 60).tolist())
    caps = [5000 if i % 7 == 0 else 900 for i in range(60)]
    requests = [replace(request, max_new_tokens=cap) for request, cap in zip(case.requests, caps, strict=True)]
    case = case._replace(requests=requests)
    result = run_policy("sglang", case, resume=resume)
    assert_same(result, slow_loop("sglang", case, resume=resume))
    assert max(result.timeline.num_running) > 7


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_what_holds_in_every_run(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """Each request gets its tokens, no faster than one an iteration, within the budget, and none is lost or made."""
    case = data.draw(cases(fits=False))
    requests, output_lens, kv_cache = case.requests, case.output_lens, case.worker.kv_cache
    result = run_policy(name, case, resume=resume)
    timeline = result.timeline
    first_iteration = np.ceil(result.arrival_time)
    assert (result.finish_time >= first_iteration + output_lens).all()
    assert (result.first_token_time > first_iteration).all()
    assert (result.first_token_time <= result.finish_time - np.array(output_lens) + 1).all()
    assert max(timeline.kv_blocks) <= kv_cache.num_blocks
    assert timeline.end.tolist() == sorted(set(timeline.end))
    assert timeline.end[-1] == result.finish_time.max()
    prompts = np.array([request.num_prompt_tokens for request in requests])
    thrown_away = result.num_recomputed_tokens - result.num_evictions * prompts
    again = 0 if resume else thrown_away.sum()
    assert np.dot(timeline.num_running, timeline.num_iterations) == sum(output_lens) + again
    assert (thrown_away >= result.num_evictions).all()  # it had a token at least
    states = zip(timeline.end, timeline.num_iterations, timeline.num_running, timeline.num_waiting, strict=True)
    for end, num_iterations, num_running, num_waiting in states:
        present = (result.arrival_time <= end - num_iterations) & (result.finish_time >= end)
        assert num_running + num_waiting == present.sum()


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_every_request_finishes_exactly_once(cases: Callable, name: str, resume: bool, data: st.DataObject) -> None:
    """`on_finish` names each index once, in the iteration that `finish_time` gives."""
    requests, output_lens, worker = data.draw(cases(fits=False))
    worker = replace(worker, resume=resume)
    policy = make_policy(name, worker, np.random.default_rng(0), output_lens=output_lens)
    executor = SimulatedExecutor(worker, output_lens)
    told: list[tuple[int, float]] = []
    loop = Loop(policy, executor, requests)
    result = loop.run(lambda indices: told.extend((index, executor.now) for index in indices))
    assert sorted(told) == list(enumerate(result.finish_time))


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_no_run_beats_the_volume_bound(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """The total latency of requests that all arrive at 0 respects the limit of every schedule."""
    case = data.draw(cases(at_once=True, fits=False))
    prompts = [request.num_prompt_tokens for request in case.requests]
    kv_budget = case.worker.kv_cache.kv_budget
    total = run_policy(name, case, resume=resume).finish_time.sum()
    assert total >= total_latency_lower_bound(prompts, case.output_lens, kv_budget) * (1 - 1e-12)


@EVERY_MODE
@pytest.mark.parametrize("name", ["amax", "hindsight", "fcfs-reserve"])
@PROPERTY
@given(data=st.data())
def test_a_safe_policy_never_evicts_when_the_bounds_are_true(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """With lower <= o <= upper <= max_new_tokens a reservation by an upper bound always suffices."""
    case = data.draw(cases(bounds="true", fits=data.draw(st.booleans())))
    assert run_policy(name, case, resume=resume).num_evictions.sum() == 0


@EVERY_MODE
@pytest.mark.parametrize("name", ["amin", "amin-eviction"])
@PROPERTY
@given(data=st.data())
def test_a_bound_never_falls_and_an_eviction_raises_it_to_what_was_generated(
    cases: Callable, run_policy: Callable, recorder: type, name: str, resume: bool, data: st.DataObject
) -> None:
    """Between two decisions the bound of request i is unchanged, or max(bound_i, generated_i) if it was evicted."""
    case = data.draw(cases(fits=False))
    amin = make_policy(name, replace(case.worker, resume=resume), np.random.default_rng(0))
    expected = [request.output_len_lower_bound for request in case.requests]

    def check(running: RunningBatch, decision: Decision) -> None:
        for index in decision.preempt:
            expected[index] = max(expected[index], running.num_generated(index))
        arrived = sorted({*running, *decision.admit})
        assert [amin._bounds[index] for index in arrived] == [expected[index] for index in arrived]

    run_policy(recorder(amin, after_schedule=check), case, resume=resume)
    for bound, request, output_len in zip(expected, case.requests, case.output_lens, strict=True):
        assert request.output_len_lower_bound <= bound <= max(request.output_len_lower_bound, output_len)


def test_a_schedule_worked_by_hand() -> None:
    """Of two requests of 3 tokens in a cache of 4 Amin evicts one after two tokens, and restarts it immediately."""
    worker = Worker(KvCache(4))
    requests = [Request("a", 0, 3), Request("b", 0, 3, output_len_lower_bound=2)]
    policy = make_policy("amin", worker, np.random.default_rng(0))
    result = Loop(policy, SimulatedExecutor(worker, [3, 3]), requests).run()
    evicted = int(result.num_evictions.argmax())
    assert result.num_evictions.sum() == 1
    assert result.num_recomputed_tokens[evicted] == 2
    assert result.first_token_time.tolist() == [1, 1]
    assert sorted(result.finish_time) == [3, 5]


def test_the_clock_jumps_over_idle_time() -> None:
    """A request that arrives at 2.5 after all else is done starts at 3, and idle time has no row in the timeline."""
    worker = Worker(KvCache(10))
    requests = [Request("late", 1, 4, arrival_time=2.5), Request("early", 1, 4)]
    policy = make_policy("fcfs", worker, np.random.default_rng(0))
    result = Loop(policy, SimulatedExecutor(worker, [2, 1]), requests).run()
    assert result.finish_time.tolist() == [5, 1]
    assert result.timeline.end.tolist() == [1, 5]
    assert result.timeline.num_iterations.tolist() == [1, 2]
    assert result.timeline.first_kv_blocks.tolist() == [2, 2]
    assert result.timeline.kv_blocks.tolist() == [2, 3]


def test_an_arrival_a_femtosecond_away_is_yet_to_come() -> None:
    """Seventeen iterations end at 18 s but for a femtosecond, which the nearest float does not show."""
    requests = [Request("first", 3, 32), Request("second", 0, 32, arrival_time=18.0)]
    worker = Worker(KvCache(100), cost_model=CostModel(1.0, seconds_per_prefill_token=1 / 3))
    result = simulate("fcfs", Workload(requests, [20, 1]), worker, 0)
    assert 18.0 < result.admission_time[1] < 19.0
