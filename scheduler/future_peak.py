"""The memory that a set of requests will hold in each coming iteration, if each ends where its estimate says."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.kv_cache import Ints, KvCache

MANY = 40
"""Changes that are quicker made together than one by one."""


class FuturePeak:
    """Blocks in use by coming iteration; a request is taken to hold one more token in each, and to end by estimate.

    A request fits next to the others if no iteration in which it runs needs more blocks than the cache has. This is
    algorithm MC-SF (arXiv 2502.07115). MC-SF checks at the completions only, which is the same: between two
    completions every request only grows. Adding, removing and checking a request each cost one vector operation over
    its remaining tokens, however many run.

    A request that has outlived its estimate is in no coming iteration; the caller counts what it holds in the next one.
    Where it will get a new estimate, the caller may say so (`outlive`) and wait with it: most requests fit even if all
    of those run on and on. So estimates are renewed for many requests together, and never for those that end before.
    """

    def __init__(self, kv_cache: KvCache) -> None:
        """Start with no request."""
        self._kv_cache, self._num_blocks = kv_cache, kv_cache.num_blocks
        self._origin = 0
        self._used = np.zeros(1024, dtype=np.int64)
        self._blocks = self._table(1024)
        self._ahead = np.arange(1024, dtype=np.int64)
        self._entries: dict[int, tuple[int, int]] = {}
        self._finished: list[int] = []
        self._witness = -1
        self._outlived: dict[int, int] = {}
        self._outlived_offsets = 0

    def _table(self, size: int) -> Ints:
        """Return the blocks of 0, 1, ... `size` - 1 tokens."""
        return self._kv_cache.blocks(np.arange(size, dtype=np.int64))

    def finish(self, index: int) -> None:
        """Let a request be taken out by the next `follow`."""
        self._finished.append(index)

    def follow(self, running: RunningBatch) -> None:
        """Take out what has finished; move a request that got no token in the last iteration one iteration later.

        The blocks that the running requests have in common are taken to stay in use.
        """
        self._num_blocks = self._kv_cache.num_blocks - running.common_blocks
        if self._finished:
            self._change(running.clock, [self._take(index) for index in self._finished], -1)
            self._finished.clear()
        for index in running.stalled:
            offset, end = self._entries[index]
            self.remove(index, running.clock)
            self._entries[index] = (offset - 1, end)
            if end >= running.clock:
                self.add(index, running.clock, offset - 1 + running.clock, end + 1 - running.clock)

    def add(self, index: int, clock: int, held: int, remaining: int, common: int = 0) -> None:
        """Add a request that holds `held` tokens after `clock` iterations and generates `remaining` >= 1 more.

        It also brings in `common` blocks that are not charged to it.
        """
        self._num_blocks -= common
        self._put(index, clock, held, clock + remaining)

    @property
    def outlived(self) -> Iterable[int]:
        """The requests that wait for a new estimate."""
        return self._outlived

    def outlive(self, indices: Iterable[int]) -> None:
        """Let requests that were to end with the last iteration or before wait for a new estimate (`extend`)."""
        for index in indices:
            offset = self._entries[index][0]
            self._outlived[index] = offset
            self._outlived_offsets += offset

    def extend(self, clock: int, ends: Mapping[int, int]) -> None:
        """Let all that wait for a new estimate end with iteration `ends[index]` > `clock`."""
        entries, spans = self._entries, []
        for index, offset in self._outlived.items():
            entries[index] = span = offset, ends[index]
            spans.append(span)
        self._outlived.clear()
        self._outlived_offsets = 0
        self._change(clock, spans, 1)

    def _take(self, index: int) -> tuple[int, int]:
        """Forget a request; return its offset and end."""
        self._outlived_offsets -= self._outlived.pop(index, 0)
        return self._entries.pop(index)

    def _change(self, clock: int, spans: Sequence[tuple[int, int]], sign: int) -> None:
        """Add or take out, after `clock` iterations, what requests of these offsets and ends hold in coming ones."""
        if len(spans) >= MANY:
            self._change_together(clock, spans, sign)
            return
        for offset, end in spans:
            if end > clock:
                first, last = offset + clock + 1, offset + end + 1
                if end - self._origin >= len(self._used) or last > len(self._blocks):
                    self._reserve(clock, end, last)
                used = self._used[clock + 1 - self._origin : end + 1 - self._origin]
                used += sign * self._blocks[first:last]

    def _change_together(self, clock: int, spans: Sequence[tuple[int, int]], sign: int) -> None:
        """As `_change`, from where requests take a new block and where they end: a few numbers for each.

        A request whose last block of the next iteration holds `filled` more tokens than one takes a new one after
        `size - filled` iterations and then after each `size`.
        """
        size = self._kv_cache.block_size
        offsets, ends = np.fromiter(chain.from_iterable(spans), np.int64, 2 * len(spans)).reshape(-1, 2).T
        lasting = np.maximum(ends - clock, 0)
        most = int(lasting.max())
        if clock + most - self._origin >= len(self._used):
            self._reserve(clock, clock + most, 0)
        blocks, filled = np.divmod(offsets + (clock + size), size)
        blocks[lasting == 0] = 0
        num_steps = np.maximum(filled + lasting - 1, 0) // size
        before = num_steps.cumsum() - num_steps
        steps = size * np.arange(int(num_steps.sum())) + np.repeat(size - filled - size * before, num_steps)
        change = np.bincount(steps, minlength=most + 1)
        change -= np.bincount(lasting, blocks + num_steps, most + 1).astype(np.int64)
        change[0] += blocks.sum()
        used = self._used[clock + 1 - self._origin : clock + 1 - self._origin + most]
        used += sign * change[:-1].cumsum()

    def move(self, index: int, clock: int, held: int, end: int) -> None:
        """Let a request that holds `held` tokens after `clock` iterations end with iteration `end` > `clock`."""
        self.remove(index, clock)
        self._put(index, clock, held, end)

    def _put(self, index: int, clock: int, held: int, end: int) -> None:
        last = held + end - clock
        if end - self._origin >= len(self._used) or last >= len(self._blocks):
            self._reserve(clock, end, last)
        self._entries[index] = (held - clock, end)
        used = self._used[clock + 1 - self._origin : end + 1 - self._origin]
        used += self._blocks[held + 1 : last + 1]

    def remove(self, index: int, clock: int) -> None:
        """Take out a request, after `clock` iterations."""
        offset, end = self._take(index)
        if end > clock:
            used = self._used[clock + 1 - self._origin : end + 1 - self._origin]
            used -= self._blocks[offset + clock + 1 : offset + end + 1]

    def try_add(self, index: int, clock: int, held: int, remaining: int, common: int = 0) -> int:
        """Add a request if it fits next to the others and return 0, or else return how long it surely will not fit.

        -1 if that depends on new estimates: it would not fit if all the outlived ran for as long as it does.

        As time passes and nothing is added or removed, a waiting request needs less in a given iteration, since it
        would start later: the iteration that is too full now stays so until the request has shrunk by the excess, or
        until that iteration is over. That one is remembered and looked at first the next time.
        """
        end = clock + remaining
        if end - self._origin >= len(self._used) or held + remaining >= len(self._blocks):
            self._reserve(clock, end, held + remaining)
        num_blocks, first = self._num_blocks - common, clock + 1 - self._origin
        place = self._witness - clock - 1
        if not (0 <= place < remaining and self._used[first + place] + self._blocks[held + 1 + place] > num_blocks):
            needed = self._used[first : first + remaining] + self._blocks[held + 1 : held + remaining + 1]
            most = needed + self._most_of_outlived(clock, remaining) if self._outlived else needed
            place = int(most.argmax())
            if most[place] > num_blocks and self._outlived:
                return -1
            if most[place] <= num_blocks:
                self._used[first : first + remaining] = needed
                self._entries[index] = (held - clock, end)
                self._num_blocks = num_blocks
                return 0
            self._witness = clock + 1 + place
        free_tokens = (num_blocks - int(self._used[first + place])) * self._kv_cache.block_size
        return min(place + 1, held + place + 1 - free_tokens)

    def _most_of_outlived(self, clock: int, num_iterations: int) -> Ints:
        """Return at least the blocks that those without a new estimate hold in coming iterations, if none ends."""
        size, count = self._kv_cache.block_size, len(self._outlived)
        tokens = self._ahead[:num_iterations] * count
        tokens += self._outlived_offsets + count * (clock + size)  # each of them fills its last block, or less of it
        return tokens // size

    def _reserve(self, clock: int, end: int, num_tokens: int) -> None:
        """Make room for iterations up to `end` and requests of `num_tokens`; drop the iterations up to `clock`."""
        if end - self._origin >= len(self._used):
            ahead = self._used[clock - self._origin :]
            self._used = np.zeros(max(len(self._used), 2 * (end - clock + len(ahead))), dtype=np.int64)
            self._used[: len(ahead)] = ahead
            self._origin = clock
        if num_tokens >= len(self._blocks):
            self._blocks = self._table(2 * num_tokens)
            self._ahead = np.arange(2 * num_tokens, dtype=np.int64)
