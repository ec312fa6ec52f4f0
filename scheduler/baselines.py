"""The policies that Amin is compared with."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.kv_cache import KvCache
from scheduler.policy import (
    Column,
    Decision,
    Policy,
    WaitingQueue,
    admit_while_peak_fits,
    last_admitted_first,
    next_blocks,
    rows_to_evict,
)
from scheduler.request import Request


class PackByEstimate(Policy):
    """Pack by a fixed estimate of the output length, smallest first; the future peak must fit.

    With an estimate that is never too small nothing is ever evicted. Where one is (a wrong upper bound, or an engine
    that spreads a prefill over several iterations), the last admitted is preempted.
    """

    def __init__(self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume)
        self._estimate = Column()
        self._waiting = WaitingQueue()

    @abstractmethod
    def estimate(self, index: int, request: Request) -> int:
        """Return the output length that the request is packed by."""

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its estimate."""
        self._estimate[index] = self.estimate(index, request)
        self._waiting.add(int(self._estimate[index]), index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose future peak fits."""
        preempt = rows_to_evict(self.kv_cache, running, last_admitted_first(running))
        for row in preempt:
            index, num_generated = int(running.indices[row]), int(running.num_generated[row])
            self._waiting.requeue(int(self._estimate[index]), index, num_generated if self.resume else 0)
        keep = slice(0, len(running) - len(preempt))
        remaining = np.maximum(1, self._estimate[running.indices[keep]] - running.num_generated[keep])
        held = running.num_tokens[keep]
        return Decision(preempt, admit_while_peak_fits(self._waiting, self.kv_cache, held, remaining, self._estimate))

    def finish(self, index: int) -> None:
        """Forget the request."""
        self._waiting.forget(index)


class Amax(PackByEstimate):
    """Pack by the upper bound: the pessimistic algorithm that arXiv 2508.14544 compares Amin with."""

    def estimate(self, index: int, request: Request) -> int:
        """Return the upper bound, `max_new_tokens` where none is known, but never more than the cache can hold."""
        upper = request.output_len_upper_bound
        room = self.kv_cache.num_blocks * self.kv_cache.block_size - request.num_prompt_tokens
        return min(request.max_new_tokens if upper is None else upper, request.max_new_tokens, room)


class Hindsight(PackByEstimate):
    """Pack by the true output length, shortest first (H-SF): what perfect prediction would give this rule."""

    def __init__(
        self, kv_cache: KvCache, rng: np.random.Generator, *, output_lens: Sequence[int], resume: bool = False
    ) -> None:
        """Start with nothing waiting.

        Args:
            kv_cache: The memory to schedule.
            rng: Unused; policies are built alike.
            output_lens: True output length by request index.
            resume: As in `Policy`.
        """
        super().__init__(kv_cache, rng, resume=resume)
        self._output_lens = output_lens

    def estimate(self, index: int, request: Request) -> int:
        """Return the true output length."""
        return int(self._output_lens[index])


class Fcfs(Policy):
    """vLLM's default: admit in order of arrival while current tokens fit, preempt the last admitted.

    No request is admitted in an iteration that preempts (vLLM v1 `Scheduler.schedule`).
    """

    def __init__(self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume)
        self._waiting = WaitingQueue()

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        self._waiting.add(0, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the preemptions that the next iteration needs, or else the admissions that fit now."""
        preempt = rows_to_evict(self.kv_cache, running, last_admitted_first(running))
        for row in preempt:
            index, num_generated = int(running.indices[row]), int(running.num_generated[row])
            self._waiting.requeue(0, index, num_generated if self.resume else 0)
        if len(preempt):
            return Decision(preempt)
        return Decision((), self._admit(self.kv_cache.num_blocks - int(next_blocks(self.kv_cache, running).sum())))

    def _admit(self, free: int) -> list[int]:
        admitted: list[int] = []
        while len(self._waiting):
            _, request, num_generated = self._waiting.head()
            free -= self.kv_cache.blocks(request.num_prompt_tokens + num_generated + 1)
            if free < 0:
                break
            admitted.append(self._waiting.pop())
        return admitted

    def finish(self, index: int) -> None:
        """Forget the request."""
        self._waiting.forget(index)


class FcfsReserve(Policy):
    """Reserve prompt + max_new_tokens at admission, in order of arrival (TGI, TensorRT-LLM's GUARANTEED_NO_EVICT)."""

    def __init__(self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume)
        self._waiting = WaitingQueue()
        self._reserved: dict[int, int] = {}
        self._free = kv_cache.num_blocks

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        self._waiting.add(0, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose whole reservation fits."""
        admitted: list[int] = []
        while len(self._waiting):
            index, request, _ = self._waiting.head()
            need = self.kv_cache.blocks(request.num_prompt_tokens + request.max_new_tokens)
            if need > self._free and (admitted or len(running)):
                break
            self._reserved[index] = need
            self._free -= need
            admitted.append(self._waiting.pop())
        return Decision((), admitted)

    def finish(self, index: int) -> None:
        """Give the reservation back."""
        self._waiting.forget(index)
        self._free += self._reserved.pop(index)
