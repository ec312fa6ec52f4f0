"""Columns of times made seconds: dates, numbers since 1970, and numbers since a start, in a unit detected or given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.records.values import real_number

Floats = npt.NDArray[np.float64]

TICKS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "date": 1e6}
"""Ticks in a second, by unit."""
WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "date": "dates"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A number at least so large counts from 1970: the year 2001 in the unit. A trace of seconds would last thirty years.
_SINCE_1970 = (("ns", 1e18), ("us", 1e15), ("ms", 1e12), ("s", 1e9))


@dataclass(frozen=True, slots=True)
class Times:
    """Times in ticks, shape [n], from 1970 on where `since_1970`, or from a start that is not known."""

    ticks: Floats
    unit: str
    """What a tick is: s, ms, us, ns; of dates (date) microseconds."""
    since_1970: bool

    @property
    def seconds(self) -> Floats:
        """Return the times in seconds."""
        return self.ticks / TICKS[self.unit]

    @property
    def since_earliest(self) -> Floats:
        """Return the times in seconds since the earliest; exact to the tick, unlike a difference of seconds."""
        return np.asarray((self.ticks - self.ticks.min(initial=np.inf)) / TICKS[self.unit])


class BadTime(ValueError):  # noqa: N818 - a finding about one value, for the caller to name its place
    """A value that is no time; `index` is its place in the column."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index


def seconds_of(values: Sequence[Any], unit: str | None = None, whole_unit: str = "s") -> Times:
    """Return a column of times.

    Dates are told by their form, numbers since 1970 by their size, and in which unit they count by that size too.
    Smaller numbers are seconds, but where all are whole they count `whole_unit`.

    Args:
        values: dates and times (text or values), durations, or numbers, also as text.
        unit: what numbers count (s, ms, us, ns), where it is known.
        whole_unit: what small whole numbers count in such a file.

    Raises:
        BadTime: a value is none of these, negative, not finite, or of another kind than the first.
    """
    first = next((value for value in values if value is not None), 0)
    if _number(first) is None:
        return Times(np.asarray([_date(i, value) for i, value in enumerate(values)]), "date", True)
    numbers = [_number(value) for value in values]
    for index, number in enumerate(numbers):
        if number is None or number < 0:
            raise BadTime(index, "must be a number, finite and at least 0")
    ticks = np.asarray(numbers, dtype=np.float64)
    largest = float(ticks.max(initial=0.0))
    found = next((name for name, least in _SINCE_1970 if largest >= least), None)
    if found is None:
        found = whole_unit if np.array_equal(ticks, np.floor(ticks)) else "s"
    chosen = unit or found
    return Times(ticks, chosen, largest >= 1e9 * TICKS[chosen])


def _number(value: Any) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return real_number(value)


def _date(index: int, value: Any) -> float:
    """Return whole microseconds since 1970, which a float holds exactly."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise BadTime(index, "must be a date and time such as 2023-11-16 18:15:46.68, or a number")
    stamp = value if value.tzinfo else value.replace(tzinfo=UTC)
    ticks = (stamp - _EPOCH) // timedelta(microseconds=1)
    if ticks < 0:
        raise BadTime(index, "must be a date since 1970")
    return float(ticks)
