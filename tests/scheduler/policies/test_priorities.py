"""A request's priority comes before its length."""

import numpy as np
import pytest

from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads, make_policy, policies_that_read
from scheduler.request import Request
from scheduler.worker import Worker

ONLINE = sorted(POLICIES.keys() - policies_that_read(Reads.OUTPUT_LEN))


def runner_of(name: str, budget: int, max_running: int | None = None) -> PolicyRunner:
    """A runner of a new policy on a cache of single tokens."""
    worker = Worker(KvCache(budget, 1), resume=True, max_running=max_running)
    return PolicyRunner(make_policy(name, worker, np.random.default_rng(0)))


def facts(name: str, length: int, priority: int) -> Request:
    """A request whose length is known within a token."""
    return Request(name, 10, length + 1, 0.0, length, length + 1, length, priority=priority)


@pytest.mark.parametrize("name", ONLINE)
def test_the_urgent_are_admitted_first(name: str) -> None:
    """The longest is the most urgent and came last; two may run."""
    runner = runner_of(name, 10_000, max_running=2)
    for i, (length, priority) in enumerate([(5, 3), (10, 2), (40, 1), (50, -1)]):
        runner.add(facts(f"r{i}", length, priority))
    runner.decide()
    assert list(runner.running_ids()) == ["r3", "r2"]


@pytest.mark.parametrize("name", ["fcfs", "sjf", "amin-survival"])
def test_the_least_urgent_are_evicted_first(name: str) -> None:
    """The cache shrinks under three that run: the first to come goes, being the least urgent."""
    runner = runner_of(name, 100)
    for i, priority in enumerate([2, 0, 1]):
        runner.add(facts(f"r{i}", 15, priority))
    runner.decide()
    assert len(list(runner.running_ids())) == 3
    runner.num_outside_blocks = 70
    assert runner.decide()[0] == "r0"
