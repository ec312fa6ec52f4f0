"""Draws that were cut, and what stands in for them: inverse probability of censoring weights.

A cut draw (a cap, a stop, a client that left) is only known to be longer. Left out, long answers are missing; taken at
its cut, it looks shorter than it is. Each complete draw is given the weight of those like it that were cut before they
could end: one over the probability of not having been cut by its length (Robins and Finkelstein 2000; for prediction
bounds Candes, Lei and Ren, arXiv 2103.09763), which Kaplan and Meier's estimator reads off the cuts. It holds where
being cut does not depend on how long the answer would have been.
"""

from collections.abc import Sequence

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import BoolArray, FloatArray

Draws = Sequence[IntArray]
Flags = Sequence[BoolArray]


def probability_uncut(lengths: FloatArray, is_truncated: BoolArray, weights: FloatArray) -> FloatArray:
    """Return for each draw [N] the probability of not having been cut before its length, by Kaplan and Meier.

    An answer that ends at the token where others are cut ended first.
    """
    cuts, place = np.unique(lengths[is_truncated], return_inverse=True)
    num_cut = np.bincount(place, weights=weights[is_truncated], minlength=len(cuts))
    order = np.argsort(lengths, kind="stable")
    weight_from = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])
    # At risk of a cut at c: what is longer than c, and what was cut there.
    at_risk = weight_from[np.searchsorted(lengths[order], cuts, side="right")] + num_cut
    remaining = np.concatenate([[1.0], np.cumprod(1.0 - num_cut / at_risk)])
    return np.asarray(remaining[np.searchsorted(cuts, lengths, side="left")])


def complete_weights(output_lens: Draws, is_truncated: Flags) -> list[FloatArray]:
    """Return the weight of each draw of N prompts: a prompt's add up to 1 where nothing is cut; a cut draw has 0.

    All together add up to N, or less by the share of lengths that no complete draw reaches.
    """
    sizes = [len(draws) for draws in output_lens]
    weights = np.repeat(1.0 / np.asarray(sizes, dtype=np.float64), sizes)
    lengths = np.concatenate(output_lens).astype(np.float64)
    flags = np.concatenate([np.asarray(part, dtype=np.bool_) for part in is_truncated])
    if flags.any():
        uncut = probability_uncut(lengths, flags, weights)
        weights = np.where(flags, 0.0, weights / np.where(flags, 1.0, uncut))
    return np.split(weights, np.cumsum(sizes)[:-1])
