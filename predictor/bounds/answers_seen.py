"""What is known of many answers, running or ended, and tables of them: arrays, so that a refit takes no loop."""

from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import BoolArray, FloatArray
from predictor.bounds.survival_table import SurvivalTable, product_limit

ROW = np.dtype(
    [
        ("issued", np.float64),
        ("tokens", np.int64),
        ("score", np.float64),
        ("is_there", np.bool_),
        ("is_heard", np.bool_),
        ("has_ended", np.bool_),
        ("is_cut", np.bool_),
        ("has_score", np.bool_),
        ("missed", np.int8),
    ],
    align=True,
)
"""An answer; `issued` in seconds. `score`: predicted P(length <= tokens), of all tokens once it has ended, before that
of those out so far. `missed`: 1 or 0 where all that is known of the score is whether the bound was missed, else -1."""
Rows = npt.NDArray[np.void]
MOST_TOKENS = 1 << 53
"""Longer answers, which only a server that lies can state, count as so long: a float holds it exactly."""
_FIRST_ROOM = 1024


class AnswersSeen:
    """Answers in the order of issue, each named by its ticket: 0, 1, 2 and so on. Not safe to share between threads.

    What leaves in the middle stays as a row that is not there, until all before it have left as well.
    """

    def __init__(self, num_edges: int) -> None:
        """Begin with none; predictions have `num_edges` values."""
        self._rows = np.zeros(_FIRST_ROOM, ROW)
        self._survivals = np.ones((_FIRST_ROOM, num_edges))
        self._start = self._end = 0
        self._first_ticket = 0  # of the row at `_start`
        self.num_ended = self.num_there = 0

    @property
    def num_issued(self) -> int:
        """Answers so far, those that have left included."""
        return self._first_ticket + self._end - self._start

    @property
    def rows(self) -> Rows:
        """The rows from the oldest that is there, a view."""
        return self._rows[self._start : self._end]

    @property
    def survivals(self) -> FloatArray:
        """What was predicted of each of `rows`, [N, K+1], a view; of those without a score nothing in particular."""
        return self._survivals[self._start : self._end]

    def add(self, row: tuple[Any, ...], survival: FloatArray | None = None) -> int:
        """Take an answer, the values of its `ROW`, and its prediction [K+1]; return its ticket."""
        if self._end == len(self._rows):
            self._make_room()
        self._rows[self._end] = row
        if survival is not None:
            self._survivals[self._end] = survival
        self._end += 1
        self.num_there += 1
        self.num_ended += bool(self._rows["has_ended"][self._end - 1])
        return self.num_issued - 1

    def running(self, ticket: int) -> int | None:
        """Return the place in `rows` of an answer that has not ended; None where it has, or has left."""
        place = ticket - self._first_ticket
        if not 0 <= place < self._end - self._start:
            return None
        row = self.rows[place]
        return place if row["is_there"] and not row["has_ended"] else None

    def drop(self, place: int) -> None:
        """Take the answer at a place in `rows` out."""
        row = self.rows[place]
        self.num_there -= int(row["is_there"])
        self.num_ended -= int(row["is_there"] and row["has_ended"])
        row["is_there"] = False
        if place == 0:
            self.drop_before(1)

    def drop_before(self, place: int) -> None:
        """Take out all before a place in `rows`, and what is not there any more right after them."""
        is_there = self.rows["is_there"]
        leaving = self.rows[:place]
        self.num_there -= int(np.count_nonzero(leaving["is_there"]))
        self.num_ended -= int(np.count_nonzero(leaving["is_there"] & leaving["has_ended"]))
        rest = is_there[place:]
        place += int(np.argmax(rest)) if rest.any() else len(rest)
        self._start, self._first_ticket = self._start + place, self._first_ticket + place

    def _make_room(self) -> None:
        """Move the rows to the front, of an array twice as long where they fill more than half of theirs."""
        size, room = self._end - self._start, len(self._rows)
        room *= 2 if 2 * size > room else 1
        rows, survivals = np.zeros(room, ROW), np.ones((room, self._survivals.shape[1]))
        rows[:size], survivals[:size] = self.rows, self.survivals
        self._rows, self._survivals, self._start, self._end = rows, survivals, 0, size


def place_of_change(newest_first: Rows, is_beyond: BoolArray, tau: float, least: int) -> int:
    """Return the place of the oldest answer since which the rate of misses is furthest from `tau`, by its sd."""
    is_missed = ~is_beyond & newest_first["has_ended"] & ~newest_first["is_cut"]
    misses, told = np.cumsum(is_missed), np.cumsum(is_missed | is_beyond)
    distance = np.abs(misses - tau * told) / np.sqrt(np.maximum(told, 1))
    first = int(np.searchsorted(told, least))
    return first + int(np.argmax(distance[first:]))


def row_of(stored: Any) -> tuple[Any, ...]:
    """Return the ended answer that a row of a state describes; ValueError where it describes none."""
    try:
        tokens, score, is_cut, has_missed = stored
        is_right = type(tokens) is int and 1 <= tokens <= MOST_TOKENS and type(is_cut) is bool
        is_right = is_right and has_missed in (None, True, False) and (score is None or 0.0 <= score <= 1.0)
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(f"answers: must be rows of tokens, score, is_cut and has_missed, not {stored!r}")
    missed = -1 if has_missed is None else int(has_missed)
    return (-np.inf, tokens, score or 0.0, True, True, True, is_cut, score is not None, missed)


def stored_rows(rows: Rows) -> list[list[Any]]:
    """Return the ended ones of the rows in the form that `row_of` reads, for JSON."""
    ended = rows[rows["is_there"] & rows["has_ended"]]
    fields = (ended[name].tolist() for name in ("tokens", "score", "has_score", "is_cut", "missed"))
    return [
        [tokens, score if has_score else None, is_cut, None if missed < 0 else bool(missed)]
        for tokens, score, has_score, is_cut, missed in zip(*fields, strict=True)
    ]


def score_table(rows: Rows) -> SurvivalTable:
    """Return the distribution of the scores."""
    is_exact = np.where(rows["missed"] < 0, rows["has_ended"] & ~rows["is_cut"], rows["missed"] == 1)
    return product_limit(rows["score"], is_exact)


def length_table(rows: Rows) -> SurvivalTable:
    """Return the distribution of the lengths, in tokens."""
    lengths: IntArray = rows["tokens"]
    return product_limit(lengths.astype(np.float64), rows["has_ended"] & ~rows["is_cut"])
