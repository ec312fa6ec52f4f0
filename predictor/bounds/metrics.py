"""How good lower bounds are.

Prompts weigh the same whatever their number of draws. A truncated draw counts as its observed length, and a prediction
beyond it as that length too, since nobody knows what the answer would have become; in coverage complete draws stand in
for it (`predictor.bounds.censoring`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.bounds.censoring import Draws, Flags, complete_weights
from predictor.bounds.distribution import FloatArray

MIN_GROUP_SIZE = 20

# An answer so near its predicted median, in tokens, counts as foretold (Acc-100 of Block, arXiv 2508.03611).
NEAR = 100
# Where lengths are clipped in measures that others are compared with, in tokens.
CLIPPED_AT = 4096


@dataclass(frozen=True, slots=True)
class BoundQuality:
    """Measures of lower bounds at `tau`; `worst_group_coverage` and the ceiling are None where the data cannot tell."""

    tau: float
    coverage: float
    worst_group_coverage: float | None
    pinball_loss: float
    tightness: float
    kendall_tau: float
    kendall_tau_ceiling: float | None
    mean_absolute_error: float
    """Of the median, in tokens."""
    within_100: float
    """Share of draws within 100 tokens of the median (Acc-100)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the measures for JSON."""
        return asdict(self)


def bound_quality(
    lower_bounds: npt.ArrayLike,
    medians: npt.ArrayLike,
    output_lens: Draws,
    datasets: Sequence[str],
    tau: float,
    max_length: int | None = None,
    is_truncated: Flags | None = None,
) -> BoundQuality:
    """Return all measures of N prompts.

    In all but coverage, lengths are clipped at `max_length` tokens: in a mean, one runaway draw outweighs everything
    else. So are bounds and medians, since the quantile of a clipped length is the clipped quantile.
    """
    bounds, middles = np.asarray(lower_bounds, dtype=np.float64), np.asarray(medians, dtype=np.float64)
    covered, order = coverage_by_prompt(bounds, output_lens, is_truncated), middles
    draws: Draws = output_lens
    if max_length is not None:
        draws = [np.minimum(lengths, max_length) for lengths in output_lens]
        bounds, middles = np.minimum(bounds, max_length), np.minimum(middles, max_length)
    errors = [np.abs(excess) for excess in _excesses(middles, draws, is_truncated)]
    return BoundQuality(
        tau,
        float(covered.mean()),
        worst_group_coverage(covered, datasets),
        pinball_loss(bounds, draws, tau, is_truncated),
        tightness(bounds, draws),
        kendall_tau(order, draws),
        kendall_tau_ceiling(draws),
        float(np.mean([error.mean() for error in errors])),
        float(np.mean([np.mean(error <= NEAR) for error in errors])),
    )


def coverage_by_prompt(bounds: FloatArray, output_lens: Draws, is_truncated: Flags | None = None) -> FloatArray:
    """Return the share of each prompt's draws that reach its bound, shape [N].

    Where draws are truncated the mean over prompts is what counts: a complete draw that misses its bound does so for
    the truncated ones that it stands for.
    """
    if is_truncated is None or not any(flags.any() for flags in is_truncated):
        return np.asarray([np.mean(draws >= bound) for bound, draws in zip(bounds, output_lens, strict=True)])
    rows = zip(bounds, output_lens, complete_weights(output_lens, is_truncated), strict=True)
    return np.asarray([1.0 - np.sum(weights * (draws < bound)) for bound, draws, weights in rows])


def worst_group_coverage(covered: FloatArray, datasets: Sequence[str]) -> float | None:
    """Return the least coverage of a data set with at least 20 prompts, or None where no data set has as many."""
    groups = np.asarray(datasets)
    names, sizes = np.unique(groups, return_counts=True)
    means = [float(covered[groups == name].mean()) for name in names[sizes >= MIN_GROUP_SIZE]]
    return min(means, default=None)


def pinball_loss(bounds: FloatArray, output_lens: Draws, tau: float, is_truncated: Flags | None = None) -> float:
    """Return the mean of max(tau (L - b), (tau - 1) (L - b)), in tokens: least at the true tau-quantile."""
    excesses = _excesses(bounds, output_lens, is_truncated)
    return float(np.mean([np.mean(np.maximum(tau * excess, (tau - 1.0) * excess)) for excess in excesses]))


def _excesses(predicted: FloatArray, output_lens: Draws, is_truncated: Flags | None) -> list[FloatArray]:
    """Return how far each prompt's draws lie above what was predicted; of a cut draw at least 0."""
    excesses = [
        np.asarray(draws - value, dtype=np.float64) for value, draws in zip(predicted, output_lens, strict=True)
    ]
    if is_truncated is None:
        return excesses
    return [np.where(flags, np.maximum(part, 0.0), part) for part, flags in zip(excesses, is_truncated, strict=True)]


def tightness(bounds: FloatArray, output_lens: Draws) -> float:
    """Return mean bound / mean length."""
    return float(bounds.mean() / np.mean([draws.mean() for draws in output_lens]))


def kendall_tau(medians: FloatArray, output_lens: Draws) -> float:
    """Return Kendall's tau-b of the medians against one draw, the mean over draws; 0 where either is constant."""
    num_draws = min(len(draws) for draws in output_lens)
    return float(np.mean([_tau_b(medians, np.asarray([d[i] for d in output_lens])) for i in range(num_draws)]))


def kendall_tau_ceiling(output_lens: Draws) -> float | None:
    """Return Kendall's tau-b of one draw against the mean of the prompt's others; None where one has a single draw."""
    num_draws = min(len(draws) for draws in output_lens)
    if num_draws < 2:
        return None
    table = np.asarray([draws[:num_draws] for draws in output_lens], dtype=np.float64)
    others = (table.sum(axis=1, keepdims=True) - table) / (num_draws - 1)
    return float(np.mean([_tau_b(table[:, i], others[:, i]) for i in range(num_draws)]))


def between_prompt_share(output_lens: Draws) -> float | None:
    """Return the share of the variance of log length that lies between prompts, what a predictor can hope to explain.

    One-way analysis of variance: 1 - (mean unbiased variance within a prompt) / (variance of all draws). None unless
    every prompt has at least two draws.
    """
    if min(len(draws) for draws in output_lens) < 2:
        return None
    logs = [np.log(draws) for draws in output_lens]
    total = float(np.var(np.concatenate(logs), ddof=1))
    within = float(np.mean([np.var(draws, ddof=1) for draws in logs]))
    return 1.0 - within / total if total > 0 else None


def _tau_b(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    from scipy.stats import kendalltau

    if len(left) < 2 or np.all(left == left[0]) or np.all(right == right[0]):
        return 0.0
    return float(kendalltau(left, right).statistic)
