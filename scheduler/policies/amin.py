"""Amin: pack by a lower bound of the output length, raise it as tokens appear, evict the least bound first."""

from typing import Literal

import numpy as np

from scheduler.admission import admit_while_peak_fits, evict_while_full
from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.future_peak import FuturePeak
from scheduler.policies.least_bound import LeastBoundFirst
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker


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
        worker: Worker,
        rng: np.random.Generator,
        *,
        refinement: Literal["token", "eviction"] = "token",
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(worker, rng)
        if refinement not in ("token", "eviction"):
            raise InputError(f"refinement is {refinement!r}, must be token or eviction")
        self._bounds: dict[int, int] = {}
        self._kept_tokens: dict[int, int] = {}
        self._peak = FuturePeak(worker.kv_cache)
        self._victims = LeastBoundFirst(rng, by_token=refinement == "token")
        self._renewed: list[int] = []

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its lower bound."""
        bound = min(request.output_len_lower_bound, max(1, self.worker.kv_cache.kv_budget - request.num_prompt_tokens))
        self._bounds[index] = bound
        self.waiting.add(bound, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the evictions that the next iteration needs, then the admissions that still fit."""
        self._peak.follow(running)
        self._victims.follow(running)
        self._repack(running)
        preempted: list[int] = []
        if running.next_blocks > self.worker.kv_cache.num_blocks:
            preempted = evict_while_full(running, self.worker.kv_cache.num_blocks, self._victims.pop_all(running.clock))
            for index in preempted:
                self._requeue(index, running)
        decision = admit_while_peak_fits(self, running, preempted, self._peak, self._bounds.__getitem__)
        for index in decision.admit:
            self._victims.add(index, self._bounds[index], running.clock - self._kept_tokens.pop(index, 0))
        return decision

    def renew(self, index: int, renewal: Renewal) -> None:
        """Raise a bound; one that is higher already stays, since Amin's bounds only rise."""
        room = self.worker.kv_cache.kv_budget - self.waiting.request(index).num_prompt_tokens
        bound = min(renewal.output_len_lower_bound, self.waiting.request(index).max_new_tokens, room)
        if bound > self._bounds[index]:
            self._bounds[index] = bound
            self.waiting.move(index, bound)
            self._renewed.append(index)

    def _repack(self, running: RunningBatch) -> None:
        """Move the requests whose bounds have been raised."""
        for index in self._renewed:
            if index in running:
                generated, held = running.num_generated(index), running.num_tokens(index)
                self._peak.remove(index, running.clock)
                self._peak.add(index, running.clock, held, max(1, self._bounds[index] - generated))
                self._victims.remove(index)
                self._victims.add(index, self._bounds[index], running.clock - generated)
        self._renewed.clear()

    def _requeue(self, index: int, running: RunningBatch) -> None:
        self._peak.remove(index, running.clock)
        num_generated = running.num_generated(index)
        bound = self._bounds[index] = max(self._bounds[index], num_generated)
        if self.worker.resume:
            self._kept_tokens[index] = num_generated
        self.waiting.requeue(index, self._kept_tokens.get(index, 0), bound)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request."""
        super().end(index, status, num_generated, is_running=is_running)
        if is_running:
            self._peak.finish(index)
            self._victims.remove(index)
        del self._bounds[index]
        self._kept_tokens.pop(index, None)
