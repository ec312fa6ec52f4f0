"""KV-cache memory in blocks."""

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

    @property
    def kv_budget(self) -> int:
        """The tokens that it holds."""
        return self.num_blocks * self.block_size

    @overload
    def blocks(self, num_tokens: int) -> int: ...
    @overload
    def blocks(self, num_tokens: Ints) -> Ints: ...
    def blocks(self, num_tokens: int | Ints) -> int | Ints:
        """Return the blocks that hold `num_tokens` tokens, element by element."""
        return -(-num_tokens // self.block_size)
