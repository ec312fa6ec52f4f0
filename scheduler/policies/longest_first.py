"""Longest predicted first: for a batch of requests whose last answer is what counts."""

import numpy as np

from scheduler.policies.amin_survival import AminSurvival
from scheduler.policies.boost import LongestFirst
from scheduler.policy import Policy
from scheduler.worker import Worker


def longest_predicted_first(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return longest processing time first (Graham 1969) on expected work, packed as `AminSurvival` packs.

    The objective is the makespan, as in rollouts and offline batches: long answers that start late end last. Short ones
    fill what is left at the end. Mean latency is the worst that an order can give.
    """
    return AminSurvival(worker, rng, order=LongestFirst())
