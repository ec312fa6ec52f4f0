"""Multi-level feedback: short answers go first without being predicted."""

from functools import partial

import numpy as np

from scheduler.policies.preemptive import PreemptByRank
from scheduler.policy import Policy
from scheduler.worker import Worker


def multi_level_feedback(worker: Worker, rng: np.random.Generator, *, quantum: int = 32) -> Policy:
    """Return a multi-level feedback queue on generated tokens (FastServe, arXiv 2305.05920).

    A request falls a level when it has generated `quantum` tokens in the first one, twice as many in the second, and so
    on, those lost by evictions included; the least level runs, by arrival within it. FastServe lets long prompts skip
    levels and moves what it preempts to the host's memory; here prompts do not count, and eviction is the worker's.

    Args:
        worker: As in `Policy`.
        rng: As in `Policy`.
        quantum: Tokens of the first level, at least 1.
    """
    return PreemptByRank(worker, rng, rank=partial(_level, quantum), ranks_rise=True)


def _level(quantum: int, _: int, num_generated: int, num_lost: int) -> float:
    """Return the level k with quantum * (2^k - 1) <= tokens < quantum * (2^(k+1) - 1)."""
    return ((num_generated + num_lost) // quantum + 1).bit_length() - 1
