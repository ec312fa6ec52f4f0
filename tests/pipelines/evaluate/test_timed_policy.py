"""The policy with a stopwatch: the policy in it is told everything."""

import numpy as np

from pipelines.evaluate.timed_policy import TimedPolicy
from scheduler.batch import RunningBatch
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policy import Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker


def test_everything_that_a_policy_can_be_told_is_passed_on() -> None:
    """A verb that is new in `Policy` must be passed on as well, and not end in the default that does nothing."""
    verbs = {name for name, value in vars(Policy).items() if callable(value) and not name.startswith("_")}
    assert {"add", "schedule", "renew", "end"} <= verbs
    assert verbs <= vars(TimedPolicy).keys()


def test_a_cancelled_request_is_not_admitted() -> None:
    """The end of a waiting request reaches the queue of the policy that is timed."""
    worker = Worker(KvCache(100))
    policy = TimedPolicy(make_policy("fcfs", worker, np.random.default_rng(0)))
    for index in range(3):
        policy.add(index, Request(f"r{index}", 5, 10))
    policy.end(1, Status.CANCELLED, 0, is_running=False)
    assert list(policy.schedule(RunningBatch(worker.kv_cache)).admit) == [0, 2]
    assert policy.seconds > 0
