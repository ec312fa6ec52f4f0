"""Amin: pack by a lower bound of the output length, raise it as tokens appear, evict the least bound first."""

from typing import Literal

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.kv_cache import KvCache
from scheduler.policy import Column, Decision, Policy, WaitingQueue, admit_while_peak_fits, rows_to_evict
from scheduler.request import Request


class Amin(Policy):
    """Algorithm Amin of arXiv 2508.14544.

    1. bound_i <- lower bound of request i.
    2. Project the running set one iteration ahead. While it exceeds the cache, evict in ascending bound, ties
       random; an evicted request waits again with bound_i <- max(bound_i, generated_i).
    3. Admit waiting requests in ascending bound while the future peak, taken with the bounds, fits.

    The paper's text leaves open when a running request that outlives its bound raises it: as each token appears
    (`refinement="token"`) or at its eviction only (`"eviction"`); docs/decisions.md has what each does.
    """

    def __init__(
        self,
        kv_cache: KvCache,
        rng: np.random.Generator,
        *,
        resume: bool = False,
        refinement: Literal["token", "eviction"] = "token",
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume)
        self._refine_by_token = refinement == "token"
        self._bound = Column()
        self._waiting = WaitingQueue()

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its lower bound."""
        self._bound[index] = request.output_len_lower_bound
        self._waiting.add(request.output_len_lower_bound, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the evictions that the next iteration needs, then the admissions that still fit."""
        bound = self._bound[running.indices]
        current = np.maximum(bound, running.num_generated) if self._refine_by_token else bound
        order = np.lexsort((self.rng.random(len(running)), current))
        preempt = rows_to_evict(self.kv_cache, running, order)
        for row in preempt:
            self._requeue(int(running.indices[row]), int(running.num_generated[row]))
        kept = np.delete(np.arange(len(running)), preempt)
        remaining = np.maximum(1, bound[kept] - running.num_generated[kept])
        held = running.num_tokens[kept]
        return Decision(preempt, admit_while_peak_fits(self._waiting, self.kv_cache, held, remaining, self._bound))

    def _requeue(self, index: int, num_generated: int) -> None:
        bound = max(int(self._bound[index]), num_generated)
        self._bound[index] = bound
        self._waiting.requeue(bound, index, num_generated if self.resume else 0)

    def finish(self, index: int) -> None:
        """Forget the request."""
        self._waiting.forget(index)
