"""First come first served, evicting the least computed first."""

from collections.abc import Iterable

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.policies.fit_now import FitNow
from scheduler.policy import Policy
from scheduler.worker import Worker


def least_computed_first(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return vLLM's default with another victim: the one with the fewest tokens in the cache (LCF, vLLM #53723).

    What is lost is then the least; of equal ones the last admitted goes.
    """
    return FitNow(worker, rng, victims=_least_computed)


def _least_computed(running: RunningBatch) -> Iterable[int]:
    order = list(reversed(running))
    order.sort(key=running.num_tokens)
    return order
