"""The running requests, in order of admission, with the memory they hold now and will hold."""

from collections.abc import Iterator, Sequence

import numpy as np

from scheduler.kv_cache import Ints, KvCache


class RunningBatch:
    """The running requests. The loop writes; a policy only reads.

    A request is named by its index, a small integer given at submission. Everything is kept relative to `clock`, so
    that an iteration that gives every request a token changes no row: a request that holds h tokens and has generated
    g keeps h - clock and g - clock. Blocks are counted by the residue of h - clock modulo the block size, since a
    request takes a new block every `block_size` iterations.
    """

    def __init__(self, kv_cache: KvCache) -> None:
        """Start empty."""
        self._block_size = kv_cache.block_size
        self._num_blocks = kv_cache.num_blocks
        self._rows: dict[int, tuple[int, int]] = {}
        self._shared: dict[int, int] = {}
        self._by_residue = [0] * self._block_size
        self._offset_sum = 0
        self.clock = 0
        """Iterations carried out so far."""
        self.next_blocks = 0
        """Blocks that all running requests hold during the next iteration, `common_blocks` included."""
        self.common_blocks = 0
        """Blocks in use that are charged to no single one of them."""
        self.shared_tokens = 0
        """Tokens in such blocks, counted once for each request that reads them."""
        self.stalled: Sequence[int] = ()
        """Requests that the last iteration gave no token: in prefill, or left out of a full iteration."""

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        """Yield request indices, first admitted first."""
        return iter(self._rows)

    def __reversed__(self) -> Iterator[int]:
        """Yield request indices, last admitted first."""
        return reversed(self._rows)

    def __contains__(self, index: int) -> bool:
        return index in self._rows

    def num_tokens(self, index: int) -> int:
        """Return the tokens that a request holds for itself in the KV cache: prompt and generated."""
        return self._rows[index][0] + self.clock

    def num_shared(self, index: int) -> int:
        """Return the tokens that it begins with and holds together with others, not among `num_tokens`."""
        return self._shared.get(index, 0)

    def num_generated(self, index: int) -> int:
        """Return the tokens that a request has generated."""
        return self._rows[index][1] + self.clock

    def blocks(self, index: int) -> int:
        """Return the blocks that a request holds during the next iteration."""
        return -(-(self._rows[index][0] + self.clock + 1) // self._block_size)

    @property
    def current_blocks(self) -> int:
        """Blocks that all running requests hold now."""
        return self.next_blocks - self._by_residue[-self.clock % self._block_size]

    @property
    def total_tokens(self) -> int:
        """Tokens that all running requests hold for themselves now."""
        return self._offset_sum + len(self._rows) * self.clock

    def columns(self) -> tuple[Ints, Ints, Ints]:
        """Return indices, tokens held and tokens generated, first admitted first, each of shape [n]."""
        indices = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
        offsets = np.array(list(self._rows.values()), dtype=np.int64).reshape(-1, 2) + self.clock
        return indices, offsets[:, 0], offsets[:, 1]

    def append(self, index: int, num_prompt_tokens: int, num_generated: int, num_shared: int = 0) -> None:
        """Add a request as the last admitted; `num_shared` further prompt tokens are in common blocks."""
        clock, size = self.clock, self._block_size
        if num_shared:
            self._shared[index] = num_shared
            self.shared_tokens += num_shared
        offset = num_prompt_tokens + num_generated - clock
        self._rows[index] = (offset, num_generated - clock)
        self._by_residue[offset % size] += 1
        self._offset_sum += offset
        self.next_blocks -= -(offset + clock + 1) // size

    def hold_common(self, num_blocks: int) -> None:
        """Set how many blocks are in use that are charged to no single request."""
        self.next_blocks += num_blocks - self.common_blocks
        self.common_blocks = num_blocks

    def remove(self, index: int) -> None:
        """Take out a request."""
        size, offset = self._block_size, self._rows.pop(index)[0]
        self._by_residue[offset % size] -= 1
        self._offset_sum -= offset
        self.next_blocks += -(offset + self.clock + 1) // size
        if self._shared:
            self.shared_tokens -= self._shared.pop(index, 0)
        if index in self.stalled:
            self.stalled = [other for other in self.stalled if other != index]

    def advance(self, num_iterations: int, stalled: Sequence[int] = ()) -> int:
        """Let iterations pass; return the blocks in use during the last of them.

        Args:
            num_iterations: How many, at least 1, each giving a token to every request but those `stalled`.
            stalled: Only with a single iteration.
        """
        clock, size, blocks = self.clock, self._block_size, self.next_blocks
        if size == 1:
            blocks += (num_iterations - 1) * len(self._rows)
            self.next_blocks = blocks + len(self._rows)
        else:
            periods, rest = divmod(num_iterations - 1, size)
            if periods:
                blocks += periods * len(self._rows)
            for step in range(clock + 1, clock + rest + 1):
                blocks += self._by_residue[-step % size]
            self.next_blocks = blocks + self._by_residue[-(clock + num_iterations) % size]
        self.clock = clock + num_iterations
        self.stalled = stalled
        for index in stalled:
            self._hold_back(index)
        return blocks

    def _hold_back(self, index: int) -> None:
        size, (offset, start) = self._block_size, self._rows[index]
        self._rows[index] = (offset - 1, start - 1)
        self._by_residue[offset % size] -= 1
        self._by_residue[(offset - 1) % size] += 1
        self._offset_sum -= 1
        self.next_blocks += -(offset + self.clock + 1) // size - -(offset + self.clock) // size

    def num_iterations_that_fit(self) -> float:
        """Return for how many coming iterations the cache suffices if nothing ends; inf for an empty batch."""
        free = self._num_blocks - self.next_blocks
        count = len(self._rows)
        if free < 0:
            return 0
        if count == 0:
            return float("inf")
        if self._block_size == 1:
            return 1 + free // count
        size = self._block_size
        periods, free = divmod(free, count)
        step = self.clock + 1
        while free >= self._by_residue[-step % size]:
            free -= self._by_residue[-step % size]
            step += 1
        return periods * size + step - self.clock
