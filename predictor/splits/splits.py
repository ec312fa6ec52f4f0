"""Splits that no near-duplicate pair of prompts crosses."""

from collections.abc import Sequence

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.records.records import SPLITS
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.templates import without_templates

FRACTIONS = (0.6, 0.1, 0.15, 0.15)


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


def _fill_empty(split_of: IntArray, sizes: IntArray, fractions: Sequence[float]) -> None:
    for split in np.argsort(fractions)[::-1].tolist():
        counts = np.bincount(split_of, minlength=len(SPLITS))
        if fractions[split] > 0 and not counts[split] and counts.max() > 1:
            members = np.flatnonzero(split_of == counts.argmax())
            split_of[members[sizes[members].argmin()]] = split
