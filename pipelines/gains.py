"""Gains over fcfs: what counts as none."""

from collections.abc import Mapping
from typing import Any


def is_nil(cell: Mapping[str, Any]) -> bool:
    """Return whether a gain in mean latency is less than 2 %, or not told from none by its interval."""
    gain, width = cell["gain"]["mean_latency"], cell["interval_95"]["mean_latency"]
    return bool(abs(gain - 1) < max(0.02, width))
