"""How the longest answers go on: the index of a Pareto tail, from draws of which some were cut."""

from collections.abc import Sequence

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import BoolArray

# Where nothing is known: what has lasted for g tokens lasts for as many again with probability one half.
UNKNOWN_TAIL = 1.0
MIN_TAIL, MAX_TAIL = 0.5, 20.0
# The tail begins where this share of the complete draws is left, or this many.
TAIL_SHARE, LEAST_DRAWS = 0.05, 20


def tail_index(output_lens: Sequence[IntArray], is_truncated: Sequence[BoolArray] | None = None) -> float:
    """Return the index a of P(length > x) = P(length > u) (u / x)^a for the draws, in tokens, of N prompts.

    The estimate of Hill (1975) for draws beyond u, with those that were cut as survival terms: complete draws over the
    sum of log(length / u), to which a cut one adds as long as it was seen. A complete draw counts half a token less,
    since lengths are whole. One draw more, of index 1, is added, so that with no long draw the index is 1. All draws of
    a prompt together weigh 1 against it. Between `MIN_TAIL` and `MAX_TAIL`.
    """
    weights = np.concatenate([np.full(len(draws), 1.0 / len(draws)) for draws in output_lens])
    lengths = np.concatenate(output_lens).astype(np.float64)
    is_cut = np.zeros(len(lengths), dtype=np.bool_) if is_truncated is None else np.concatenate(is_truncated)
    complete = np.sort(lengths[~is_cut])
    num_beyond = max(round(TAIL_SHARE * len(complete)), LEAST_DRAWS)
    if num_beyond >= len(complete):
        return UNKNOWN_TAIL
    start = complete[-num_beyond - 1]
    is_beyond = lengths > start
    seen = np.log(np.where(is_cut, lengths, lengths - 0.5)[is_beyond] / start)
    num_ended = weights[is_beyond & ~is_cut].sum()
    index = (1.0 + num_ended) / (1.0 / UNKNOWN_TAIL + float(weights[is_beyond] @ seen))
    return float(np.clip(index, MIN_TAIL, MAX_TAIL))
