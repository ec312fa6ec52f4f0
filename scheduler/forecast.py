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
        return self._where(1.0 - level)

    def conditional_quantile(self, generated: float, level: float) -> float:
        """Return the quantile at `level` of the length given that it exceeds `generated` tokens.

        A table look-up, P(length > g + k | length > g) = S(g + k) / S(g); always above `generated`. A request that has
        outlived every length of the forecast is taken to end like a Pareto variable with index 1: what has lasted for g
        tokens lasts for as many again with probability one half.
        """
        if generated <= 0:
            return self.quantile(level)
        alive = self._at(generated) if generated < self.edges.item(-1) else 0.0
        return self._where((1.0 - level) * alive) if alive > 0 else generated / (1.0 - level)

    def _at(self, length: float) -> float:
        """Return the survival at a length below the last edge."""
        right = int(self.edges.searchsorted(length, side="right"))
        left, before, after = self.edges.item(right - 1), self.survival.item(right - 1), self.survival.item(right)
        return before + (length - left) / (self.edges.item(right) - left) * (after - before)

    def _where(self, alive: float) -> float:
        """Return the largest length whose survival is at least `alive` in (0, 1]."""
        right = len(self.survival) - int(self.survival[::-1].searchsorted(alive))
        left = float(self.edges.item(right - 1))
        if right == len(self.survival):
            return left
        before, after = self.survival.item(right - 1), self.survival.item(right)
        return left + (before - alive) / (before - after) * (self.edges.item(right) - left)

    def mean(self, cap: float = np.inf) -> float:
        """Return E[min(length, cap)] in tokens."""
        return self._area(0.0, cap)

    def variance(self, cap: float = np.inf) -> float:
        """Return the variance of min(length, cap), in tokens squared: E[x^2] is the integral of 2 x S(x)."""
        points = self._points(0.0, cap)
        alive = np.interp(points, self.edges, self.survival)
        middle = (points[1:] + points[:-1]) / 2 * (alive[1:] + alive[:-1]) / 2  # Simpson: exact for x S(x)
        ends = points * alive
        squares = np.diff(points) * (ends[1:] + ends[:-1] + 4 * middle) / 3
        return max(0.0, float(squares.sum() - np.trapezoid(alive, points) ** 2))

    def tail_mean(self, level: float, cap: float = np.inf) -> float:
        """Return the mean of the longest 1 - `level` of min(length, cap), in tokens (CVaR)."""
        start = min(self.quantile(level), cap)
        return start + self._area(start, cap) / (1.0 - level)

    def _area(self, left: float, right: float) -> float:
        """Return the integral of the survival function from `left` to `right`."""
        points = self._points(left, right)
        return float(np.trapezoid(np.interp(points, self.edges, self.survival), points))

    def _points(self, left: float, right: float) -> Floats:
        """Return `left`, the edges between and `right`, or the last edge if that comes before."""
        right = min(right, float(self.edges[-1]))
        inner = self.edges[(self.edges > left) & (self.edges < right)]
        return np.concatenate([[left], inner, [right]])


def through_bounds(lower: int, middle: int, upper: int, longest: int) -> Forecast:
    """Return a forecast for a request of which only bounds are known, in tokens, linear in between.

    At least `lower` with probability 0.9, at least `middle` with 0.5, above `upper` with 0.05, never above `longest`.
    Edges that meet are moved one token apart, as far as `longest` leaves room.
    """
    edges, survival = [0], [1.0]
    for edge, alive in ((lower, 0.9), (middle, 0.5), (upper, 0.05), (longest, 0.0)):
        if edges[-1] < longest:
            edges.append(min(max(edge, edges[-1] + 1), longest))
            survival.append(alive)
    return Forecast(np.array(edges, dtype=np.int64), np.array(survival))
