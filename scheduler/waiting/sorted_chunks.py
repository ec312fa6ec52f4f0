"""Items in ascending order, the first quick to take."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])
LONGEST = 512


class SortedChunks(Generic[Item]):
    """Different items, sorted, in lists of at most `LONGEST`.

    Taking the first compares nothing. A heap compares as many as it has levels, at every take, and with 100,000 in it
    each of them is far away in memory. Adding or removing one compares as many, of which the last are close together.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        """Start with these items, in any order."""
        ordered = sorted(items)
        half = LONGEST // 2
        self._chunks = [ordered[start : start + half] for start in range(0, len(ordered), half)]
        self._lasts = [chunk[-1] for chunk in self._chunks]

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order."""
        for chunk in self._chunks:
            yield from chunk

    @property
    def first(self) -> Item:
        """The least item, of at least one."""
        return self._chunks[0][0]

    def add(self, item: Item) -> None:
        """Add an item that is not there."""
        if not self._chunks:
            self._chunks, self._lasts = [[item]], [item]
            return
        place = bisect_left(self._lasts, item)
        if place == len(self._lasts):
            place -= 1
            self._chunks[place].append(item)
            self._lasts[place] = item
        else:
            insort(self._chunks[place], item)
        if len(self._chunks[place]) > LONGEST:
            self._split(place)

    def _split(self, place: int) -> None:
        chunk, half = self._chunks[place], LONGEST // 2
        self._chunks[place : place + 1] = [chunk[:half], chunk[half:]]
        self._lasts.insert(place, chunk[half - 1])

    def take_first(self) -> Item:
        """Remove and return the least item, of at least one."""
        chunk = self._chunks[0]
        item = chunk.pop(0)
        if not chunk:
            del self._chunks[0], self._lasts[0]
        return item

    def remove(self, item: Item) -> None:
        """Remove an item that is there."""
        place = bisect_left(self._lasts, item)
        chunk = self._chunks[place]
        del chunk[bisect_left(chunk, item)]
        if chunk:
            self._lasts[place] = chunk[-1]
        else:
            del self._chunks[place], self._lasts[place]
