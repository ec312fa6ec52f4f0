"""Policies that preempt a running request for a waiting one of lower rank."""

import math
from collections.abc import Callable

import numpy as np

from scheduler.admission import evict_while_full
from scheduler.batch import RunningBatch
from scheduler.policy import Decision, Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

Rank = Callable[[int, int, int], float]
"""What the least of is served, from the index of a request, its generated tokens, and those lost by evictions."""


class PreemptByRank(Policy):
    """Serve the requests of the least rank while current tokens fit.

    Where the first that waits does not fit, running ones of a higher rank are evicted for it, the highest first and of
    equal ones the last admitted, if it fits without them. Where the cache runs full, the same go.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator, *, rank: Rank, ranks_rise: bool) -> None:
        """Start with nothing waiting.

        Args:
            worker: As in `Policy`.
            rng: As in `Policy`.
            rank: Of a request.
            ranks_rise: Whether the rank of a running request may rise, so that every iteration may decide.
        """
        super().__init__(worker, rng)
        self._rank, self._ranks_rise = rank, ranks_rise
        self._lost: dict[int, int] = {}

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its rank."""
        self._lost[index] = 0
        self.waiting.add(self._rank(index, 0, 0), index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the evictions that the next iteration and the requests of lower rank need, and the admissions."""
        victims = [(*self._order(i, running.num_generated(i)), i) for i in running]
        victims.sort(key=lambda victim: victim[:2])  # the next to be evicted is the last
        order = [index for *_, index in reversed(victims)]
        preempted = evict_while_full(running, self.worker.kv_cache.num_blocks, order)
        for index in preempted:
            self._requeue(index, running)
        admitted = self._admit(running, preempted, victims[: len(victims) - len(preempted)])
        return Decision(preempted, admitted, 1 if self.waiting and self._ranks_rise else math.inf)

    def _order(self, index: int, num_generated: int) -> tuple[int, float]:
        if self.waiting.is_overdue(index):  # nobody that it waited for may take its place again
            return self.waiting.request(index).priority, -math.inf
        return self.waiting.request(index).priority, self._rank(index, num_generated, self._lost[index])

    def _admit(self, running: RunningBatch, preempted: list[int], victims: list[tuple[int, float, int]]) -> list[int]:
        """Pop waiting requests in order, and add to `preempted` those of `victims` that make room for them."""
        worker, admitted = self.worker, list[int]()
        free = worker.kv_cache.num_blocks - running.next_blocks + sum(running.blocks(index) for index in preempted)
        count = len(running) - len(preempted)
        while self.waiting:
            index, held, num_generated = self.waiting.head()
            need = worker.kv_cache.blocks(held + 1) + self.waiting.head_common_blocks()
            mine, gone, gained = self._order(index, num_generated), 0, 0
            while count and (free + gained - need < worker.watermark_blocks or worker.free_slots(count - gone) < 1):
                if gone == len(victims) or victims[-1 - gone][:2] <= mine:
                    return admitted
                gone += 1
                gained += running.blocks(victims[-gone][2])
                if gone == count:
                    break
            for *_, victim in reversed(victims[len(victims) - gone :]):
                preempted.append(victim)
                self._requeue(victim, running)
            del victims[len(victims) - gone :]
            admitted.append(self.waiting.pop())
            free, count = free + gained - need, count - gone + 1
        return admitted

    def _requeue(self, index: int, running: RunningBatch) -> None:
        generated = running.num_generated(index)
        kept = generated if self.worker.resume else 0
        self._lost[index] += generated - kept
        self.waiting.requeue(index, kept, self._rank(index, kept, self._lost[index]))

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request."""
        super().end(index, status, num_generated, is_running=is_running)
        del self._lost[index]
