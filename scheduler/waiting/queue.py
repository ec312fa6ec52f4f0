"""The queue that policies keep."""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from sortedcontainers import SortedList

from scheduler.prefixes.cache import PrefixCache
from scheduler.prefixes.shared import SharedPrefixes, whole_blocks
from scheduler.request import Request
from scheduler.waiting.overtaking import Overtaking

_Place = tuple[int, float, int, int, int, int]
"""Priority and key, number of the arrival, index, tokens to hold, generated tokens."""


class WaitingQueue:
    """Waiting requests by priority, then in ascending order of a key; of equal keys, those that were added first.

    It remembers a request after it is popped, until `remove`, so that it can be queued again.
    """

    def __init__(self, block_size: int = 1, *, shares_prefixes: bool = False) -> None:
        """Start empty; `block_size` is that of the prompts' common blocks, where they share them."""
        self.prefixes, self._block_size, self._shares_prefixes = SharedPrefixes(), block_size, shares_prefixes
        self.cached: PrefixCache | None = None
        """What the engine finds again without computing it, where the caller knows."""
        self.has_priorities = False
        """Whether any request had a priority other than 0."""
        self._queue = SortedList()
        self._places: dict[int, _Place] = {}  # the same by index
        self._overtaking: Overtaking | None = None
        self._requests: dict[int, tuple[int, float, Request]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._places)

    def limit_overtaking(self, limits: Mapping[str, int]) -> None:
        """Bound how often a request is overtaken, by class; before the first is queued. See `Overtaking`."""
        self._overtaking = Overtaking(limits)

    def is_overdue(self, index: int) -> bool:
        """Return whether a request, queued or running, has been overtaken as often as it may be."""
        return self._overtaking is not None and self._overtaking.is_overdue(index)

    def add(self, key: float, index: int, request: Request) -> None:
        """Queue a new request."""
        self.remember(index, request, key)
        self.requeue(index, 0, key)

    def remember(self, index: int, request: Request, key: float = 0.0) -> None:
        """Take in the facts of a request that `requeue` will queue."""
        self._num_added += 1
        self._requests[index] = (self._num_added, key, request)
        self.has_priorities |= request.priority != 0
        if request.prefix and self._shares_prefixes:
            names, blocks_each = request.prefix, 1  # an engine names those of its blocks that it would look for
            if tokens := request.prefix_tokens:
                names, blocks_each = whole_blocks(names, tokens, request.num_prompt_tokens, self._block_size)
            if names:
                self.prefixes.add(index, names, blocks_each)

    def requeue(self, index: int, num_generated: int, key: float | None = None) -> None:
        """Queue a known request (again), by the key that it was added with or by another.

        It keeps `num_generated` tokens: 0 unless it was evicted and resumes.
        """
        if self._shares_prefixes:
            self.prefixes.release(index)
        arrival, first_key, request = self._requests[index]
        key = first_key if key is None else key
        held = request.num_prompt_tokens + num_generated
        self._places[index] = place = (request.priority, key, arrival, index, held, num_generated)
        self._queue.add(place)
        if self._overtaking is not None:
            self._advance(self._overtaking.wait(index, arrival, request))

    def renew(self, index: int, key: float, request: Request) -> None:
        """Replace the facts of a request, and the key that it is queued by, or will be."""
        self._requests[index] = (self._requests[index][0], key, request)
        self.move(index, key)

    def move(self, index: int, key: float) -> None:
        """Give a request another key, if it is queued and not overdue."""
        place = self._places.get(index)
        if place is not None and place[1] > -inf:
            self._replace(place, key)

    def _advance(self, overdue: Sequence[int]) -> None:
        for index in overdue:
            self._replace(self._places[index], -inf)

    def _replace(self, place: _Place, key: float) -> None:
        self._queue.remove(place)
        priority, _, arrival, index, held, num_generated = place
        self._places[index] = place = (priority, key, arrival, index, held, num_generated)
        self._queue.add(place)

    def reorder(self, key: Callable[[int], float]) -> None:
        """Give all that are queued new keys; the overdue stay first."""
        for index, place in self._places.items():
            if place[1] > -inf:
                self._places[index] = (place[0], key(index), *place[2:])
        self._queue = SortedList(self._places.values())

    def head(self) -> tuple[int, int, int]:
        """Return the index of the first request, the tokens it will hold for itself, and how many it generated."""
        _, _, _, index, held, num_generated = self._queue[0]
        if self._shares_prefixes:
            held -= self._block_size * self.prefixes.num_common(index)
        return index, held, num_generated

    def head_common_blocks(self) -> int:
        """Return the blocks that the first request's admission would add to those that running ones have in common."""
        return self.prefixes.num_new(self.head()[0]) if self._shares_prefixes else 0

    def pop(self) -> int:
        """Remove the first request from the queue and return its index."""
        index: int = self._queue.pop(0)[3]
        del self._places[index]
        if self._shares_prefixes:
            self.prefixes.take(index)
        if self._overtaking is not None:
            self._advance(self._overtaking.admit(index))
        return index

    def request(self, index: int) -> Request:
        """Return the facts of a request that has not ended."""
        return self._requests[index][2]

    def remove(self, index: int, *, is_queued: bool) -> None:
        """Drop the facts of a request, and the request where it is queued."""
        if self._shares_prefixes:
            self.prefixes.remove(index)
        del self._requests[index]
        if is_queued:
            self._queue.remove(self._places.pop(index))
        if self._overtaking is not None:
            self._advance(self._overtaking.end(index))
