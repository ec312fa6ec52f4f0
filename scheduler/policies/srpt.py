"""Shortest remaining processing time, with perfect knowledge."""

from collections.abc import Sequence

import numpy as np

from scheduler.policies.preemptive import PreemptByRank
from scheduler.policy import Policy
from scheduler.worker import Worker


def shortest_remaining_first(worker: Worker, rng: np.random.Generator, *, output_lens: Sequence[int]) -> Policy:
    """Return the order that has the least mean latency on one machine (Schrage 1968), on true remaining lengths.

    A request that is evicted and restarts has its whole length to come again.
    """

    def remaining(index: int, num_generated: int, _: int) -> float:
        return int(output_lens[index]) - num_generated

    return PreemptByRank(worker, rng, rank=remaining, ranks_rise=False)
