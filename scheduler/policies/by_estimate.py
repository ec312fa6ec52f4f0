"""Policies that pack by a fixed estimate of the output length: Amax, Hindsight and Smallest Volume First."""

from collections.abc import Callable, Sequence

import numpy as np

from scheduler.admission import admit_while_peak_fits, evict_and_requeue
from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.latency_bounds import volume
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker

Estimate = Callable[[int, Request], int]
"""The output length that a request is packed by, from its index and its facts."""
Key = Callable[[Request, int], float]
"""What requests are admitted in ascending order of, from the facts and the estimate."""


class PackByEstimate(Policy):
    """Admit in ascending key while the future peak, taken with an estimate of each length, fits.

    With an estimate that is never too small nothing is ever evicted. Where one is (a wrong prediction, or an engine
    that spreads a prefill over several iterations), the last admitted is preempted.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator, *, estimate: Estimate, key: Key) -> None:
        """Start with nothing waiting; `worker` and `rng` as in `Policy`."""
        super().__init__(worker, rng)
        self._estimate, self._key = estimate, key
        self._estimates: dict[int, int] = {}
        self._renewed: list[int] = []
        self._peak = FuturePeak(worker.kv_cache)

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its key; what the cache cannot hold is never packed for."""
        self._estimates[index] = estimate = self._within_cache(index, request)
        self.waiting.add(self._key(request, estimate), index, request)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Estimate again; the estimate may fall."""
        request = renewal.applied(self.waiting.request(index))
        self._estimates[index] = estimate = self._within_cache(index, request)
        self.waiting.renew(index, self._key(request, estimate), request)
        self._renewed.append(index)

    def _within_cache(self, index: int, request: Request) -> int:
        room = self.worker.kv_cache.kv_budget - request.num_prompt_tokens
        return max(1, min(self._estimate(index, request), room))

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose future peak fits, after the evictions that the next iteration needs."""
        self._peak.follow(running)
        for index in self._renewed:
            if index in running:
                remaining = max(1, self._estimates[index] - running.num_generated(index))
                self._peak.remove(index, running.clock)
                self._peak.add(index, running.clock, running.num_tokens(index), remaining)
        self._renewed.clear()
        preempted = evict_and_requeue(self, running, reversed(running))
        for index in preempted:
            self._peak.remove(index, running.clock)
        return admit_while_peak_fits(self, running, preempted, self._peak, self._estimates.__getitem__)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request."""
        super().end(index, status, num_generated, is_running=is_running)
        if is_running:
            self._peak.finish(index)
        del self._estimates[index]


def amax(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return the pessimistic algorithm that arXiv 2508.14544 compares Amin with: pack by the upper bound.

    Where none is known it is `max_new_tokens`.
    """

    def upper_bound(_: int, request: Request) -> int:
        upper = request.output_len_upper_bound
        return request.max_new_tokens if upper is None else min(upper, request.max_new_tokens)

    return PackByEstimate(worker, rng, estimate=upper_bound, key=by_length)


def svf(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return Smallest Volume First (arXiv 2606.22327) on the predicted length."""
    return PackByEstimate(worker, rng, estimate=lambda _, request: request.predicted_len(), key=by_volume)


def hindsight(worker: Worker, rng: np.random.Generator, *, output_lens: Sequence[int]) -> Policy:
    """Return what perfect prediction would give: pack by the true length, shortest first (H-SF)."""
    return PackByEstimate(worker, rng, estimate=lambda index, _: int(output_lens[index]), key=by_length)


def hindsight_svf(worker: Worker, rng: np.random.Generator, *, output_lens: Sequence[int]) -> Policy:
    """Return what perfect prediction would give `svf`: pack by the true length, smallest volume first."""
    return PackByEstimate(worker, rng, estimate=lambda index, _: int(output_lens[index]), key=by_volume)


def by_length(_: Request, estimate: int) -> float:
    """Return the estimate: shortest first."""
    return estimate


def by_volume(request: Request, estimate: int) -> float:
    """Return the memory that a request takes over its life, in token-iterations: smallest volume first."""
    return volume(request.num_prompt_tokens, estimate)
