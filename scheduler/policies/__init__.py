"""The table of policies by name; to add one, write its file and add its line here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from scheduler.errors import InputError
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.policies.amin import Amin
from scheduler.policies.amin_survival import AminSurvival
from scheduler.policies.by_estimate import Amax, Hindsight, HindsightSvf, Svf
from scheduler.policies.fcfs import Fcfs, FcfsReserve, Sjf
from scheduler.policies.past_future import PastFuture
from scheduler.policies.sglang import SglangRatio
from scheduler.policies.tie import Tie
from scheduler.policy import Policy

POLICIES: Mapping[str, Callable[..., Policy]] = {
    "amin": Amin,
    "amin-eviction": partial(Amin, refinement="eviction"),
    "amin-survival": AminSurvival,
    "amax": Amax,
    "fcfs": Fcfs,
    "fcfs-reserve": FcfsReserve,
    "hindsight": Hindsight,
    "hindsight-svf": HindsightSvf,
    "past-future": PastFuture,
    "sglang": SglangRatio,
    "sjf": Sjf,
    "svf": Svf,
    "tie": Tie,
}
CLAIRVOYANT = frozenset({"hindsight", "hindsight-svf"})
"""Policies that are given the true output lengths; no others are."""


def make_policy(
    name: str,
    kv_cache: KvCache,
    rng: np.random.Generator,
    *,
    resume: bool,
    output_lens: Sequence[int] | None,
    limits: Limits = NO_LIMITS,
    **options: Any,
) -> Policy:
    """Return a new policy by its name.

    Args:
        name: A key of `POLICIES`.
        kv_cache: The memory to schedule.
        rng: For random ties.
        resume: Whether evicted requests keep their generated tokens.
        output_lens: True lengths by request index, for the clairvoyant policies alone.
        limits: What the engine asks of an admission besides memory.
        options: Further arguments of the policy, such as the levels of `AminSurvival`.

    Raises:
        InputError: No policy has that name or one of the options, or it needs true lengths and there are none.
    """
    _check_options(name, options)
    if name in CLAIRVOYANT:
        if output_lens is None:
            raise InputError(f"policy {name!r} needs the true output lengths, which free sampling does not have")
        options["output_lens"] = output_lens
    return POLICIES[name](kv_cache, rng, resume=resume, limits=limits, **options)


def _check_options(name: str, options: Iterable[str]) -> None:
    """Raise InputError unless there is a policy of that name, and it has all of the options."""
    if name not in POLICIES:
        raise InputError(f"unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    known = set(signature(POLICIES[name]).parameters) - {"kv_cache", "rng", "resume", "limits", "output_lens"}
    for option in options:
        if option not in known:
            raise InputError(f"policy {name!r} has no option {option!r}; it has {', '.join(sorted(known)) or 'none'}")
