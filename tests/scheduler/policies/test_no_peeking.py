import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.admission import admit_or_evict
from scheduler.batch import RunningBatch
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import POLICIES, Reads, make_policy, policies_that_read
from scheduler.policy import Decision, Policy
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker

UNTOLD = [name for name in POLICIES if name not in policies_that_read(Reads.OUTPUT_LEN)]
Build = Callable[[Worker, Sequence[int]], Policy]


class Peeking(Policy):
    """A cheat: admits the truly shortest first while current tokens fit."""

    def __init__(self, worker: Worker, output_lens: Sequence[int]) -> None:
        super().__init__(worker, np.random.default_rng(0))
        self._output_lens = output_lens

    def add(self, index: int, request: Request) -> None:
        """Queue it by what it should not know."""
        self.waiting.add(self._output_lens[index], index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Preempt the last admitted, else admit while current tokens fit."""
        return admit_or_evict(self, running, reversed)


def run_recorded(build: Build, recorder: Any, case: Any, output_lens: Sequence[int], resume: bool) -> tuple[list, list]:
    """Return the steps that decided something, and which requests had finished after how many iterations."""
    worker = replace(case.worker, resume=resume)
    policy = recorder(build(worker, output_lens))
    executor = SimulatedExecutor(worker, output_lens)
    finished: list[tuple[int, int]] = []
    loop = Loop(policy, executor, case.requests)
    loop.run(lambda indices: finished.extend((loop._running.clock, index) for index in indices))
    return [step for step in policy.steps if step.preempt or step.admit], finished


def first_peek(
    build: Build, recorder: Any, case: Any, others: Sequence[int], *, resume: bool = False
) -> tuple[Any, Any] | None:
    """Return the first two decisions that differ before any finish does, None if there are none.

    Until a request ends in one run and not in the other, all that a policy was told is the same in both.
    """
    steps, finished = run_recorded(build, recorder, case, case.output_lens, resume)
    other_steps, other_finished = run_recorded(build, recorder, case, others, resume)
    same_until = min((clock for clock, _ in set(finished) ^ set(other_finished)), default=math.inf)
    before = [step for step in steps if step.clock < same_until]
    other_before = [step for step in other_steps if step.clock < same_until]
    return next(((one, other) for one, other in zip_longest(before, other_before) if one != other), None)


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("name", UNTOLD)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_decisions_do_not_depend_on_lengths_not_yet_seen(
    cases: Callable, recorder: type, name: str, resume: bool, data: st.DataObject
) -> None:
    """Two runs of the same requests with different true lengths decide alike until a finish tells them apart."""
    case = data.draw(cases())
    others = [data.draw(st.integers(1, request.max_new_tokens)) for request in case.requests]

    def build(worker: Worker, output_lens: Sequence[int]) -> Policy:
        return make_policy(name, worker, np.random.default_rng(0), output_lens=output_lens)

    assert first_peek(build, recorder, case, others, resume=resume) is None


@pytest.mark.parametrize("name", UNTOLD)
def test_a_long_run_does_not_peek_either(make_case: Callable, recorder: type, name: str) -> None:
    """Lengths that agree but for the last request leave 60 finishes to compare, evictions among them."""
    rng = np.random.default_rng(5)
    output_lens = rng.integers(4, 30, 60).tolist()
    case = make_case(output_lens, 80, prompt=2, lower=2, upper=40)
    others = [*output_lens[:-1], 30 - output_lens[-1] % 2]

    def build(worker: Worker, output_lens: Sequence[int]) -> Policy:
        return make_policy(name, worker, np.random.default_rng(0), output_lens=output_lens)

    assert first_peek(build, recorder, case, others) is None


@pytest.mark.parametrize("cheat", [Peeking, "hindsight"])
def test_a_policy_that_peeks_is_caught(make_case: Callable, recorder: type, cheat: Any) -> None:
    """The check above can fail: it tells a cheat, and the clairvoyant baseline, by their first decision."""

    def build(worker: Worker, output_lens: Sequence[int]) -> Policy:
        if cheat == "hindsight":
            return make_policy(cheat, worker, np.random.default_rng(0), output_lens=output_lens)
        return cheat(worker, output_lens)

    peek = first_peek(build, recorder, make_case([3, 9, 9], 10, prompt=1), [9, 9, 3])
    assert peek is not None
    assert peek[0].running == peek[1].running == []
    assert peek[0].admit[0] == 0
    assert peek[1].admit[0] == 2


def test_a_request_has_no_field_for_its_true_length() -> None:
    """Adding a field is a decision to take with this test in mind."""
    assert {field.name for field in fields(Request)} == {
        "request_id",
        "num_prompt_tokens",
        "max_new_tokens",
        "arrival_time",
        "output_len_lower_bound",
        "output_len_upper_bound",
        "output_len_prediction",
        "forecast",
        "prefix",
        "prefix_tokens",
        "priority",
        "group",
        "service_class",
    }


@pytest.mark.parametrize("name", UNTOLD)
def test_only_policies_that_read_true_lengths_take_them(name: str) -> None:
    """The others have no argument for them, and `make_policy` does not pass them on."""
    with pytest.raises(TypeError, match="output_lens"):
        POLICIES[name].make(Worker(KvCache(10)), np.random.default_rng(0), output_lens=[1])
    secret = [123_457]
    policy = make_policy(name, Worker(KvCache(10)), np.random.default_rng(0), output_lens=secret)
    assert all(value is not secret for value in vars(policy).values())
