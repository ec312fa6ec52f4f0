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


def made_up(name: str) -> Lengths | None:
    """Return prompt and output lengths of a source NAME:N, made with seed 0; None for a text that is no such source.

    Raises:
        InputError: N is not a whole number from 1.
    """
    source, _, count = name.partition(":")
    if source not in MADE_UP:
        return None
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"workload is {name!r}; give {source}:N with a whole number N >= 1")
    return MADE_UP[source](int(count), np.random.default_rng(0))
