"""What a policy is asked and told, and the pieces that policies share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.request import Request


class Decision(NamedTuple):  # made by the million: a frozen dataclass takes three times as long to build
    """What to do before the next iteration.

    Attributes:
        preempt: Running requests to evict, in order; they free their memory first.
        admit: Waiting requests to start, in order. A request preempted now may be among them.
        valid_for: Iterations for which the policy would decide nothing more, unless a request arrives or ends or the
            cache runs full before. A simulator need not ask again until then; 1 is always right.
    """

    preempt: Sequence[int] = ()
    admit: Sequence[int] = ()
    valid_for: float = 1


class Policy(ABC):
    """Decides which requests run. It keeps its own waiting queue and never touches an engine.

    The caller tells it of every arrival (`add`) and every end (`finish`, or `forget` where there is no answer), asks it
    before an iteration (`schedule`) and carries the decision out in full. A decision must leave a batch whose next
    iteration fits, and an idle worker must admit something. A request is named by its index, a small integer given at
    submission; ties that are not random go by arrival, then index.
    """

    def __init__(
        self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False, limits: Limits = NO_LIMITS
    ) -> None:
        """Start with nothing waiting.

        Args:
            kv_cache: The memory to schedule.
            rng: For what is random, ties above all.
            resume: Whether an evicted request keeps its generated tokens and only prefills them again.
            limits: What the engine asks of an admission besides memory.
        """
        self.kv_cache = kv_cache
        self.rng = rng
        self.resume = resume
        self.limits = limits
        self.waiting = WaitingQueue()

    @abstractmethod
    def add(self, index: int, request: Request) -> None:
        """Take in a request that has arrived."""

    @abstractmethod
    def schedule(self, running: RunningBatch) -> Decision:
        """Return the decision for the next iteration. The policy counts it as carried out."""

    def finish(self, index: int, output_len: int, *, is_running: bool = True) -> None:
        """Learn from a request that has generated its last token, the `output_len`-th, and forget it."""
        self.forget(index, is_running=is_running)

    def forget(self, index: int, *, is_running: bool) -> None:
        """Drop a request that runs or else waits; one that was cancelled ends so, being no answer to learn from."""
        self.waiting.forget(index, is_queued=not is_running)


class WaitingQueue:
    """Waiting requests in ascending order of a key; of equal keys, those that were added first.

    It remembers the facts of a request after it is popped, until `forget`, so that it can be queued again.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, int, int]] = []
        self._forgotten: set[int] = set()  # in the heap, until they are its head or half of it
        self._requests: dict[int, tuple[int, Request]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._heap) - len(self._forgotten)

    def add(self, key: float, index: int, request: Request) -> None:
        """Queue a new request."""
        self.remember(index, request)
        self.requeue(key, index, 0)

    def remember(self, index: int, request: Request) -> None:
        """Take in the facts of a request that `requeue` will queue."""
        self._num_added += 1
        self._requests[index] = (self._num_added, request)

    def requeue(self, key: float, index: int, num_generated: int) -> None:
        """Queue a known request (again); it keeps `num_generated` tokens (0 unless it was evicted and resumes)."""
        place, request = self._requests[index]
        heappush(self._heap, (key, place, index, request.num_prompt_tokens + num_generated, num_generated))

    def head(self) -> tuple[int, int, int]:
        """Return the index of the first request, the tokens it will be prefilled with, and how many it generated."""
        while self._forgotten and self._heap[0][2] in self._forgotten:
            self._forgotten.remove(heappop(self._heap)[2])
        return self._heap[0][2:]

    def pop(self) -> int:
        """Remove the first request and return its index."""
        self.head()
        return heappop(self._heap)[2]

    def request(self, index: int) -> Request:
        """Return the facts of a request that has not finished."""
        return self._requests[index][1]

    def forget(self, index: int, *, is_queued: bool) -> None:
        """Drop the facts of a request, and the request where it is queued."""
        del self._requests[index]
        if is_queued:
            self._forgotten.add(index)
            if 2 * len(self._forgotten) > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2] not in self._forgotten]
                heapify(self._heap)
                self._forgotten.clear()


def evict_while_full(running: RunningBatch, num_blocks: int, order: Iterable[int]) -> list[int]:
    """Return the shortest prefix of `order` without which the next iteration fits `num_blocks`."""
    excess = running.next_blocks - num_blocks
    if excess <= 0:
        return []
    evicted = []
    for index in order:
        evicted.append(index)
        excess -= running.blocks(index)
        if excess <= 0:
            break
    return evicted


def admit_while_current_fits(policy: Policy, running: RunningBatch) -> list[int]:
    """Pop waiting requests in order while the next iteration fits; return their indices.

    Stops at the first that does not fit, and never leaves the worker idle.
    """
    waiting, size = policy.waiting, policy.kv_cache.block_size
    admitted: list[int] = []
    if not waiting:
        return admitted
    free = policy.kv_cache.num_blocks - running.next_blocks
    room, reserve = policy.limits.room(len(running)), policy.limits.watermark_blocks
    while waiting:
        free += -(waiting.head()[1] + 1) // size
        if (free < reserve or room <= len(admitted)) and (admitted or len(running)):
            break
        admitted.append(waiting.pop())
    return admitted


def admit_while_peak_fits(
    policy: Policy,
    running: RunningBatch,
    preempted: Sequence[int],
    peak: FuturePeak,
    estimate: Callable[[int], int],
    reserve: Callable[[int, Sequence[int]], int] | None = None,
) -> Decision:
    """Pop waiting requests in order while the future peak stays within the cache; return the whole decision.

    Stops at the first that does not fit, and never leaves the worker idle.

    Args:
        policy: Whose queue, memory and limits they are.
        running: The running requests, those to be preempted included.
        preempted: Requests that make room; they are in the queue again.
        peak: Profile of the other running requests; the admitted ones are added.
        estimate: Output length of a request; it is taken to end with that token, or else with the next.
        reserve: Blocks that the admission of a request, after others in this decision, leaves free in the next
            iteration. Default: the watermark.
    """
    waiting, clock, size = policy.waiting, running.clock, policy.kv_cache.block_size
    admitted: list[int] = []
    valid_for = math.inf
    if not waiting:
        return Decision((), (), valid_for)
    free = policy.kv_cache.num_blocks - running.next_blocks
    for index in preempted:
        free += running.blocks(index)
    count = len(running) - len(preempted)
    room, watermark = policy.limits.room(count), policy.limits.watermark_blocks
    while waiting:
        index, held, num_generated = waiting.head()
        remaining = max(1, estimate(index) - num_generated)
        free += -(held + 1) // size
        if count:
            if free < (reserve(index, admitted) if reserve else watermark) or room <= len(admitted):
                break  # until a request ends
            wait = peak.try_add(index, clock, held, remaining)
            if wait:
                valid_for = wait
                break
        else:
            peak.add(index, clock, held, remaining)
        waiting.pop()
        admitted.append(index)
        count += 1
    return Decision(preempted, admitted, valid_for)
