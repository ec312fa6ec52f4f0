"""What a policy is asked and told, and the pieces that policies share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Decision:
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

    The caller tells it of every arrival (`add`) and every end (`finish`), asks it before an iteration (`schedule`) and
    carries the decision out in full. A decision must leave a batch whose next iteration fits, and an idle worker must
    admit something. A request is named by its index, a small integer given at submission; ties that are not random go
    by arrival, then index.
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

    def finish(self, index: int, output_len: int) -> None:
        """Forget a request that has generated its last token, the `output_len`-th."""
        self.waiting.forget(index)


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

    def head(self) -> tuple[int, int, int]:
        """Return the index of the first request, the tokens it will be prefilled with, and how many it generated."""
        _, _, index, num_generated = self._heap[0]
        return index, self._requests[index].num_prompt_tokens + num_generated, num_generated

    def pop(self) -> int:
        """Remove the first request and return its index."""
        return heappop(self._heap)[2]

    def request(self, index: int) -> Request:
        """Return the facts of a request that has not finished."""
        return self._requests[index]

    def forget(self, index: int) -> None:
        """Drop the facts of a finished request."""
        del self._requests[index]


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
    waiting, blocks = policy.waiting, policy.kv_cache.blocks
    free = policy.kv_cache.num_blocks - running.next_blocks
    room, reserve = policy.limits.room(len(running)), policy.limits.watermark_blocks
    admitted: list[int] = []
    while waiting:
        free -= blocks(waiting.head()[1] + 1)
        if (free < reserve or room <= len(admitted)) and (admitted or len(running)):
            break
        admitted.append(waiting.pop())
    return admitted


def admit_while_peak_fits(
    policy: Policy, running: RunningBatch, preempted: Sequence[int], peak: FuturePeak, estimates: Mapping[int, int]
) -> Decision:
    """Pop waiting requests in order while the future peak stays within the cache; return the whole decision.

    Stops at the first that does not fit, and never leaves the worker idle.

    Args:
        policy: Whose queue, memory and limits they are.
        running: The running requests, those to be preempted included.
        preempted: Requests that make room; they are in the queue again.
        peak: Profile of the other running requests; the admitted ones are added.
        estimates: Output length by request index; a request is taken to end with that token, or else with the next.
    """
    waiting, clock, blocks = policy.waiting, running.clock, policy.kv_cache.blocks
    free = policy.kv_cache.num_blocks - running.next_blocks + sum(running.blocks(index) for index in preempted)
    count = len(running) - len(preempted)
    room, reserve = policy.limits.room(count), policy.limits.watermark_blocks
    admitted: list[int] = []
    valid_for = math.inf
    while waiting:
        index, held, num_generated = waiting.head()
        remaining = max(1, estimates[index] - num_generated)
        free -= blocks(held + 1)
        if count:
            if free < reserve or room <= len(admitted):
                break  # until a request ends
            wait = peak.iterations_until_fits(clock, held, remaining)
            if wait:
                valid_for = wait
                break
        waiting.pop()
        peak.add(index, clock, held, remaining)
        admitted.append(index)
        count += 1
    return Decision(preempted, admitted, valid_for)
