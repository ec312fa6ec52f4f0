"""KV-cache memory in blocks, and the limits that engines put on admission."""

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


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine asks of an admission besides memory; an idle worker may always admit one request.

    Attributes:
        max_running: Most requests that run at once (vLLM's `max_num_seqs`), or None.
        watermark_blocks: Blocks that must stay free in the iteration after an admission (vLLM v0's watermark).
    """

    max_running: int | None = None
    watermark_blocks: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is out of its range; the message names it.
        """
        if self.max_running is not None and self.max_running < 1:
            raise InputError(f"max_running is {self.max_running}, must be >= 1")
        if self.watermark_blocks < 0:
            raise InputError(f"watermark_blocks is {self.watermark_blocks}, must be >= 0")

    def room(self, num_running: int) -> float:
        """Return how many more requests may run beside `num_running`."""
        return float("inf") if self.max_running is None else self.max_running - num_running


NO_LIMITS = Limits()
