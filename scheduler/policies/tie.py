"""TIE: shortest job first on an expectation inflated by its tail."""

import numpy as np

from scheduler.policies.fit_now import FitNow
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.worker import Worker

TAIL_LEVEL = 0.9
BATCH_SIZE = 32


def tail_inflated(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return Tail Inflated Expectation (arXiv 2604.00499, code Hyzheng-code/TIE), memory as in `fcfs`.

    The order is E[T] + beta * CVaR_0.9[T], T the output length cut at max_new_tokens, with beta taken at arrival:
    clip(0.1 * waiting requests / batch size, 0.1, 0.5). The batch size is the limit on running requests, 32 where there
    is none, as in the authors' code. There the distribution is a fitted log-t; here it is the request's forecast. Their
    discount by waiting time in wall-clock seconds is left out.
    """
    batch_size = worker.max_running or BATCH_SIZE

    def score(request: Request, num_waiting: int) -> float:
        forecast, cap = request.forecast_or_bounds(), request.max_new_tokens
        beta = min(0.5, max(0.1, 0.1 * num_waiting / batch_size))
        return forecast.mean(cap) + beta * forecast.tail_mean(TAIL_LEVEL, cap)

    return FitNow(worker, rng, key=score)
