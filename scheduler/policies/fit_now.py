"""Policies that never look ahead: admit while current tokens fit, in some order."""

from collections.abc import Callable, Iterable

import numpy as np

from scheduler.admission import admit_or_evict
from scheduler.batch import RunningBatch
from scheduler.policy import Decision, Policy
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker

Key = Callable[[Request, int], float]
"""What a request is ordered by, from its facts and the number of those that wait when it arrives; least first."""
Victims = Callable[[RunningBatch], Iterable[int]]
"""The running requests in the order in which they are evicted."""


class FitNow(Policy):
    """Admit in ascending key while current tokens fit; where the cache runs full, evict."""

    def __init__(
        self, worker: Worker, rng: np.random.Generator, *, key: Key | None = None, victims: Victims = reversed
    ) -> None:
        """Start with nothing waiting.

        Args:
            worker: As in `Policy`.
            rng: As in `Policy`.
            key: The order; by default that of arrival.
            victims: Who is evicted; by default the last admitted first.
        """
        super().__init__(worker, rng)
        self._key, self._victims = key, victims

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its key."""
        self.waiting.add(self._key(request, len(self.waiting)) if self._key else 0.0, index, request)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Order by what is known now, should the request be evicted."""
        request = renewal.applied(self.waiting.request(index))
        self.waiting.renew(index, self._key(request, len(self.waiting)) if self._key else 0.0, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions that fit now, or else the evictions that the next iteration needs."""
        return admit_or_evict(self, running, self._victims)


def fcfs(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return vLLM's default: admit in order of arrival, preempt the last admitted."""
    return FitNow(worker, rng)


def sjf(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return shortest predicted job first, memory as in `fcfs` (vllm-ltr, arXiv 2408.15792; SSJF, arXiv 2404.08509)."""
    return FitNow(worker, rng, key=lambda request, _: request.predicted_len())
