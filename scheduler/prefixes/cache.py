"""Blocks that nobody uses and that still hold what was computed, until they are overwritten."""

from collections import Counter, OrderedDict
from collections.abc import Hashable

from scheduler.kv_cache import KvCache
from scheduler.prefixes.shared import SharedPrefixes


class PrefixCache:
    """What an engine with prefix caching finds again when it admits a request, as vLLM's block pool keeps it.

    The blocks of a request that was evicted or has ended go to the end of a queue, the last of its tokens first. Who
    needs blocks takes the empty ones, then those at the head of the queue, whose contents are lost. A request that is
    admitted finds the blocks at its beginning, up to the first that is neither in the queue nor held by another: those
    that its prompt shares with others (`SharedPrefixes`), then, where it was evicted, its own. Only full blocks are
    kept.

    Two simplifications. A shared block counts as computed from the admission of its first holder, though chunked
    prefill may take iterations. What an answer generated is found by the request alone, not by the next turn of a chat.
    """

    def __init__(self, kv_cache: KvCache, prefixes: SharedPrefixes) -> None:
        """Start with an empty cache; `prefixes` are those of all requests that are known."""
        self._size, self._prefixes = kv_cache.block_size, prefixes
        self._held: Counter[Hashable] = Counter()
        self._free: OrderedDict[Hashable, int] = OrderedDict()  # blocks by name, or by ~index those of one request
        self._num_free = 0
        self._thrown, self._lost = 0, 0
        self._computed: dict[int, int] = {}

    def expected_prefill(self, index: int, num_tokens: int, *, was_evicted: bool) -> float:
        """Return how many of its `num_tokens` a waiting request is expected to prefill.

        Of one that was evicted the share that evicted ones have had to compute again so far, since what is left of it
        now will be overwritten before it comes back; of another, what is not there now.
        """
        if was_evicted:
            return num_tokens * (1 + self._lost) / (1 + self._thrown)
        return num_tokens - min(self._found(index), max(0, num_tokens - 1) // self._size) * self._size

    def admit(self, index: int, num_tokens: int) -> tuple[int, int]:
        """Take what is found of a request out of the queue.

        Returns:
            How many of its `num_tokens` need no prefill; and, where it was evicted, how many tokens that had been
            computed before are lost.
        """
        found = self._found(index)
        for name in self._prefixes.names(index):
            self._held[name] += 1
            self._num_free -= self._free.pop(name, 0)
        self._num_free -= self._free.pop(~index, 0)
        computed = self._computed.pop(index, 0)
        lost = max(0, computed - min(found * self._size, num_tokens))
        self._thrown += computed
        self._lost += lost
        return min(found, max(0, num_tokens - 1) // self._size) * self._size, lost

    def evict(self, index: int, num_computed: int) -> None:
        """Queue the blocks of a request that waits again, of which so many tokens have been computed."""
        self._computed[index] = num_computed
        self.release(index, num_computed)

    def release(self, index: int, num_computed: int) -> None:
        """Queue the blocks of a request, of which so many tokens have been computed."""
        names, each = self._prefixes.names(index), self._prefixes.blocks_per_name
        num_blocks = num_computed // self._size
        if (own := num_blocks - len(names) * each) > 0:
            self._free[~index] = own
            self._num_free += own
        for place in range(len(names) - 1, -1, -1):
            name = names[place]
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
                if (place + 1) * each <= num_blocks:
                    self._free[name] = each
                    self._num_free += each

    def overwrite(self, num_free: int) -> None:
        """Forget what does not fit into the blocks that are free, first what was queued first."""
        while self._num_free > num_free:
            key, count = next(iter(self._free.items()))
            lost = min(count, self._num_free - num_free)
            self._num_free -= lost
            if lost == count:
                del self._free[key]
            else:
                self._free[key] = count - lost

    def _found(self, index: int) -> int:
        """Return the blocks at the beginning of a request that are there."""
        found, each = 0, self._prefixes.blocks_per_name
        for name in self._prefixes.names(index):
            if name not in self._held:
                count = self._free.get(name, 0)
                found += count
                if count < each:
                    return found
            else:
                found += each
        return found + self._free.get(~index, 0)
