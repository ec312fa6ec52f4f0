"""amin-survival with one of its parts exchanged, for docs/results/beyond.md."""

from collections.abc import Mapping
from functools import partial
from math import inf

import numpy as np

from scheduler.policies.amin_survival import AminSurvival
from scheduler.policies.boost import BindingResource, Demand
from scheduler.policies.survival_parts import Entry
from scheduler.policy import Policy
from scheduler.simulation.simulate import MakePolicy
from scheduler.worker import Worker


def outlived_is_over(entry: Entry, generated: int, level: float) -> int:
    """Return a bound that is not renewed: a request that outlives it is taken to end with the next token."""
    return max(entry.bound, generated)


def least_generated(entry: Entry, generated: int, resume: bool) -> float:
    """Return what evicts the least generated."""
    return generated


def least_bound(entry: Entry, generated: int, resume: bool) -> float:
    """Return what evicts the least current bound, as Amin does."""
    return max(entry.bound, generated)


def by_length(worker: Worker, rng: np.random.Generator) -> Policy:
    """Return the policy with its work measured in expected tokens, as if slots were what binds."""
    slots = worker.max_running or worker.kv_cache.kv_budget / 500  # of about the tokens that a request holds at most
    return AminSurvival(worker, rng, resource=BindingResource(Demand(inf, slots, inf)))


PARTS: Mapping[str, MakePolicy] = {
    "bounds not renewed": partial(AminSurvival, next_bound=outlived_is_over),
    "order by length": by_length,
    "least generated evicted": partial(AminSurvival, worth=least_generated),
    "least bound evicted": partial(AminSurvival, worth=least_bound),
}
