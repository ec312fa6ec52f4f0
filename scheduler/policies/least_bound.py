"""The running requests in ascending current bound, as Amin evicts them."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from scheduler.batch import RunningBatch


class LeastBoundFirst:
    """Running requests in ascending current bound; of equal ones, each is as likely to be the first.

    A request within its bound keeps that bound. A request that has outlived it has as its current bound the tokens
    that it has generated. These grow by one in each iteration for all such requests, so the last started has the
    fewest. Requests are therefore kept in groups: by bound while within it, by start afterwards. Each kind has a heap
    of its groups; empty groups are dropped when they come up. Where bounds rise at eviction only, nothing is outlived.
    """

    def __init__(self, rng: np.random.Generator, *, by_token: bool) -> None:
        """Start empty. `by_token`: whether a request that outlives its bound raises it while it runs."""
        self._rng, self._by_token = rng, by_token
        self._entries: dict[int, tuple[int, int]] = {}
        self._within: dict[int, list[tuple[int, int]]] = {}  # bound -> (start, index), ascending
        self._outlived: dict[int, list[int]] = {}  # start -> index, ascending
        self._bounds: list[int] = []
        self._starts: list[int] = []  # negated

    def add(self, index: int, bound: int, start: int) -> None:
        """Add a request whose generated tokens are the clock minus `start`."""
        self._entries[index] = (bound, start)
        group = self._within.get(bound)
        if group is None:
            group = self._within[bound] = []
            heappush(self._bounds, bound)
        entry = (start, index)
        if group and entry < group[-1]:
            insort(group, entry)
        else:
            group.append(entry)

    def remove(self, index: int) -> None:
        """Take out a request."""
        bound, start = self._entries.pop(index)
        group = self._within.get(bound, [])
        place = bisect_left(group, (start, index))
        if place < len(group) and group[place] == (start, index):
            del group[place]
        else:
            self._outlived[start].remove(index)

    def follow(self, running: RunningBatch) -> None:
        """Take note of the requests that got no token in the last iteration."""
        for index in running.stalled:
            bound, start = self._entries[index]
            self.remove(index)
            self.add(index, bound, start + 1)

    def pop_all(self, clock: int) -> Iterator[int]:
        """Take requests out and yield them, least current bound first, after `clock` iterations."""
        while self._entries:
            self._sort_out(clock)
            within: Sequence[tuple[int, int]] = ()
            outlived: Sequence[int] = ()
            least = self._bounds[0] if self._bounds else clock - self._outlived_start()
            if self._starts and clock - self._outlived_start() <= least:
                least = clock - self._outlived_start()
                outlived = self._outlived[clock - least]
            if self._bounds and self._bounds[0] == least:
                within = self._within[least]
            tied = len(outlived) + len(within)
            place = int(self._rng.random() * tied) if tied > 1 else 0
            index = outlived[place] if place < len(outlived) else within[place - len(outlived)][1]
            self.remove(index)
            yield index

    def _outlived_start(self) -> int:
        return -self._starts[0]

    def _sort_out(self, clock: int) -> None:
        """Bring the least bound of those within it, and the last start of the others, to the top of their heaps."""
        while self._bounds:
            bound = self._bounds[0]
            group = self._within[bound]
            if self._by_token and group and clock - group[0][0] > bound:
                count = bisect_left(group, (clock - bound, -1))
                for start, index in group[:count]:
                    self._outlive(start, index)
                del group[:count]
            if group:
                break
            del self._within[heappop(self._bounds)]
        while self._starts and not self._outlived[self._outlived_start()]:
            del self._outlived[-heappop(self._starts)]

    def _outlive(self, start: int, index: int) -> None:
        group = self._outlived.get(start)
        if group is None:
            if len(self._starts) > 2 * len(self._entries) + 64:
                self._drop_empty()
            group = self._outlived[start] = []
            heappush(self._starts, -start)
        insort(group, index)

    def _drop_empty(self) -> None:
        """Drop the groups that are empty; below one of a later start they would never come up."""
        self._outlived = {start: group for start, group in self._outlived.items() if group}
        self._starts = [-start for start in self._outlived]
        heapify(self._starts)
