"""Requests that are made up, by name: chats and long answers."""

from collections.abc import Callable, Mapping

import numpy as np

from scheduler.errors import InputError
from scheduler.simulation.synthesis import Lengths, lmsys_shaped, reasoning, reasoning_mixed

MADE_UP: Mapping[str, Callable[[int, np.random.Generator], Lengths]] = {
    "lmsys-shaped": lmsys_shaped,
    "reasoning": reasoning,
    "reasoning-mixed": reasoning_mixed,
}

MOST_REQUESTS = 10_000_000
"""More would not fit into memory with what a run keeps of each."""


def made_up(name: str) -> Lengths | None:
    """Return prompt and output lengths of a source NAME:N, made with seed 0; None for a text that is no such source.

    Raises:
        InputError: N is not a whole number from 1 to `MOST_REQUESTS`.
    """
    source, _, count = name.partition(":")
    if source not in MADE_UP:
        return None
    if not count.isdecimal() or len(count) > len(str(MOST_REQUESTS)) or not 1 <= int(count) <= MOST_REQUESTS:
        raise InputError(f"workload is {name!r}; give {source}:N with a whole number N from 1 to {MOST_REQUESTS}")
    return MADE_UP[source](int(count), np.random.default_rng(0))
