"""First come first served with room reserved for the longest answer."""

import math

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.policy import Decision, Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker


class FcfsReserve(Policy):
    """Reserve prompt + max_new_tokens at admission, in order of arrival (TGI, TensorRT-LLM's GUARANTEED_NO_EVICT)."""

    def __init__(self, worker: Worker, rng: np.random.Generator) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(worker, rng)
        self._reserved: dict[int, int] = {}
        self._free = worker.kv_cache.num_blocks

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        self.waiting.add(0, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose whole reservation fits."""
        admitted: list[int] = []
        slots = self.worker.free_slots(len(running))
        common = running.common_blocks
        while self.waiting:
            index, held, _ = self.waiting.head()
            common += self.waiting.head_common_blocks()
            need = self.worker.kv_cache.blocks(held + self.waiting.request(index).max_new_tokens)
            full = self._free - common - need < self.worker.watermark_blocks or slots <= len(admitted)
            if full and (admitted or len(running)):
                break
            self._reserved[index] = need
            self._free -= need
            admitted.append(self.waiting.pop())
        return Decision((), admitted, math.inf)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request, and of its reservation."""
        super().end(index, status, num_generated, is_running=is_running)
        self._free += self._reserved.pop(index, 0)
