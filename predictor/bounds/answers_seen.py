"""What is known of the answer to one request, running or ended, and tables of many of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from predictor.bounds.distribution import BoolArray, FloatArray
from predictor.bounds.survival_table import SurvivalTable, product_limit


@dataclass(slots=True, eq=False)
class Entry:
    """What is known of one answer; `issued` in seconds."""

    issued: float
    survival: FloatArray | None
    """Predicted, [K+1]; None where there was no prediction, and once the answer has ended."""
    tokens: int = 0
    score: float = 0.0
    """Predicted P(length <= tokens): of all tokens once it has ended, before that of those out so far."""
    is_heard: bool = False
    has_ended: bool = False
    is_cut: bool = False
    has_score: bool = False
    has_missed: bool | None = None
    """Whether it missed its bound, if that is all that is known of its score."""


def place_of_change(newest_first: Sequence[Entry], is_beyond: BoolArray, tau: float, least: int) -> int:
    """Return the place of the oldest answer since which the rate of misses is furthest from `tau`, by its sd."""
    is_missed = ~is_beyond & np.asarray([entry.has_ended and not entry.is_cut for entry in newest_first])
    misses, told = np.cumsum(is_missed), np.cumsum(is_missed | is_beyond)
    distance = np.abs(misses - tau * told) / np.sqrt(np.maximum(told, 1))
    first = int(np.searchsorted(told, least))
    return first + int(np.argmax(distance[first:]))


def entry_of(row: Any) -> Entry:
    """Return the ended answer that a row of a state describes; ValueError where it describes none."""
    try:
        tokens, score, is_cut, has_missed = row
        is_right = type(tokens) is int and tokens >= 1 and type(is_cut) is bool and has_missed in (None, True, False)
        is_right = is_right and (score is None or 0.0 <= score <= 1.0)
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(f"answers: must be rows of tokens, score, is_cut and has_missed, not {row!r}")
    return Entry(-np.inf, None, tokens, score or 0.0, True, True, is_cut, score is not None, has_missed)


def score_table(entries: Sequence[Entry]) -> SurvivalTable:
    """Return the distribution of the scores."""
    is_exact = [
        entry.has_ended and not entry.is_cut if entry.has_missed is None else entry.has_missed for entry in entries
    ]
    return product_limit(np.asarray([entry.score for entry in entries]), np.asarray(is_exact, dtype=np.bool_))


def length_table(entries: Sequence[Entry]) -> SurvivalTable:
    """Return the distribution of the lengths, in tokens."""
    is_exact = [entry.has_ended and not entry.is_cut for entry in entries]
    lengths = np.asarray([entry.tokens for entry in entries], dtype=np.float64)
    return product_limit(lengths, np.asarray(is_exact, dtype=np.bool_))
