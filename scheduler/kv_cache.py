"""KV-cache memory in blocks, and the peak that a set of requests will reach."""

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from scheduler.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KvCache:
    """A KV cache of `num_blocks` blocks of `block_size` tokens; `block_size` 1 is the paper's token budget."""

    num_blocks: int
    block_size: int = 1

    @classmethod
    def from_budget(cls, kv_budget: int, block_size: int = 1) -> "KvCache":
        """Return the largest cache within `kv_budget` tokens.

        Raises:
            InputError: Not even one block fits.
        """
        if block_size < 1 or kv_budget < block_size:
            raise InputError(f"kv_budget is {kv_budget} tokens, must hold a block of block_size {block_size} >= 1")
        return cls(kv_budget // block_size, block_size)

    @overload
    def blocks(self, num_tokens: int) -> int: ...
    @overload
    def blocks(self, num_tokens: Ints) -> Ints: ...
    def blocks(self, num_tokens: int | Ints) -> int | Ints:
        """Return the blocks that hold `num_tokens` tokens, element by element."""
        return -(-num_tokens // self.block_size)


class FuturePeak:
    """Peak KV use of a set of requests, if each generates exactly its remaining tokens and then frees its memory.

    Between two completions every request only grows, so the peak is reached at a completion. With the remaining
    tokens r sorted descending and the held tokens h, the blocks in use at the k-th completion are
    sum_{j<=k} ceil((h_j + r_k) / block_size): algorithm MC-SF (arXiv 2502.07115), in blocks.
    """

    def __init__(self, kv_cache: KvCache, held: Ints, remaining: Ints) -> None:
        """Build the profile of the running set in O(n (log n + block_size)).

        Args:
            kv_cache: The memory.
            held: Tokens held now, shape [n].
            remaining: Tokens still to come, each at least 1, shape [n].
        """
        self._kv_cache = kv_cache
        order = np.argsort(-remaining, kind="stable")
        self._size = len(order)
        room = 2 * self._size + 16
        self._held, self._remaining, self._used = (np.zeros(room, dtype=np.int64) for _ in range(3))
        self._held[: self._size] = held[order]
        self._remaining[: self._size] = remaining[order]
        self._used[: self._size] = self._used_at_completions(held[order], remaining[order])

    def _used_at_completions(self, held: Ints, remaining: Ints) -> Ints:
        """Return sum_{j<=k} ceil((held_j + remaining_k) / block_size) for every k, without the n x n table."""
        block_size, counts = self._kv_cache.block_size, np.arange(1, len(held) + 1)
        total: Ints = np.cumsum(held) + counts * remaining
        if block_size == 1:
            return total
        # ceil(x / b) = (x + b - 1 - (x + b - 1) mod b) / b; the remainders depend on held mod b alone.
        residues = np.arange(block_size)
        seen = np.cumsum((held % block_size)[:, None] == residues, axis=0)
        remainders = (residues + remaining[:, None] + block_size - 1) % block_size
        blocks: Ints = (total + counts * (block_size - 1) - (seen * remainders).sum(axis=1)) // block_size
        return blocks

    @property
    def blocks(self) -> int:
        """The peak in blocks (0 for no request)."""
        return int(self._used[: self._size].max(initial=0))

    def try_add(self, held: int, remaining: int) -> bool:
        """Add a request and return True if the peak stays within the cache; else change nothing, return False.

        The requests already in the set must fit; their own peak is not looked at again.
        """
        size, kv_cache = self._size, self._kv_cache
        place = int(np.searchsorted(-self._remaining[:size], -remaining, side="right"))
        later = self._used[place:size] + kv_cache.blocks(held + self._remaining[place:size])
        own = int(kv_cache.blocks(self._held[:place] + remaining).sum()) + kv_cache.blocks(held + remaining)
        if own > kv_cache.num_blocks or later.max(initial=0) > kv_cache.num_blocks:
            return False
        if size == len(self._held):
            for name in ("_held", "_remaining", "_used"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(size, dtype=np.int64)]))
        for column, value in ((self._held, held), (self._remaining, remaining), (self._used, own)):
            column[place + 1 : size + 1] = column[place:size].copy()
            column[place] = value
        self._used[place + 1 : size + 1] = later
        self._size += 1
        return True
