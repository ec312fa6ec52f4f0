"""Blocks that several prompts begin with: an engine with prefix caching stores each of them once."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence


class SharedPrefixes:
    """Which blocks at the beginning of prompts are common to several requests, and which of those are held now.

    A block is common while at least two requests, waiting or running, begin with it. The running requests hold a common
    block together: it is charged to the batch, once, and the rest of a request to itself. What is common is settled
    when a request is admitted, for its whole stay. One that was admitted before a second came keeps paying for its own
    blocks, so that at most one copy of a prefix is counted twice, and only until that request ends.

    A block is named by all the tokens up to its end: a prompt that begins with it also begins with the blocks before
    it. Counts therefore never rise along a prefix, and where they fall below a number is found by bisection.
    """

    def __init__(self) -> None:
        """Start with no request."""
        self._prefixes: dict[int, Sequence[Hashable]] = {}
        self._known: Counter[Hashable] = Counter()
        self._held: Counter[Hashable] = Counter()
        self._taken: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Return whether any request has a prefix."""
        return bool(self._prefixes)

    def add(self, index: int, prefix: Sequence[Hashable]) -> None:
        """Take in a request that begins with these blocks."""
        self._prefixes[index] = prefix
        self._known.update(prefix)

    def remove(self, index: int) -> None:
        """Drop a request, if it is known; a running one lets go of its blocks."""
        self.release(index)
        _subtract(self._known, self._prefixes.pop(index, ()))

    def num_common(self, index: int) -> int:
        """Return how many blocks at its beginning a request shares with another one, as of now."""
        return self._num_at_least(index, self._known, 2)

    def num_new(self, index: int) -> int:
        """Return how many common blocks the admission of a request would add to those that are held."""
        return max(0, self.num_common(index) - self._num_at_least(index, self._held, 1))

    def num_taken(self, index: int) -> int:
        """Return how many common blocks a request was admitted with; 0 for one that waits."""
        return self._taken.get(index, 0)

    @property
    def num_held(self) -> int:
        """Common blocks that are held now."""
        return len(self._held)

    def take(self, index: int) -> None:
        """Let a request that is admitted hold its common blocks."""
        if index in self._prefixes and (count := self.num_common(index)):
            self._taken[index] = count
            self._held.update(self._prefixes[index][:count])

    def release(self, index: int) -> None:
        """Let a request that is evicted, if it holds common blocks, let go of them."""
        if count := self._taken.pop(index, 0):
            _subtract(self._held, self._prefixes[index][:count])

    def _num_at_least(self, index: int, counts: Counter[Hashable], least: int) -> int:
        return bisect_left(self._prefixes.get(index, ()), True, key=lambda block: counts[block] < least)


def _subtract(counts: Counter[Hashable], blocks: Sequence[Hashable]) -> None:
    """Count each of the blocks once less; one that nobody has left is dropped."""
    for block in blocks:
        counts[block] -= 1
        if not counts[block]:
            del counts[block]
