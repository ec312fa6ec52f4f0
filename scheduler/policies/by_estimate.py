"""Policies that pack by a fixed estimate of the output length: Amax, Hindsight and Smallest Volume First."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.policy import Decision, Policy, admit_while_peak_fits, evict_while_full
from scheduler.request import Request


class PackByEstimate(Policy):
    """Admit in ascending key while the future peak, taken with an estimate of each length, fits.

    With an estimate that is never too small nothing is ever evicted. Where one is (a wrong prediction, or an engine
    that spreads a prefill over several iterations), the last admitted is preempted.
    """

    def __init__(
        self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False, limits: Limits = NO_LIMITS
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume, limits=limits)
        self._estimates: dict[int, int] = {}
        self._peak = FuturePeak(kv_cache)

    @abstractmethod
    def estimate(self, index: int, request: Request) -> int:
        """Return the output length that the request is packed by."""

    def key(self, request: Request, estimate: int) -> float:
        """Return what requests are admitted in ascending order of: the estimate, shortest first."""
        return estimate

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its key; what the cache cannot hold is never packed for."""
        estimate = min(self.estimate(index, request), self.kv_cache.kv_budget - request.num_prompt_tokens)
        self._estimates[index] = max(1, estimate)
        self.waiting.add(self.key(request, self._estimates[index]), index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions whose future peak fits, after the preemptions that the next iteration needs."""
        self._peak.follow(running)
        preempted = evict_while_full(running, self.kv_cache.num_blocks, reversed(running))
        for index in preempted:
            self._peak.remove(index, running.clock)
            key = self.key(self.waiting.request(index), self._estimates[index])
            self.waiting.requeue(key, index, running.num_generated(index) if self.resume else 0)
        return admit_while_peak_fits(self, running, preempted, self._peak, self._estimates.__getitem__)

    def forget(self, index: int, *, is_running: bool) -> None:
        """Drop a request that runs or else waits."""
        super().forget(index, is_running=is_running)
        if is_running:
            self._peak.finish(index)
        del self._estimates[index]


class Amax(PackByEstimate):
    """Pack by the upper bound: the pessimistic algorithm that arXiv 2508.14544 compares Amin with."""

    def estimate(self, index: int, request: Request) -> int:
        """Return the upper bound, or `max_new_tokens` where none is known."""
        upper = request.output_len_upper_bound
        return min(request.max_new_tokens if upper is None else upper, request.max_new_tokens)


class Svf(PackByEstimate):
    """Smallest Volume First (arXiv 2606.22327) on the predicted length."""

    def estimate(self, index: int, request: Request) -> int:
        """Return the central prediction."""
        return request.predicted_len()

    def key(self, request: Request, estimate: int) -> float:
        """Return the memory that it takes over its life, in token-iterations."""
        return volume(request.num_prompt_tokens, estimate)


class Hindsight(PackByEstimate):
    """Pack by the true output length, shortest first (H-SF): what perfect prediction would give this rule."""

    def __init__(
        self,
        kv_cache: KvCache,
        rng: np.random.Generator,
        *,
        output_lens: Sequence[int],
        resume: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Start with nothing waiting.

        Args:
            kv_cache: The memory to schedule.
            rng: Unused; policies are built alike.
            output_lens: True output length by request index.
            resume: As in `Policy`.
            limits: As in `Policy`.
        """
        super().__init__(kv_cache, rng, resume=resume, limits=limits)
        self._output_lens = output_lens

    def estimate(self, index: int, request: Request) -> int:
        """Return the true output length."""
        return int(self._output_lens[index])


class HindsightSvf(Hindsight):
    """Pack by the true output length, smallest volume first: what perfect prediction would give `Svf`."""

    def key(self, request: Request, estimate: int) -> float:
        """Return the memory that it takes over its life, in token-iterations."""
        return volume(request.num_prompt_tokens, estimate)


def volume(num_prompt_tokens: int, output_len: float) -> float:
    """Return s*o + o(o+1)/2: the token-iterations of memory that a request takes if it is never evicted."""
    return num_prompt_tokens * output_len + output_len * (output_len + 1) / 2
