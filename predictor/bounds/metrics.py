"""How good lower bounds are.

Prompts weigh the same whatever their number of draws; a truncated draw counts as its observed length.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import FloatArray

MIN_GROUP_SIZE = 20

Draws = Sequence[IntArray]


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
) -> BoundQuality:
    """Return all measures of N prompts.

    Lengths are clipped at `max_length` tokens: in a mean, one runaway draw outweighs everything else.
    """
    bounds = np.asarray(lower_bounds, dtype=np.float64)
    draws = [np.minimum(lengths, max_length) if max_length else lengths for lengths in output_lens]
    covered = coverage_by_prompt(bounds, draws)
    return BoundQuality(
        tau,
        float(covered.mean()),
        worst_group_coverage(covered, datasets),
        pinball_loss(bounds, draws, tau),
        tightness(bounds, draws),
        kendall_tau(np.asarray(medians, dtype=np.float64), draws),
        kendall_tau_ceiling(draws),
    )


def coverage_by_prompt(bounds: FloatArray, output_lens: Draws) -> FloatArray:
    """Return the share of each prompt's draws that reach its bound, shape [N]."""
    return np.asarray([np.mean(draws >= bound) for bound, draws in zip(bounds, output_lens, strict=True)])


def worst_group_coverage(covered: FloatArray, datasets: Sequence[str]) -> float | None:
    """Return the least coverage of a data set with at least 20 prompts, or None where no data set has as many."""
    groups = np.asarray(datasets)
    names, sizes = np.unique(groups, return_counts=True)
    means = [float(covered[groups == name].mean()) for name in names[sizes >= MIN_GROUP_SIZE]]
    return min(means, default=None)


def pinball_loss(bounds: FloatArray, output_lens: Draws, tau: float) -> float:
    """Return the mean of max(tau (L - b), (tau - 1) (L - b)), in tokens: least at the true tau-quantile."""
    per_prompt = []
    for bound, draws in zip(bounds, output_lens, strict=True):
        excess = draws - bound
        per_prompt.append(np.mean(np.maximum(tau * excess, (tau - 1.0) * excess)))
    return float(np.mean(per_prompt))


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
