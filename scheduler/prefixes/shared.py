"""Blocks that several prompts begin with: an engine with prefix caching stores each of them once."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from math import lcm


class SharedPrefixes:
    """Which blocks at the beginning of prompts are common to several requests, and which of those are held now.

    A block is common while at least two requests, waiting or running, begin with it. The running requests hold a common
    block together: it is charged to the batch, once, and the rest of a request to itself. What is common is settled
    when a request is admitted, for its whole stay. One that was admitted before a second came keeps paying for its own
    blocks, so that at most one copy of a prefix is counted twice, and only until that request ends.

    A block is named by all the tokens up to its end: a prompt that begins with it also begins with the blocks before
    it. Counts therefore never rise along a prefix, and where they fall below a number is found by bisection.

    Attributes:
        blocks_per_name: Blocks that each name stands for, the same for all requests; what is counted are blocks.
    """

    def __init__(self) -> None:
        """Start with no request."""
        self._prefixes: dict[int, Sequence[Hashable]] = {}
        self._known: Counter[Hashable] = Counter()
        self._held: Counter[Hashable] = Counter()
        self._taken: dict[int, int] = {}
        self.blocks_per_name = 1

    def __bool__(self) -> bool:
        """Return whether any request has a prefix."""
        return bool(self._prefixes)

    def add(self, index: int, prefix: Sequence[Hashable], blocks_per_name: int = 1) -> None:
        """Take in a request that begins with these blocks."""
        assert blocks_per_name == self.blocks_per_name or not self._prefixes, "names stand for different numbers"
        self.blocks_per_name = blocks_per_name
        self._prefixes[index] = prefix
        self._known.update(prefix)

    def remove(self, index: int) -> None:
        """Drop a request, if it is known; a running one lets go of its blocks."""
        self.release(index)
        _subtract(self._known, self._prefixes.pop(index, ()))

    def num_common(self, index: int) -> int:
        """Return how many blocks at its beginning a request shares with another one, as of now."""
        return self.blocks_per_name * self._num_at_least(index, self._known, 2)

    def names(self, index: int) -> Sequence[Hashable]:
        """Return what the blocks at the beginning of a request are called."""
        return self._prefixes.get(index, ())

    def num_new(self, index: int) -> int:
        """Return how many common blocks the admission of a request would add to those that are held."""
        held = self._num_at_least(index, self._held, 1)
        return max(0, self.num_common(index) - self.blocks_per_name * held)

    def num_taken(self, index: int) -> int:
        """Return how many common blocks a request was admitted with; 0 for one that waits."""
        return self.blocks_per_name * self._taken.get(index, 0)

    @property
    def num_held(self) -> int:
        """Common blocks that are held now."""
        return self.blocks_per_name * len(self._held)

    def take(self, index: int) -> None:
        """Let a request that is admitted hold its common blocks."""
        if index in self._prefixes and (count := self._num_at_least(index, self._known, 2)):
            self._taken[index] = count
            self._held.update(self._prefixes[index][:count])

    def release(self, index: int) -> None:
        """Let a request that is evicted, if it holds common blocks, let go of them."""
        if count := self._taken.pop(index, 0):
            _subtract(self._held, self._prefixes[index][:count])

    def _num_at_least(self, index: int, counts: Counter[Hashable], least: int) -> int:
        return bisect_left(self._prefixes.get(index, ()), True, key=lambda block: counts[block] < least)


class PrefixNames:
    """Numbers for the names of parts of prompts; two have one number if all the parts before them are equal, too."""

    def __init__(self) -> None:
        """Start with no name."""
        self._numbers: dict[tuple[int, Hashable], int] = {}

    def chain(self, names: Sequence[Hashable]) -> tuple[int, ...]:
        """Return the numbers of the parts that a prompt begins with, the first first."""
        numbers, before = [], -1
        for name in names:
            before = self._numbers.setdefault((before, name), len(self._numbers))
            numbers.append(before)
        return tuple(numbers)


def whole_blocks(
    names: Sequence[Hashable], tokens_per_name: int, num_prompt_tokens: int, block_size: int
) -> tuple[Sequence[Hashable], int]:
    """Return the names of whole blocks among those of `tokens_per_name` tokens, and the blocks that each stands for.

    An engine computes the last token of a prompt whatever it has: a block that ends with it is not looked for.
    """
    tokens = lcm(tokens_per_name, block_size)
    step, count = tokens // tokens_per_name, max(0, num_prompt_tokens - 1) // tokens
    return names[step - 1 : step * count : step], tokens // block_size


def _subtract(counts: Counter[Hashable], blocks: Sequence[Hashable]) -> None:
    """Count each of the blocks once less; one that nobody has left is dropped."""
    for block in blocks:
        counts[block] -= 1
        if not counts[block]:
            del counts[block]
