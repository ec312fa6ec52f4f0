"""A policy with a stopwatch."""

from time import perf_counter

from scheduler.batch import RunningBatch
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request


class TimedPolicy(Policy):
    """Does what another policy does and adds up the time that it takes."""

    def __init__(self, policy: Policy) -> None:
        """Wrap a new policy."""
        super().__init__(policy.worker, policy.rng)
        self._policy = policy
        self.waiting = policy.waiting
        self.seconds = 0.0

    def add(self, index: int, request: Request) -> None:
        """Pass on an arrival."""
        started = perf_counter()
        self._policy.add(index, request)
        self.seconds += perf_counter() - started

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the other's decision."""
        started = perf_counter()
        decision = self._policy.schedule(running)
        self.seconds += perf_counter() - started
        return decision

    def renew(self, index: int, renewal: Renewal) -> None:
        """Pass on a renewed forecast."""
        started = perf_counter()
        self._policy.renew(index, renewal)
        self.seconds += perf_counter() - started

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Pass on an end."""
        started = perf_counter()
        self._policy.end(index, status, num_generated, is_running=is_running)
        self.seconds += perf_counter() - started
