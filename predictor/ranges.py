"""Numbers of a settings dataclass that state their range: checked when it is made, shown by `--help`."""

from dataclasses import dataclass, fields
from math import inf
from numbers import Real
from typing import Annotated, Any, get_args, get_type_hints

from predictor.errors import InputError

LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have; NaN lies outside of every range."""

    least: float
    most: float = inf
    is_open: tuple[bool, bool] = (False, False)
    """Whether `least` and `most` themselves are left out."""

    def holds(self, value: float) -> bool:
        """Return whether `value` lies inside."""
        above = self.least < value if self.is_open[0] else self.least <= value
        return above and (value < self.most if self.is_open[1] else value <= self.most)

    def __str__(self) -> str:
        """Return the range in words, to follow "must be"."""
        above = f"{'above' if self.is_open[0] else 'at least'} {self.least}"
        if self.most in (inf, LARGEST):
            return above
        return f"{above} and {'below' if self.is_open[1] else 'at most'} {self.most}"


Count = Annotated[int, Range(1, LARGEST)]
CountOrNone = Annotated[int, Range(0, LARGEST)]
"""A count that may be 0."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, 1, (True, True))]


def range_of(hint: Any) -> Range | None:
    """Return the range that a type hint states, `Count | None` included; None for one without."""
    for part in (hint, *get_args(hint)):
        for marker in getattr(part, "__metadata__", ()):
            if isinstance(marker, Range):
                return marker
    return None


def check_ranges(settings: Any) -> None:
    """Raise InputError for the first field of a dataclass whose value lies outside its range; None always passes.

    A word in place of a number, as a damaged `config.yaml` may have it, lies outside too.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        allowed, value = range_of(hints[field.name]), getattr(settings, field.name)
        if allowed is None or value is None:
            continue
        is_number = isinstance(value, Real)
        if not is_number:
            raise InputError(f"--{field.name.replace('_', '-')}: must be {allowed}, not {value!r}")
        if not allowed.holds(value):
            wanted = f"at most {LARGEST}" if value > LARGEST == allowed.most else allowed
            raise InputError(f"--{field.name.replace('_', '-')}: must be {wanted}, not {value}")
