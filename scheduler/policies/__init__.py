"""The table of policies by name; to add one, write its file and add its line here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from scheduler.errors import InputError
from scheduler.policies.amin import Amin
from scheduler.policies.amin_survival import with_levels
from scheduler.policies.by_estimate import amax, hindsight, hindsight_svf, svf
from scheduler.policies.dla import ReserveByPrediction
from scheduler.policies.fcfs_lcf import least_computed_first
from scheduler.policies.fcfs_reserve import FcfsReserve
from scheduler.policies.fit_now import fcfs, sjf
from scheduler.policies.longest_first import longest_predicted_first
from scheduler.policies.mlfq import multi_level_feedback
from scheduler.policies.past_future import PastFuture
from scheduler.policies.sglang import SglangRatio
from scheduler.policies.siblings.with_siblings import WithSiblings
from scheduler.policies.srpt import shortest_remaining_first
from scheduler.policies.tie import tail_inflated
from scheduler.policies.uniboost import UniBoost
from scheduler.policy import Policy
from scheduler.worker import Worker


class Reads(Enum):
    """What a policy knows of an output length before it is out."""

    REQUEST = "request"
    """What the client asked for: prompt and `max_new_tokens`. Requests need not wait for a prediction."""
    PREDICTION = "prediction"
    """Also bounds, median or forecast."""
    OUTPUT_LEN = "output_len"
    """The truth, which only a study can give."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy in the table: how it is made, from worker, rng and options, and what it reads."""

    make: Callable[..., Policy]
    reads: Reads


POLICIES: Mapping[str, Entry] = {
    "amin": Entry(Amin, Reads.PREDICTION),
    "amin-eviction": Entry(partial(Amin, refinement="eviction"), Reads.PREDICTION),
    "amin-survival": Entry(with_levels, Reads.PREDICTION),
    "amax": Entry(amax, Reads.PREDICTION),
    "dla": Entry(ReserveByPrediction, Reads.PREDICTION),
    "fcfs": Entry(fcfs, Reads.REQUEST),
    "fcfs-lcf": Entry(least_computed_first, Reads.REQUEST),
    "fcfs-reserve": Entry(FcfsReserve, Reads.REQUEST),
    "hindsight": Entry(hindsight, Reads.OUTPUT_LEN),
    "hindsight-svf": Entry(hindsight_svf, Reads.OUTPUT_LEN),
    "longest-first": Entry(longest_predicted_first, Reads.PREDICTION),
    "mlfq": Entry(multi_level_feedback, Reads.REQUEST),
    "past-future": Entry(PastFuture, Reads.REQUEST),
    "sglang": Entry(SglangRatio, Reads.REQUEST),
    "sjf": Entry(sjf, Reads.PREDICTION),
    "srpt": Entry(shortest_remaining_first, Reads.OUTPUT_LEN),
    "svf": Entry(svf, Reads.PREDICTION),
    "tie": Entry(tail_inflated, Reads.PREDICTION),
    "uniboost": Entry(UniBoost, Reads.REQUEST),
}


def policies_that_read(reads: Reads) -> frozenset[str]:
    """Return the names of the policies that read `reads`, and nothing beyond it."""
    return frozenset(name for name, entry in POLICIES.items() if entry.reads is reads)


def make_policy(
    name: str,
    worker: Worker,
    rng: np.random.Generator,
    *,
    output_lens: Sequence[int] | None = None,
    sibling_correlation: float | None = None,
    max_overtakes: int | Mapping[str, int] | None = None,
    **options: Any,
) -> Policy:
    """Return a new policy by its name.

    Args:
        name: A key of `POLICIES`.
        worker: What the requests run on.
        rng: For random ties.
        output_lens: True lengths by request index; only policies that read them get them.
        sibling_correlation: How alike lengths within a group are (`scheduler.policies.siblings`); by default groups
            mean nothing.
        max_overtakes: How often a request may be overtaken while it waits (`scheduler.waiting.overtaking`), one number
            or by class, "" for all others; by default as the policy's order has it.
        options: Further arguments of the policy, such as the levels of `AminSurvival`.

    Raises:
        InputError: No policy has that name or one of the options, or it needs true lengths and there are none.
    """
    _check_options(name, options)
    if POLICIES[name].reads is Reads.OUTPUT_LEN:
        if output_lens is None:
            raise InputError(f"policy {name!r} needs the true output lengths, which free sampling does not have")
        options["output_lens"] = output_lens
    policy = POLICIES[name].make(worker, rng, **options)
    if max_overtakes is not None:
        policy.waiting.limit_overtaking(max_overtakes if isinstance(max_overtakes, Mapping) else {"": max_overtakes})
    if sibling_correlation is None or POLICIES[name].reads is not Reads.PREDICTION:
        return policy
    return WithSiblings(policy, sibling_correlation)


def _check_options(name: str, options: Iterable[str]) -> None:
    """Raise InputError unless there is a policy of that name, and it has all of the options."""
    if name not in POLICIES:
        raise InputError(f"unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    known = set(signature(POLICIES[name].make).parameters) - {"worker", "rng", "output_lens"}
    for option in options:
        if option not in known:
            raise InputError(f"policy {name!r} has no option {option!r}; it has {', '.join(sorted(known)) or 'none'}")
