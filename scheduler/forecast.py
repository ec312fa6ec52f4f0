"""The predicted distribution of an output length, as it crosses from the predictor: numbers on shared length bins."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """P(length > edge) on the edges of length bins; within a bin the probability falls linearly.

    What exceeds the last edge counts as ending there.

    Attributes:
        edges: Tokens, ascending from 0, shape [num_bins + 1]; one array is shared by many forecasts.
        survival: Probabilities, from 1 and never rising, shape [num_bins + 1].
    """

    edges: NDArray[np.int64]
    survival: Floats

    def quantile(self, level: float) -> float:
        """Return the largest length x, in tokens, with P(length <= x) <= `level`, 0 <= level < 1."""
        below = 1.0 - self.survival
        right = int(np.searchsorted(below, level, side="right"))
        if right == len(below):
            return float(self.edges[-1])
        share = (level - below[right - 1]) / (below[right] - below[right - 1])
        return float(self.edges[right - 1] + share * (self.edges[right] - self.edges[right - 1]))

    def mean(self, cap: float = np.inf) -> float:
        """Return E[min(length, cap)] in tokens."""
        return self._area(0.0, cap)

    def tail_mean(self, level: float, cap: float = np.inf) -> float:
        """Return the mean of the longest 1 - `level` of min(length, cap), in tokens (CVaR)."""
        start = min(self.quantile(level), cap)
        return start + self._area(start, cap) / (1.0 - level)

    def _area(self, left: float, right: float) -> float:
        """Return the integral of the survival function from `left` to `right`."""
        right = min(right, float(self.edges[-1]))
        inner = self.edges[(self.edges > left) & (self.edges < right)]
        points = np.concatenate([[left], inner, [right]])
        return float(np.trapezoid(np.interp(points, self.edges, self.survival), points))
