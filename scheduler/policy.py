"""What a policy is asked and told, and the pieces that policies share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.kv_cache import FuturePeak, Ints, KvCache
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do before the next iteration.

    Attributes:
        preempt: Rows of the running batch to evict, in order; they free their memory first.
        admit: Indices of waiting requests to start, in order. A request preempted now may be among them.
    """

    preempt: Sequence[int] = ()
    admit: Sequence[int] = ()


class Policy(ABC):
    """Decides which requests run. It keeps its own waiting queue and never touches an engine.

    The caller tells it of every arrival (`add`) and every end (`finish`), asks it before each iteration
    (`schedule`) and carries the decision out in full. A decision must leave a batch whose next iteration fits,
    and an idle worker must admit something.
    """

    def __init__(self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False) -> None:
        """Start with nothing waiting.

        Args:
            kv_cache: The memory to schedule.
            rng: For ties that are random.
            resume: Whether an evicted request keeps its generated tokens and only prefills them again.
        """
        self.kv_cache = kv_cache
        self.rng = rng
        self.resume = resume

    @abstractmethod
    def add(self, index: int, request: Request) -> None:
        """Take in a request that has arrived. `index` names it from now on; ties are broken by it."""

    @abstractmethod
    def schedule(self, running: RunningBatch) -> Decision:
        """Return the decision for the next iteration. The policy counts it as carried out."""

    def finish(self, index: int) -> None:  # noqa: B027 - most policies need not know
        """Forget a request that has generated its last token."""


class WaitingQueue:
    """Waiting requests in ascending order of a key; equal keys by arrival time, then index.

    It remembers the facts of a request after it is popped, until `forget`, so that it can be queued again.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, float, int, int]] = []
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: float, index: int, request: Request) -> None:
        """Queue a new request."""
        self._requests[index] = request
        heappush(self._heap, (key, request.arrival_time, index, 0))

    def requeue(self, key: float, index: int, num_generated: int) -> None:
        """Queue an evicted request again; it keeps `num_generated` tokens (0 unless it resumes)."""
        heappush(self._heap, (key, self._requests[index].arrival_time, index, num_generated))

    def head(self) -> tuple[int, Request, int]:
        """Return index, facts and kept tokens of the first request."""
        _, _, index, num_generated = self._heap[0]
        return index, self._requests[index], num_generated

    def pop(self) -> int:
        """Remove the first request and return its index."""
        return heappop(self._heap)[2]

    def forget(self, index: int) -> None:
        """Drop the facts of a finished request."""
        del self._requests[index]


class Column:
    """An integer per request index, growing with the indices."""

    def __init__(self) -> None:
        self._values = np.zeros(64, dtype=np.int64)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __setitem__(self, index: int, value: int) -> None:
        while index >= len(self._values):
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
        self._values[index] = value


def next_blocks(kv_cache: KvCache, running: RunningBatch) -> Ints:
    """Return the blocks that each running request holds during the next iteration, shape [n]."""
    return kv_cache.blocks(running.num_tokens + 1)


def rows_to_evict(kv_cache: KvCache, running: RunningBatch, order: Ints) -> list[int]:
    """Return the shortest prefix of the rows `order` without which the next iteration fits."""
    needed = next_blocks(kv_cache, running)
    excess = int(needed.sum()) - kv_cache.num_blocks
    if excess <= 0:
        return []
    count = int(np.searchsorted(np.cumsum(needed[order]), excess)) + 1
    return [int(row) for row in order[:count]]


def last_admitted_first(running: RunningBatch) -> Ints:
    """Return all rows, the last admitted first."""
    return np.arange(len(running))[::-1]


def admit_while_peak_fits(
    waiting: WaitingQueue, kv_cache: KvCache, held: Ints, remaining: Ints, estimate: Column
) -> list[int]:
    """Pop waiting requests in order while the future peak stays within the cache; return their indices.

    Stops at the first that does not fit, but never leaves the worker idle.

    Args:
        waiting: The queue; a request is taken to generate `estimate[index]` tokens in all.
        kv_cache: The memory.
        held: Tokens held by the requests that run, shape [n].
        remaining: Tokens they are taken to need still, at least 1 each, shape [n].
        estimate: Output length by request index.
    """
    admitted: list[int] = []
    peak: FuturePeak | None = None
    free = kv_cache.num_blocks - int(kv_cache.blocks(held + 1).sum())
    while len(waiting):
        index, request, num_generated = waiting.head()
        tokens = request.num_prompt_tokens + num_generated
        idle = len(held) + len(admitted) == 0
        free -= kv_cache.blocks(tokens + 1)
        if free < 0 and not idle:
            break  # the next iteration alone would not fit: no need to look further ahead
        peak = peak or FuturePeak(kv_cache, held, remaining)
        fits = peak.try_add(tokens, max(1, int(estimate[index]) - num_generated))
        if fits or idle:
            admitted.append(waiting.pop())
        if not fits:
            break
    return admitted
