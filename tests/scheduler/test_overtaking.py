"""A bound on how often a request is overtaken while it waits."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.errors import InputError
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, make_policy
from scheduler.policy import Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

CLASSES = ("", "batch", "chat")
REORDERING = ("sjf", "svf", "amin", "amin-survival", "longest-first", "fcfs-lcf", "srpt", "mlfq", "hindsight-svf")
limits = st.fixed_dictionaries({}, optional={name: st.integers(0, 4) for name in CLASSES})


def in_classes(data: st.DataObject, case: tuple) -> tuple:
    """The case with a class for each request."""
    named = [replace(request, service_class=data.draw(st.sampled_from(CLASSES))) for request in case[0]]
    return case._replace(requests=named)


def watched(policy: Policy) -> Counter[int]:
    """How often each request of a policy is overtaken, counted by brute force as its queue moves."""
    waiting, numbers = dict[int, Request](), dict[int, int]()
    counts = Counter[int]()
    requeue, pop, queue = policy.waiting.requeue, policy.waiting.pop, policy.waiting

    def note(index: int, num_generated: int, key: float | None = None) -> None:
        numbers.setdefault(index, len(numbers))
        waiting[index] = queue.request(index)
        requeue(index, num_generated, key)

    def count() -> int:
        index = pop()
        mine = waiting.pop(index)
        counts.update(
            j for j, other in waiting.items() if numbers[j] < numbers[index] and other.priority == mine.priority
        )
        return index

    queue.requeue, queue.pop = note, count  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data(), resume=st.booleans())
def test_nobody_is_overtaken_more_often_than_its_class_allows(
    cases: Callable, run_policy: Callable, name: str, data: st.DataObject, resume: bool
) -> None:
    """Over all waits of a request, under every policy, with evictions; those without a limit may be."""
    case = in_classes(data, data.draw(cases(engine=True)))
    most = data.draw(limits)
    worker = replace(case.worker, resume=resume)
    policy = make_policy(name, worker, np.random.default_rng(0), output_lens=case.output_lens, max_overtakes=most)
    counts = watched(policy)
    run_policy(policy, case, resume=resume)
    for index, request in enumerate(case.requests):
        assert counts[index] <= most.get(request.service_class, most.get("", 10**9))


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("name", REORDERING)
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_bounded_policies_agree_with_the_slow_loop(
    cases: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """Every request starts, is evicted and ends as in the plain reference that counts for all that wait."""
    case, most = in_classes(data, data.draw(cases(engine=True))), data.draw(limits)
    result = run_policy(name, case, resume=resume, max_overtakes=most)
    slow = slow_loop(name, case, resume=resume, max_overtakes=most)
    everyone = range(len(case.requests))
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]
    assert result.finish_time.tolist() == [float(slow.finish_time[i]) for i in everyone]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_none_is_first_come_first_served_and_many_change_nothing(
    cases: Callable, run_policy: Callable, data: st.DataObject
) -> None:
    """The two ends of the knob."""
    case = data.draw(cases())
    ends = {name: run_policy(name, case).finish_time.tolist() for name in ("fcfs", "sjf")}
    assert run_policy("sjf", case, max_overtakes=0).finish_time.tolist() == ends["fcfs"]
    assert run_policy("sjf", case, max_overtakes=1000).finish_time.tolist() == ends["sjf"]


def test_a_request_that_leaves_makes_room_for_the_next_to_be_overdue() -> None:
    """Two long ones have been overtaken twice; when the first is cancelled the second goes next."""
    worker = Worker(KvCache(1000, 1), resume=True, max_running=1)
    runner = PolicyRunner(make_policy("sjf", worker, np.random.default_rng(0), max_overtakes=2))
    for name, length in (("long", 90), ("longer", 95), ("a", 1), ("b", 2), ("c", 3)):
        runner.add(Request(name, 1, 100, output_len_prediction=length))
    for expected in ("a", "b"):
        runner.decide()
        assert list(runner.running_ids()) == [expected]
        runner.end(expected, Status.ANSWERED, 1)
    runner.end("long", Status.CANCELLED, 0)
    runner.decide()
    assert list(runner.running_ids()) == ["longer"]


@pytest.mark.parametrize("limit", [-1, 1.5, True])
def test_a_limit_must_be_a_count(limit: float) -> None:
    """The message names the class."""
    with pytest.raises(InputError, match="max_overtakes of chat is"):
        make_policy("sjf", Worker(KvCache(10)), np.random.default_rng(0), max_overtakes={"chat": limit})
