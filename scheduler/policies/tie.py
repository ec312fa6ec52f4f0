"""TIE: shortest job first on an expectation inflated by its tail."""

import numpy as np

from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.policies.fcfs import Fcfs
from scheduler.request import Request

TAIL_LEVEL = 0.9
BATCH_SIZE = 32


class Tie(Fcfs):
    """Tail Inflated Expectation (arXiv 2604.00499, code Hyzheng-code/TIE): E[T] + beta * CVaR_0.9[T], memory as `Fcfs`.

    T is the output length cut at max_new_tokens. beta = clip(0.1 * waiting requests / batch size, 0.1, 0.5) is taken at
    arrival; the batch size is the limit on running requests, 32 where there is none, as in the authors' code. There the
    distribution is a fitted log-t; here it is the request's forecast. Their discount by waiting time in wall-clock
    seconds is left out.
    """

    def __init__(
        self, kv_cache: KvCache, rng: np.random.Generator, *, resume: bool = False, limits: Limits = NO_LIMITS
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(kv_cache, rng, resume=resume, limits=limits)
        self._scores: dict[int, float] = {}

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its score."""
        forecast = request.forecast_or_bounds()
        beta = min(0.5, max(0.1, 0.1 * len(self.waiting) / (self.limits.max_running or BATCH_SIZE)))
        cap = request.max_new_tokens
        self._scores[index] = forecast.mean(cap) + beta * forecast.tail_mean(TAIL_LEVEL, cap)
        self.waiting.add(self._scores[index], index, request)

    def key(self, index: int) -> float:
        """Return the score that it had at arrival."""
        return self._scores[index]

    def forget(self, index: int, *, is_running: bool) -> None:
        """Drop a request that runs or else waits."""
        super().forget(index, is_running=is_running)
        del self._scores[index]
