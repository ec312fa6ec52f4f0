"""A bound on how often a request may be overtaken while it waits, for every policy that keeps the common queue."""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.errors import InputError
from scheduler.request import Request


@dataclass(slots=True)
class _Line:
    """Requests of one priority and class that have never run, in order of arrival, and who was admitted before them.

    Attributes:
        limit: How often each may be overtaken.
        fresh: Indices; those that have left are dropped when they come up.
        overtakers: Arrival numbers of admissions after the first of `fresh`, ascending. Whoever overtakes a later one
            overtakes the first too, so that of the fresh ones the first reaches the limit first.
    """

    limit: int
    fresh: deque[int] = field(default_factory=deque)
    overtakers: list[int] = field(default_factory=list)


class Overtaking:
    """Counts, for each request that waits, how often one that arrived later was admitted, over all its waits.

    Only requests of the same priority count. One that was overtaken as often as its class allows is overdue: it goes
    before all others of its priority, overdue ones in order of arrival, so that nobody is overtaken more often. A
    count of 0 is first come first served.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        """Start with nothing waiting.

        Args:
            limits: By class; "" is for all classes that are not named. A class without a limit is not counted.

        Raises:
            InputError: A limit is negative.
        """
        for name, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
                raise InputError(f"max_overtakes{f' of {name}' if name else ''} is {limit!r}, must be a number >= 0")
        self._limits = limits
        self._lines: dict[tuple[int, str], _Line] = {}
        self._facts: dict[int, tuple[int, int, str]] = {}  # arrival number, priority, class
        self._fresh: set[int] = set()
        self._running: dict[int, int] = {}  # -> how often overtaken
        self._returned: dict[int, int] = {}  # the same of those that wait again: few, unlike the fresh ones
        self._overdue: set[int] = set()

    def is_overdue(self, index: int) -> bool:
        """Return whether a request, waiting or running, has been overtaken as often as it may be."""
        return index in self._overdue

    def wait(self, index: int, number: int, request: Request) -> list[int]:
        """Take in a request that waits, for the first time or again; return it if it is overdue."""
        if index in self._running:
            self._returned[index] = self._running.pop(index)
            return [index] if index in self._overdue else []
        limit = self._limit(request.service_class)
        is_known, self._facts[index] = index in self._facts, (number, request.priority, request.service_class)
        if is_known or limit is None:
            return []
        line = self._lines.setdefault((request.priority, request.service_class), _Line(limit))
        line.fresh.append(index)
        self._fresh.add(index)
        return self._settled(line)

    def admit(self, index: int) -> list[int]:
        """Count the admission of a request that waits; return those that it makes overdue."""
        number, priority, service_class = self._facts[index]
        if index in self._returned:
            self._running[index] = self._returned.pop(index)
        elif index in self._fresh:
            overtakers = self._lines[priority, service_class].overtakers
            self._running[index] = len(overtakers) - bisect_right(overtakers, number)
            self._fresh.remove(index)
        overdue: list[int] = []
        for other in self._returned:
            theirs, their_priority, their_class = self._facts[other]
            if theirs < number and their_priority == priority:
                self._returned[other] += 1
                if self._returned[other] == self._limit(their_class):
                    overdue.append(other)
        for (of, _), line in self._lines.items():
            if of == priority:
                insort(line.overtakers, number)
                overdue += self._settled(line)
        self._overdue.update(overdue)
        return overdue

    def end(self, index: int) -> list[int]:
        """Let go of a request; return those that are overdue now that it is gone."""
        facts = self._facts.pop(index, (0, 0, ""))
        self._running.pop(index, None)
        self._returned.pop(index, None)
        self._overdue.discard(index)
        if index not in self._fresh:
            return []
        self._fresh.remove(index)
        return self._settled(self._lines[facts[1:]])

    def _settled(self, line: _Line) -> list[int]:
        """Forget what came before the first that waits, and return it if it has become overdue."""
        while line.fresh and line.fresh[0] not in self._fresh:
            line.fresh.popleft()
        if not line.fresh:
            line.overtakers.clear()
            return []
        first = line.fresh[0]
        del line.overtakers[: bisect_right(line.overtakers, self._facts[first][0])]
        if len(line.overtakers) < line.limit or first in self._overdue:
            return []
        self._overdue.add(first)
        return [first]

    def _limit(self, service_class: str) -> int | None:
        return self._limits.get(service_class, self._limits.get(""))
