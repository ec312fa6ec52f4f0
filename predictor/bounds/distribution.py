"""The predicted distribution of a length: survival on the bin edges, and what is read from it.

A survival array has shape [N, K+1]: S_0 = 1, S_k = P(length > e_k). Inside a bin the CDF is linear. The mass S_K
beyond the last edge is an atom there: the CDF is 1 above e_K, and no quantile exceeds e_K.
"""

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray, LengthBins

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def survival_from_hazard_logits(logits: npt.ArrayLike) -> FloatArray:
    """Return the survival [..., K+1] of hazard logits [..., K]: S_k = prod_{j<=k} (1 - sigmoid(logit_j)).

    Logistic hazard, Gensheimer and Narasimhan 2019. Computed in float64 whatever the network ran in.
    """
    log_alive = -np.logaddexp(0.0, np.asarray(logits, dtype=np.float64))
    start = np.zeros((*log_alive.shape[:-1], 1))
    return np.asarray(np.exp(np.concatenate([start, np.cumsum(log_alive, axis=-1)], axis=-1)))


def cdf(bins: LengthBins, survival: FloatArray, lengths: npt.ArrayLike) -> FloatArray:
    """Return P(length <= x) for `lengths` in tokens, shape [N] or [N, M] with survival [N, K+1]."""
    edges = bins.as_array()
    x = np.asarray(lengths, dtype=np.float64)
    columns = x[:, None] if x.ndim == 1 else x
    right = np.clip(np.searchsorted(edges, columns, side="left"), 1, bins.num_bins)
    left_edge, right_edge = edges[right - 1], edges[right]
    below = 1.0 - np.take_along_axis(survival, right - 1, axis=1)
    above = 1.0 - np.take_along_axis(survival, right, axis=1)
    share = np.clip((columns - left_edge) / (right_edge - left_edge), 0.0, 1.0)
    values = np.where(columns > bins.max_length, 1.0, below + share * (above - below))
    return np.asarray(values.reshape(x.shape))


def quantile(bins: LengthBins, survival: FloatArray, level: npt.ArrayLike) -> FloatArray:
    """Return the continuous inverse of the CDF at `level` in [0, 1), in tokens: scalar or [N] gives [N], [L, 1] [L, N].

    The largest x with cdf(x) <= level, so that quantile(level) < x exactly when level < cdf(x); at most the last edge.
    """
    edges = bins.as_array().astype(np.float64)
    wanted = np.asarray(level, dtype=np.float64)
    levels = np.broadcast_to(wanted, np.broadcast_shapes(wanted.shape, survival.shape[:1]))
    num_reached = np.sum(1.0 - survival <= levels[..., None], axis=-1)
    right = np.clip(num_reached, 1, bins.num_bins)
    rows = np.arange(len(survival))
    below, above = 1.0 - survival[rows, right - 1], 1.0 - survival[rows, right]
    share = np.clip((levels - below) / np.maximum(above - below, np.finfo(float).tiny), 0.0, 1.0)
    inside = edges[right - 1] + share * (edges[right] - edges[right - 1])
    return np.asarray(np.where(num_reached > bins.num_bins, edges[-1], inside))


def lower_bound(
    bins: LengthBins, survival: FloatArray, level: npt.ArrayLike, max_new_tokens: npt.ArrayLike | None = None
) -> IntArray:
    """Return clip(floor(quantile(level)), 1, max_new_tokens), shape [N], in tokens.

    For an integer L >= 1: the bound is at most L exactly when level < cdf(L + 1), or the bound is 1.
    """
    bounds = _whole_bound(quantile(bins, survival, level))
    if max_new_tokens is not None:
        bounds = np.minimum(bounds, np.asarray(max_new_tokens, dtype=np.int64))
    return bounds


def bound_and_median(bins: LengthBins, survival: FloatArray, level: float) -> tuple[IntArray, IntArray]:
    """Return the lower bound at `level` and the median, each [N] in tokens: one look-up instead of two."""
    bounds, medians = quantile(bins, survival, [[level], [0.5]])
    return _whole_bound(bounds), np.maximum(np.rint(medians), 1).astype(np.int64)


def _whole_bound(quantiles: FloatArray) -> IntArray:
    return np.maximum(np.floor(quantiles), 1).astype(np.int64)
