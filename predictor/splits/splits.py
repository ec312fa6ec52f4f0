"""Splits that no near-duplicate pair of prompts crosses."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.records.records import SPLITS
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.templates import without_templates

FRACTIONS = (0.6, 0.1, 0.15, 0.15)
DAY = 86_400
SINCE_1970 = 1e9
"""Seconds from which on a time counts from 1970 (the year 2001), as `predictor.records.times` has it."""


def assign_splits(prompts: Sequence[str], seed: int, fractions: Sequence[float] = FRACTIONS) -> list[str]:
    """Return train, validation, calibration or test for each prompt; near-duplicates go together."""
    return split_clusters(near_duplicate_clusters(without_templates(prompts), seed=seed), seed, fractions)


def split_clusters(clusters: IntArray, seed: int, fractions: Sequence[float] = FRACTIONS) -> list[str]:
    """Return the split of each prompt, given its cluster [N]; clusters stay whole.

    Clusters are taken in random order, each to the split that lacks most, so sizes follow `fractions` closely. A split
    that large clusters would leave empty gets the smallest one of the split that has most of them.
    """
    if len(fractions) != len(SPLITS) or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(f"fractions: must be {len(SPLITS)} shares that add up to 1, not {fractions}")
    sizes = np.bincount(clusters)
    lacking = np.asarray(fractions) * len(clusters)
    split_of = np.zeros(len(sizes), dtype=np.int64)
    for cluster in np.random.default_rng(seed).permutation(len(sizes)):
        split_of[cluster] = np.argmax(lacking)
        lacking[split_of[cluster]] -= sizes[cluster]
    _fill_empty(split_of, sizes, fractions)
    return [SPLITS[split_of[cluster]] for cluster in clusters]


def split_by_time(times: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> list[str]:
    """Return the split of each prompt by when it arrived (seconds): the earliest train, the last test.

    Where the days allow it a split begins with a day.
    """
    seconds = np.asarray(times, dtype=np.float64)
    order = np.argsort(seconds, kind="stable")
    days = np.floor(seconds[order] / DAY)
    wanted = np.rint(np.cumsum(fractions)[:-1] * len(times)).astype(np.int64)
    first_of_day = np.flatnonzero(np.diff(days)) + 1
    if len(first_of_day) >= len(wanted):
        nearest = first_of_day[np.abs(first_of_day[:, None] - wanted).argmin(axis=0)]
        wanted = nearest if np.all(np.diff(nearest) > 0) else wanted
    split_of = np.empty(len(times), dtype=np.int64)
    split_of[order] = np.searchsorted(wanted, np.arange(len(times)), side="right")
    return [SPLITS[split] for split in split_of]


def days_of(times: Sequence[float]) -> list[str]:
    """Return the day of each time, 2026-11-27, in UTC; of times since no known date `day 3`, from 0 on."""
    return [
        f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}" if time >= SINCE_1970 else f"day {int(time // DAY)}"
        for time in times
    ]


def _fill_empty(split_of: IntArray, sizes: IntArray, fractions: Sequence[float]) -> None:
    for split in np.argsort(fractions)[::-1].tolist():
        counts = np.bincount(split_of, minlength=len(SPLITS))
        if fractions[split] > 0 and not counts[split] and counts.max() > 1:
            members = np.flatnonzero(split_of == counts.argmax())
            split_of[members[sizes[members].argmin()]] = split
