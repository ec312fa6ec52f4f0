from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import POLICIES, Reads, make_policy, policies_that_read
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker

EVERY_POLICY = pytest.mark.parametrize("name", POLICIES)
EVERY_MODE = pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])


class UncheckedExecutor(SimulatedExecutor):
    """Like a real engine that samples freely, it cannot know that a request will not fit."""

    def check(self, index: int, request: Request) -> None:
        """Accept everything."""


def run(requests: list[Request], output_lens: list[int], kv_cache: KvCache, name: str = "amin") -> Any:
    """Return the result of a run."""
    worker = Worker(kv_cache)
    policy = make_policy(name, worker, np.random.default_rng(0), output_lens=output_lens)
    return Loop(policy, SimulatedExecutor(worker, output_lens), requests).run()


@EVERY_MODE
@EVERY_POLICY
@pytest.mark.parametrize("slack", [0, 40])
@pytest.mark.parametrize("lengths", ["equal", "distinct", "two-point"])
def test_thrashing_ends(
    make_case: Callable, run_policy: Callable, recorder: type, name: str, resume: bool, slack: int, lengths: str
) -> None:
    """Lower bounds of 1, long outputs and memory for little more than one request: every cycle makes progress."""
    output_lens = {"equal": [40] * 12, "distinct": list(range(29, 41)), "two-point": [2, 40] * 6}[lengths]
    case = make_case(output_lens, 42 + slack, prompt=2)
    policy = make_policy(name, replace(case.worker, resume=resume), np.random.default_rng(0), output_lens=output_lens)
    # One after the other they take sum(o) decisions; a livelock would take any number.
    steps = recorder(policy, max_steps=12 * sum(output_lens))
    result = run_policy(steps, case, resume=resume)
    assert np.isfinite(result.finish_time).all()
    if name.startswith("amin") or name == "fcfs":
        assert result.num_evictions.sum() > 0


@EVERY_MODE
@pytest.mark.parametrize("name", ["amin", "amin-eviction"])
def test_a_wide_two_point_workload_ends(
    make_case: Callable, run_policy: Callable, recorder: type, name: str, resume: bool
) -> None:
    """Lengths of 20 and 400 behind one lower bound of 20: Amin evicts often, and ends."""
    output_lens = [20, 400, 20, 400, 400] * 8
    case = make_case(output_lens, 800, lower=20)
    policy = make_policy(name, replace(case.worker, resume=resume), np.random.default_rng(0), output_lens=output_lens)
    result = run_policy(recorder(policy, max_steps=5 * sum(output_lens)), case, resume=resume)
    assert np.isfinite(result.finish_time).all()
    assert result.num_evictions.max() > 1


@EVERY_POLICY
def test_a_limit_beyond_the_cache_does_not_stop_a_request(make_case: Callable, run_policy: Callable, name: str) -> None:
    """Where max_new_tokens and the upper bound never fit, a request that truly fits runs, alone if need be."""
    case = make_case([5, 5, 5], 10, prompt=5, upper=1000)
    assert sorted(run_policy(name, case).finish_time) == [5, 10, 15]


@pytest.mark.parametrize(
    ("request_", "output_len"),
    [
        (Request("too-long", 8, 20, output_len_lower_bound=3), 1),
        (Request("too-long", 10, 20), 1),
        (Request("too-long", 5, 20), 6),
    ],
    ids=["lower bound", "first token", "true length"],
)
@EVERY_POLICY
def test_a_request_that_can_never_fit_is_rejected_by_name(name: str, request_: Request, output_len: int) -> None:
    """Submission fails before anything runs, in one line with the request's id and the budget."""
    with pytest.raises(InputError, match=r"request 'too-long': .* 10\b") as raised:
        run([Request("fine", 1, 5), request_], [5, output_len], KvCache(10), name)
    assert "\n" not in str(raised.value)


def test_whole_blocks_decide_whether_a_request_fits() -> None:
    """A budget of 11 tokens is two blocks of 4: a peak of 8 fits, one of 9 does not."""
    kv_cache = KvCache.from_budget(11, 4)
    assert run([Request("fits", 5, 3)], [3], kv_cache).finish_time.tolist() == [3]
    with pytest.raises(InputError, match="request 'over'"):
        run([Request("over", 5, 4)], [4], kv_cache)


# Policies that reserve max_new_tokens rely on an executor that checks them; hindsight relies on true lengths.
@pytest.mark.parametrize(
    "name", [name for name in POLICIES if name not in policies_that_read(Reads.OUTPUT_LEN) | {"fcfs-reserve"}]
)
def test_a_request_that_outgrows_the_cache_alone_is_named(name: str) -> None:
    """An executor that cannot check lengths beforehand ends in an error with the id, not in a livelock."""
    worker = Worker(KvCache(10))
    policy = make_policy(name, worker, np.random.default_rng(0))
    loop = Loop(policy, UncheckedExecutor(worker, [50]), [Request("endless", 1, 50)])
    with pytest.raises(InputError, match="'endless' outgrew the KV cache"):
        loop.run()


def test_an_empty_workload_is_an_input_error() -> None:
    """There is nothing to measure."""
    with pytest.raises(InputError, match="no request"):
        run([], [], KvCache(10))


def test_a_repeated_id_is_an_input_error() -> None:
    """Results are reported by id."""
    with pytest.raises(InputError, match="'twin' appears twice"):
        run([Request("twin", 1, 5), Request("other", 1, 5), Request("twin", 1, 5)], [1, 1, 1], KvCache(10))


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("num_prompt_tokens", {"num_prompt_tokens": -1}),
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("arrival_time", {"arrival_time": -0.5}),
        ("arrival_time", {"arrival_time": float("inf")}),
        ("arrival_time", {"arrival_time": float("nan")}),
        ("output_len_lower_bound", {"output_len_lower_bound": 0}),
        ("output_len_lower_bound", {"output_len_lower_bound": 11}),
        ("output_len_upper_bound", {"output_len_lower_bound": 4, "output_len_upper_bound": 3}),
    ],
)
def test_a_field_out_of_range_is_an_input_error(field: str, changed: dict[str, Any]) -> None:
    """The message is one line with the id, the field and its value."""
    values = {"request_id": "bad", "num_prompt_tokens": 1, "max_new_tokens": 10}
    with pytest.raises(InputError) as raised:
        Request(**(values | changed))
    assert str(raised.value).startswith(f"request 'bad': {field} is {changed[field]}, must be ")
    assert "\n" not in str(raised.value)


def test_the_bounds_of_a_request_may_meet() -> None:
    """The ends of every range are allowed."""
    request = Request("edge", 0, 1, output_len_lower_bound=1, output_len_upper_bound=1)
    assert run([request], [1], KvCache(1)).finish_time.tolist() == [1]


def test_an_unknown_policy_is_an_input_error() -> None:
    """The message names it and all that there are."""
    with pytest.raises(InputError) as raised:
        make_policy("fifo", Worker(KvCache(10)), np.random.default_rng(0), output_lens=[1])
    assert "'fifo'" in str(raised.value)
    assert all(name in str(raised.value) for name in POLICIES)


def test_hindsight_without_true_lengths_is_an_input_error() -> None:
    """Free sampling has none to give."""
    with pytest.raises(InputError, match="'hindsight' needs the true output lengths"):
        make_policy("hindsight", Worker(KvCache(10)), np.random.default_rng(0))
