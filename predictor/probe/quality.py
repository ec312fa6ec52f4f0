"""How good forecasts of the remaining length are, by how many tokens are out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import BoolArray, FloatArray, quantile
from predictor.bounds.metrics import bound_quality
from predictor.probe.fit import ProbeData

FEWEST_ANSWERS = 30
"""Later on, a measure of fewer answers says nothing."""
MEASURES = ("coverage", "tightness", "pinball_loss", "kendall_tau")


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What one source says of S states.

    Attributes:
        lower_bounds: Of the remaining length, [S].
        medians: Of the remaining length, [S].
    """

    lower_bounds: IntArray
    medians: FloatArray

    @classmethod
    def read(cls, bins: LengthBins, survival: FloatArray, lower_bounds: IntArray) -> "Forecasts":
        """Return forecasts with the medians of survival [S, K+1]."""
        return cls(lower_bounds, quantile(bins, survival, 0.5))


def by_generated(data: ProbeData, forecasts: Forecasts, tau: float, cap: int | None = None) -> dict[str, Any]:
    """Return the measures at 0 tokens out, and at each number that enough answers reach; answers weigh the same.

    Args:
        data: S states with their remaining lengths.
        forecasts: Of them.
        tau: Probability allowed below the bounds.
        cap: Whole lengths are cut at so many tokens, to compare with what was drawn at a lower cap.
    """
    found: dict[str, Any] = {}
    generated = data.states.generated
    for t in np.unique(generated).tolist():
        rows = np.flatnonzero(generated == t)
        if (t and len(rows) < FEWEST_ANSWERS) or (cap is not None and t >= cap):
            continue
        most = int(data.remaining.max()) if cap is None else cap - t
        quality = bound_quality(
            np.minimum(forecasts.lower_bounds[rows], most),
            np.minimum(forecasts.medians[rows], most),
            [np.minimum(data.remaining[k : k + 1], most) for k in rows],
            [""] * len(rows),
            tau,
            is_truncated=[data.is_truncated[k : k + 1] | (data.remaining[k : k + 1] > most) for k in rows],
        ).to_dict()
        found[str(t)] = {"num_answers": len(rows), **{name: quality[name] for name in MEASURES}}
    return found


def mean_kendall_tau(measures: Mapping[str, Any], first: int = 16, last: int = 192) -> float | None:
    """Return the mean tau-b over the counts from `first` to `last` tokens out; None where there is none."""
    values = [row["kendall_tau"] for t, row in measures.items() if first <= int(t) <= last]
    return float(np.mean(values)) if values else None


def over_answers(data: ProbeData, lower_bounds: IntArray) -> float:
    """Return the share of answers for which every bound held that was made; of a cut one, every bound up to the cut."""
    answers, of = np.unique(np.column_stack([data.states.prompt, data.states.draw]), axis=0, return_inverse=True)
    missed: BoolArray = (lower_bounds > data.remaining) & ~data.is_truncated
    return float(1.0 - np.mean(np.bincount(of.ravel(), weights=missed, minlength=len(answers)) > 0))
