"""Gains over fcfs on the same requests: how they are computed, averaged, and when one counts as none."""

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.metrics import interval_over_seeds, mean_over_seeds

GAINS = ("mean_latency", "p99_latency")


def gain_over(fcfs: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times faster than fcfs a policy is, by figure of `scheduler.metrics.summarize`."""
    return {key: float(fcfs[key]) / float(figures[key]) for key in GAINS}


def gain_cell(gains: Sequence[Mapping[str, Any]], runs_of_fcfs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a cell of a map of gains over fcfs.

    Args:
        gains: Of `gain_over`, one for each seed.
        runs_of_fcfs: The figures of fcfs in these seeds.
    """
    waits = [float(run["mean_queueing_delay"]) / float(run["mean_latency"]) for run in runs_of_fcfs]
    return {
        "gain": mean_over_seeds(gains),
        "interval_95": interval_over_seeds(gains),
        "fcfs_queueing_share": sum(waits) / len(waits),
    }


def is_nil(cell: Mapping[str, Any]) -> bool:
    """Return whether a gain in mean latency is less than 2 %, or not told from none by its interval."""
    gain, width = cell["gain"]["mean_latency"], cell["interval_95"]["mean_latency"]
    return bool(abs(gain - 1) < max(0.02, width))
