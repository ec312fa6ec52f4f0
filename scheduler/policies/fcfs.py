"""Policies that never look ahead: first come first served, and orders on top of it."""

import math

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.policy import Decision, Policy, admit_while_current_fits, evict_while_full
from scheduler.request import Request


class Fcfs(Policy):
    """vLLM's default: admit in order of arrival while current tokens fit, preempt the last admitted.

    No request is admitted in an iteration that preempts (vLLM v1 `Scheduler.schedule`).
    """

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        self.waiting.add(0.0, index, request)

    def key(self, index: int) -> float:
        """Return what an evicted request is queued by."""
        return 0.0

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the preemptions that the next iteration needs, or else the admissions that fit now."""
        if running.next_blocks <= self.kv_cache.num_blocks:
            return Decision((), admit_while_current_fits(self, running), math.inf)
        preempted = evict_while_full(running, self.kv_cache.num_blocks, reversed(running))
        for index in preempted:
            self.waiting.requeue(self.key(index), index, running.num_generated(index) if self.resume else 0)
        return Decision(preempted)


class Sjf(Fcfs):
    """Shortest predicted job first, memory as in `Fcfs` (vllm-ltr, arXiv 2408.15792; SSJF, arXiv 2404.08509)."""

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its predicted output length."""
        self.waiting.add(request.predicted_len(), index, request)

    def key(self, index: int) -> float:
        """Return the predicted output length."""
        return self.waiting.request(index).predicted_len()


class FcfsReserve(Policy):
    """Reserve prompt + max_new_tokens at admission, in order of arrival (TGI, TensorRT-LLM's GUARANTEED_NO_EVICT)."""

    def __init__(
        self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False, limits: Limits = NO_LIMITS
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume, limits=limits)
        self._reserved: dict[int, int] = {}
        self._free = kv_cache.num_blocks

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        self.waiting.add(0, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose whole reservation fits."""
        admitted: list[int] = []
        room = self.limits.room(len(running))
        while self.waiting:
            index, held, _ = self.waiting.head()
            need = self.kv_cache.blocks(held + self.waiting.request(index).max_new_tokens)
            full = self._free - need < self.limits.watermark_blocks or room <= len(admitted)
            if full and (admitted or len(running)):
                break
            self._reserved[index] = need
            self._free -= need
            admitted.append(self.waiting.pop())
        return Decision((), admitted, math.inf)

    def forget(self, index: int, *, is_running: bool) -> None:
        """Drop a request that runs or else waits; give its reservation back."""
        super().forget(index, is_running=is_running)
        self._free += self._reserved.pop(index, 0)
