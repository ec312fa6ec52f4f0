"""Where the loop learns of arrivals: at arrival, or a little later where something is still to be found out."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

from scheduler.request import Request


class ArrivalSource(ABC):
    """Hands over requests as they become known to the policy. The loop polls it and never waits for it.

    Attributes:
        next_time: When there may be something new, in the executor's clock; inf once every request is handed over.
        num_held: Requests that had arrived at the last `take` and were not handed over yet.
    """

    next_time: float
    num_held: int = 0

    @abstractmethod
    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return the index and the facts of each request that the policy is to know of by `now`, each once."""


class KnownArrivals(ArrivalSource):
    """Requests whose facts are complete at arrival, or at a time that is known."""

    def __init__(self, requests: Sequence[Request], times: Sequence[float] | None = None) -> None:
        """Sort at least one request by when it is handed over, then index.

        Args:
            requests: The workload.
            times: When each is handed over, not before it arrives; by default then.
        """
        self._requests, self._arrivals = requests, sorted(request.arrival_time for request in requests)
        self._times = [request.arrival_time for request in requests] if times is None else times
        self._left = sorted(range(len(requests)), key=lambda i: (self._times[i], i), reverse=True)
        self.next_time = self._times[self._left[-1]]

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return those whose time has come."""
        left, requests, times = self._left, self._requests, self._times
        taken = []
        while left and times[left[-1]] <= now:
            index = left.pop()
            taken.append((index, requests[index]))
        self.next_time = times[left[-1]] if left else math.inf
        self.num_held = bisect_right(self._arrivals, now) - len(requests) + len(left)
        return taken
