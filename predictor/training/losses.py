"""The likelihood of lengths under a discrete hazard, with truncated draws as censored."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import softplus

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import FloatArray, quantile, survival_from_hazard_logits
from predictor.records.records import BoolArray

Objective = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
"""Hazard logits [B, M, K], events [B, M, K], at risk [B, M, K] and weights [B, M] to a loss."""


def hazard_counts(
    bins: LengthBins, output_lens: Sequence[IntArray], is_truncated: Sequence[BoolArray]
) -> tuple[FloatArray, FloatArray]:
    """Return `events` and `at_risk`, both [N, K], as shares of each prompt's draws.

    A draw that ended in bin k is at risk in the bins up to k and an event in k. A draw truncated at c outlived the
    bins with e_k <= c and says nothing more; one longer than the last edge outlived them all.
    """
    events = np.zeros((len(output_lens), bins.num_bins))
    at_risk = np.zeros_like(events)
    for row, (lengths, truncated) in enumerate(zip(output_lens, is_truncated, strict=True)):
        ended_in = bins.index(lengths)
        exact = ~truncated & (ended_in < bins.num_bins)
        num_at_risk = np.where(exact, ended_in + 1, bins.num_survived(lengths))
        np.add.at(events[row], ended_in[exact], 1.0 / len(lengths))
        at_risk[row] = np.mean(np.arange(bins.num_bins) < num_at_risk[:, None], axis=0)
    return events, at_risk


def censored_hazard_nll(logits: Tensor, events: Tensor, at_risk: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood in nats, the (weighted) mean over prompts of the mean over draws.

    With hazard h_k = sigmoid(logit_k), a draw in bin k has log h_k + sum_{j<k} log(1 - h_j), a censored one sum log(1
    - h_j) over the bins it outlived (logistic hazard, Gensheimer and Narasimhan 2019). Summed over draws that is a
    binomial likelihood on counts: -log L = sum_k at_risk_k softplus(logit_k) - events_k logit_k.

    Args:
        logits: hazard logits [..., K].
        events: share of draws that ended in each bin, of the same shape.
        at_risk: share of draws that reached each bin, likewise.
        weights: weight of each prompt [...]; equal where None.
    """
    per_prompt = (at_risk * softplus(logits) - events * logits).sum(dim=-1)
    if weights is None:
        return per_prompt.mean()
    return (weights * per_prompt).sum() / weights.sum()


def mean_pinball_loss(bins: LengthBins, logits: npt.ArrayLike, output_lens: npt.ArrayLike, tau: float) -> float:
    """Return the pinball loss at `tau`, in tokens, of the quantile read from hazard logits [N, K] without calibration.

    The mean over draws `output_lens` [N, D] (NaN where there is none), each of the N weighing the same.
    """
    bounds = np.maximum(np.floor(quantile(bins, survival_from_hazard_logits(logits), tau)), 1.0)
    excess = np.asarray(output_lens, dtype=np.float64) - bounds[:, None]
    return float(np.mean(np.nanmean(np.maximum(tau * excess, (tau - 1.0) * excess), axis=1)))


def marginal_hazard_logits(events: npt.NDArray[np.floating], at_risk: npt.NDArray[np.floating]) -> FloatArray:
    """Return the hazard logits [...] of all draws together, from counts [N, ...], smoothed by half a draw each way."""
    hazard_odds = (events.sum(axis=0) + 0.5) / ((at_risk - events).sum(axis=0) + 0.5)
    return np.asarray(np.log(hazard_odds))
