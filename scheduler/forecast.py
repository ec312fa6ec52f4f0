"""The predicted distribution of an output length, as it crosses from the predictor: numbers on shared length bins."""

import math
from dataclasses import dataclass
from math import inf, log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A tail whose index is so close to a whole power has a logarithm for its integral.
LEAST_GAP = 1e-9
KNOT_DISTANCE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """P(length > edge) on the edges of length bins; within a bin the probability falls linearly.

    What exceeds the last edge has a Pareto tail, P(length > x) = P(length > last) (last / x)^tail; without an index it
    counts as ending there.

    Attributes:
        edges: Tokens, ascending from 0, shape [num_bins + 1]; one array is shared by many forecasts.
        survival: Probabilities, from 1 and never rising, shape [num_bins + 1].
        tail: Index of the tail beyond the last edge, above 0; the smaller, the longer it is.
    """

    edges: NDArray[np.int64]
    survival: Floats
    tail: float | None = None

    @property
    def spread(self) -> float:
        """What has lasted for g tokens, beyond the last edge, lasts for g / p^spread with probability p.

        One over the index of the tail; 1 where it is not known: as many tokens again with probability one half.
        """
        return 1.0 if self.tail is None else 1.0 / self.tail

    def quantile(self, level: float) -> float:
        """Return the largest length x, in tokens, with P(length <= x) <= `level`, 0 <= level < 1."""
        return self._where(1.0 - level)

    def conditional_quantile(self, generated: float, level: float) -> float:
        """Return the quantile at `level` of the length given that it exceeds `generated` tokens.

        A table look-up, P(length > g + k | length > g) = S(g + k) / S(g); always above `generated`. A request that has
        outlived every length of the forecast goes on as its tail says (`spread`).
        """
        if generated <= 0:
            return self.quantile(level)
        alive = self._at(generated) if generated < self.edges.item(-1) else 0.0
        return self._where((1.0 - level) * alive) if alive > 0 else generated / math.pow(1.0 - level, self.spread)

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
            return left if self.tail is None else left * math.pow(self.survival.item(-1) / alive, self.spread)
        before, after = self.survival.item(right - 1), self.survival.item(right)
        return left + (before - alive) / (before - after) * (self.edges.item(right) - left)

    def on(self, edges: NDArray[np.int64]) -> "Forecast":
        """Return the forecast on other edges, from 0 on; what lies between two of them is taken to fall linearly."""
        last = self.edges.item(-1)
        beyond = 0.0 if self.tail is None else self.survival.item(-1) * (last / np.maximum(edges, last)) ** self.tail
        survival = np.where(edges > last, beyond, np.interp(edges, self.edges, self.survival))
        return Forecast(edges, survival, self.tail)

    def mean(self, cap: float = np.inf) -> float:
        """Return E[min(length, cap)] in tokens; infinite where the tail has no mean and nothing caps it."""
        return self._area(0.0, cap)

    def variance(self, cap: float = np.inf) -> float:
        """Return the variance of min(length, cap), in tokens squared: E[x^2] is the integral of 2 x S(x).

        Infinite where the tail has none and nothing caps it.
        """
        points = self._points(0.0, cap)
        alive = np.interp(points, self.edges, self.survival)
        widths, sums, ends = points[1:] - points[:-1], alive[1:] + alive[:-1], points * alive
        # Simpson, four times the middle: exact for x S(x)
        squares = widths * (ends[1:] + ends[:-1] + (points[1:] + points[:-1]) * sums) / 3
        second = float(squares.sum()) + 2 * self._beyond(1, 0.0, cap)
        if second == inf:
            return inf
        mean = float((widths * sums).sum()) / 2 + self._beyond(0, 0.0, cap)
        return max(0.0, second - mean**2)

    def tail_mean(self, level: float, cap: float = np.inf) -> float:
        """Return the mean of the longest 1 - `level` of min(length, cap), in tokens (CVaR)."""
        start = min(self.quantile(level), cap)
        return start + self._area(start, cap) / (1.0 - level)

    def _area(self, left: float, right: float) -> float:
        """Return the integral of the survival function from `left` to `right`."""
        points = self._points(left, right)
        inside = float(np.trapezoid(np.interp(points, self.edges, self.survival), points))
        return inside + self._beyond(0, left, right)

    def _beyond(self, power: int, left: float, right: float) -> float:
        """Return the integral of x^power S(x) over what of `left` to `right` lies beyond the last edge."""
        last, alive = float(self.edges.item(-1)), self.survival.item(-1)
        left = max(left, last)
        if self.tail is None or alive <= 0 or right <= left:
            return 0.0
        gap = power + 1 - self.tail
        scale = alive * math.pow(last, power + 1)
        if abs(gap) < LEAST_GAP:
            return scale * log(right / left) if right < inf else inf
        above = math.pow(right / last, gap) if right < inf else (inf if gap > 0 else 0.0)
        return scale * (above - math.pow(left / last, gap)) / gap

    def _points(self, left: float, right: float) -> Floats:
        """Return `left`, the edges between and `right`, neither beyond the last edge."""
        left, right = min(left, float(self.edges[-1])), min(right, float(self.edges[-1]))
        first, last = self.edges.searchsorted(left, side="right"), self.edges.searchsorted(right)
        return np.concatenate([[left], self.edges[first:last], [right]])


def knots(forecast: Forecast, cap: float) -> tuple[Floats, Floats]:
    """Return points in tokens up to `cap`, or where nothing is left, and the survival there; linear in between.

    The tail is drawn through points a tenth apart, which puts what it adds to the mean under 1 % too high
    for indices up to 2.
    """
    edges, survival, last = forecast.edges, forecast.survival, float(forecast.edges.item(-1))
    end = min(cap, last)
    inner = int(edges.searchsorted(end))
    points = np.append(edges[:inner], end).astype(np.float64)
    alive = np.append(survival[:inner], np.interp(end, edges, survival))
    if forecast.tail is None or cap <= last or survival.item(-1) <= 0:
        return points, alive
    beyond = np.geomspace(last, cap, 2 + int(log(cap / last) / KNOT_DISTANCE))[1:]
    return np.append(points, beyond), np.append(alive, survival.item(-1) * (last / beyond) ** forecast.tail)


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
