"""Which running requests are due in an iteration: those whose bound is reached then."""

from collections.abc import Mapping
from heapq import heappop, heappush
from math import inf


class DueRequests:
    """Requests in groups by the iteration in which they are due, and a heap of those iterations.

    Many requests are due in one iteration, in any order. So a heap of requests would compare them for nothing, and over
    memory that no cache holds. A request that is due at another time, or no more, stays in its old group until that
    comes up.
    """

    def __init__(self) -> None:
        """Start with nothing due."""
        self._due: dict[int, int] = {}
        self._groups: dict[int, list[int]] = {}
        self._clocks: list[int] = []

    def put(self, index: int, clock: int) -> None:
        """Let a request be due at `clock`, whatever it was before."""
        self.put_all({index: clock})

    def put_all(self, clocks: Mapping[int, int]) -> None:
        """Let requests be due at these clocks, whatever they were before."""
        self._due.update(clocks)
        groups = self._groups
        for index, clock in clocks.items():
            if clock in groups:
                groups[clock].append(index)
            else:
                groups[clock] = [index]
                heappush(self._clocks, clock)

    def drop(self, index: int) -> None:
        """Let a request, if it is due, be due no more."""
        self._due.pop(index, None)

    @property
    def first(self) -> float:
        """When something may be due next, not before; inf where nothing is."""
        return self._clocks[0] if self._clocks else inf

    def pop(self, clock: int) -> list[int]:
        """Take out and return, each once, the requests that are due by `clock`."""
        taken, due = [], self._due
        while self._clocks and self._clocks[0] <= clock:
            then = heappop(self._clocks)
            for index in self._groups.pop(then):
                if due.get(index) == then:
                    del due[index]
                    taken.append(index)
        return taken
