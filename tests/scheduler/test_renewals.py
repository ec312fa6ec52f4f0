"""Forecasts that are renewed while requests run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.look_ahead import KnownStates, LookAhead
from scheduler.renewals import PlannedRenewals, Renewal
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_rows

READING = ("amin", "amin-eviction", "amin-survival", "amax", "svf", "sjf", "fcfs", "hindsight")


@st.composite
def plans(draw: st.DrawFn, size: int) -> dict[int, Sequence[Renewal]]:
    """Renewals of some requests at a few token counts, right or wrong."""
    plan = {}
    for index in range(size):
        counts = sorted(draw(st.sets(st.integers(1, 12), max_size=3)))
        plan[index] = [
            Renewal(
                count,
                Forecast(
                    np.array([0, count, count + 3, count + draw(st.integers(4, 20))]),
                    np.array([1.0, 1.0, draw(st.floats(0.05, 0.95)), 0.0]),
                ),
                count + draw(st.integers(1, 8)),
            )
            for count in counts
        ]
    return plan


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("name", READING)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), engine=st.booleans())
def test_renewed_forecasts_agree_with_the_slow_loop(
    cases: Callable,
    run_policy: Callable,
    slow_loop: Callable,
    name: str,
    resume: bool,
    data: st.DataObject,
    engine: bool,
) -> None:
    """Every request starts, is evicted and ends as in the plain reference that looks after each token."""
    case = data.draw(cases(engine=engine))
    renewals = data.draw(plans(len(case.requests)))
    result = run_policy(name, case, resume=resume, renewals=renewals)
    slow = slow_loop(name, case._replace(worker=case.worker), resume=resume, renewals=renewals)
    everyone = range(len(case.requests))
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]
    assert result.finish_time.tolist() == [slow.finish_time[i] for i in everyone]
    assert result.num_recomputed_tokens.tolist() == [slow.num_recomputed[i] for i in everyone]


@pytest.mark.parametrize("name", READING)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), resume=st.booleans(), look_ahead=st.integers(1, 12))
def test_prompts_read_ahead_agree_with_the_slow_loop(
    cases: Callable,
    run_policy: Callable,
    slow_loop: Callable,
    name: str,
    data: st.DataObject,
    resume: bool,
    look_ahead: int,
) -> None:
    """What is read when, what it costs and what the policy then does, iteration by iteration."""
    case = data.draw(cases(engine=True))
    later = data.draw(plans(len(case.requests)))
    told = data.draw(plans(len(case.requests)))
    renewals = {i: [*(replace(each, num_generated=0) for each in told[i][:1]), *later[i]] for i in later}
    result = run_policy(name, case, resume=resume, renewals=renewals, look_ahead=look_ahead)
    slow = slow_loop(name, case, resume=resume, renewals=renewals, look_ahead=look_ahead)
    everyone = range(len(case.requests))
    assert result.finish_time.tolist() == [slow.finish_time[i] for i in everyone]
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]


def test_prompts_are_read_in_order_and_no_further_than_needed() -> None:
    """Within the tokens of an iteration; one that is admitted is let go of, an empty prompt takes no room."""
    forecast = Forecast(np.array([0, 9]), np.array([1.0, 0.0]))
    told = {i: [Renewal(0, forecast, 1)] for i in (0, 1, 2, 3)} | {4: [Renewal(2, forecast, 3)]}
    ahead = LookAhead(10, KnownStates(told))
    for index, tokens in enumerate([6, 9, 0, 30, 5]):
        ahead.add(index, tokens)
    assert (ahead.read(100), [index for index, _ in ahead.take()]) == (10, [0])
    ahead.drop(3)
    assert (ahead.read(2), ahead.take()) == (2, [])
    assert (ahead.read(100), [index for index, _ in ahead.take()]) == (3, [1, 2])
    assert not ahead.is_reading


def test_a_bound_of_amin_never_falls(make_case: Callable, run_policy: Callable) -> None:
    """A renewal below the first bound changes nothing."""
    case = make_case([9, 9, 9, 9], 20, lower=6)
    low = Forecast(np.array([0, 3, 4]), np.array([1.0, 1.0, 0.0]))
    renewals = {i: [Renewal(2, low, 3)] for i in range(4)}
    with_renewals = run_policy("amin", case, renewals=renewals)
    assert with_renewals.finish_time.tolist() == run_policy("amin", case).finish_time.tolist()


def test_exact_renewals_spare_evictions() -> None:
    """With first forecasts that know nothing, a renewal that knows the length saves evictions and time."""
    rng = np.random.default_rng(0)
    lens = np.ceil(rng.lognormal(4, 0.8, 300)).astype(int)
    edges = np.array([0, 50, 100, 400, 1200])
    first = Forecast(edges, np.array([1.0, 0.55, 0.2, 0.02, 0.0]))
    requests = [Request(f"r{i}", 20, 1200, forecast=first) for i in range(len(lens))]
    exact = {
        i: [Renewal(1, Forecast(np.array([0, n - 1, n]), np.array([1.0, 1.0, 0.0])), int(n))]
        for i, n in enumerate(lens.tolist())
        if n > 1
    }
    worker = Worker(KvCache(3000), resume=True)
    blind = simulate("amin-survival", Workload(requests, lens.tolist()), worker, 0)
    told = simulate("amin-survival", Workload(requests, lens.tolist(), exact), worker, 0)
    assert told.num_evictions.sum() < 0.8 * blind.num_evictions.sum()
    assert told.finish_time.mean() < blind.finish_time.mean()


def test_a_restarted_request_goes_through_its_renewals_again() -> None:
    """A stalled one is asked later, an evicted one not at all until it runs again."""
    forecast = Forecast(np.array([0, 9]), np.array([1.0, 0.0]))
    plan = PlannedRenewals({0: [Renewal(2, forecast, 5), Renewal(4, forecast, 6)]})
    running = RunningBatch(KvCache(100))
    running.append(0, 3, 0)
    plan.start(0, running)
    assert plan.wait(running) == 2
    running.advance(1, [0])
    running.advance(1)
    assert (plan.take(running), plan.wait(running)) == ([], 1)
    running.advance(1)
    assert [renewal.num_generated for _, renewal in plan.take(running)] == [2]
    running.remove(0)
    running.advance(2)
    assert plan.take(running) == []
    running.append(0, 3, 0)
    plan.start(0, running)
    running.advance(2)
    assert [renewal.num_generated for _, renewal in plan.take(running)] == [2]
    running.remove(0)
    running.append(0, 3, 3)
    plan.start(0, running)
    running.advance(1)
    assert [renewal.num_generated for _, renewal in plan.take(running)] == [4]


EDGES = np.array([0, 4, 8])


def row(**fields: Any) -> tuple[str, dict[str, Any]]:
    """A row of a workload file."""
    return "w.jsonl: line 1", {"request_id": "a", "num_prompt_tokens": 3, "output_len": 6, **fields}


def test_renewals_are_read_from_a_workload_file_and_go_with_their_requests() -> None:
    """With or without a bound; without the bins they are left out, as survival is."""
    read = workload_from_rows([row(renewals=[[1, [1, 0.5, 0]], [4, [1, 1, 0], 7]])], edges=EDGES)
    first, second = read.renewals[0]
    assert (first.num_generated, second.output_len_lower_bound) == (1, 7)
    assert first.output_len_lower_bound >= 1
    assert workload_from_rows([row(renewals=[[1, [1, 0.5, 0]]])]).renewals == {}
    twice = read.select([0, 0])
    assert twice.renewals == {0: read.renewals[0], 1: read.renewals[0]}


@pytest.mark.parametrize(
    ("renewals", "message"),
    [
        ([[-1, [1, 0.5, 0]]], "tokens out are -1"),
        ([[2, [1, 0.5, 0]], [2, [1, 0.5, 0]]], "and rise"),
        ([[1, [1, 0.5]]], "after 1 tokens: survival must have 3 values"),
        ([[1, [1, 0.5, 0], 0.5]], "bound is 0.5"),
        ([1], "must be a list of"),
        ("x", "must be a list of"),
    ],
)
def test_a_wrong_renewal_is_named_by_its_line(renewals: Any, message: str) -> None:
    """File, line, field and what is wrong."""
    with pytest.raises(InputError, match=rf"w\.jsonl: line 1: renewals.*{re.escape(message)}"):
        workload_from_rows([row(renewals=renewals)], edges=EDGES)
