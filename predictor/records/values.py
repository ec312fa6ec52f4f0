"""Numbers, flags and absence as files write them: one rule for JSON, CSV and parquet."""

import re
from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

LARGEST = 1 << 53
"""Numbers beyond it are not whole in a float, so they count nothing."""
_WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def is_absent(value: Any) -> bool:
    """Return whether a value stands for none: null, or NaN as pandas writes it."""
    return value is None or (isinstance(value, float) and value != value)


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if not is_absent(value)}


def whole_number(value: Any) -> int | None:
    """Return the whole number that a value is, 12.0 and "12" included; None where it is none or too large."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value.strip().partition(".")[0]) if _WHOLE.fullmatch(value.strip()) else None
    if not isinstance(value, int | float | Decimal):
        return None
    is_finite = -LARGEST <= value <= LARGEST
    return int(value) if is_finite and value == int(value) else None


def real_number(value: Any) -> float | None:
    """Return the finite number that a value is, "1.5" included; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if isfinite(number) else None


def flag(value: Any) -> bool | None:
    """Return the truth that a value states: true, 1, 1.0 or "true"; None where it states none."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
