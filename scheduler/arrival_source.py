"""Where the loop learns of arrivals: at arrival, or a little later where something is still to be found out."""

import math
from abc import ABC, abstractmethod
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
    """Requests whose facts are complete at arrival."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Sort at least one request by arrival, then index."""
        self._requests = requests
        self._left = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i), reverse=True)
        self.next_time = requests[self._left[-1]].arrival_time

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return those that have arrived."""
        left, requests = self._left, self._requests
        taken = []
        while left and requests[left[-1]].arrival_time <= now:
            index = left.pop()
            taken.append((index, requests[index]))
        self.next_time = requests[left[-1]].arrival_time if left else math.inf
        return taken
