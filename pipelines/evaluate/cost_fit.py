"""The cost model fitted from measured iterations."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from scheduler.cost_model import TICKS_PER_SECOND, CostModel

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FittedCost:
    """A cost model and how well it fits.

    Attributes:
        cost_model: Coefficients in seconds.
        num_iterations: Iterations that it was fitted on.
        r_squared: Share of the variance of an iteration's time that it explains.
    """

    cost_model: CostModel
    num_iterations: int
    r_squared: float


def fit_cost_model(iterations: Floats) -> FittedCost:
    """Return the non-negative least-squares fit of the time of an iteration.

    Args:
        iterations: Seconds, prefill tokens, decoding requests and KV tokens of each, shape [n, 4], n >= 1.
    """
    seconds, work = iterations[:, 0], iterations[:, 1:]
    design = np.column_stack([np.ones(len(seconds)), work])
    coefficients = non_negative_least_squares(design, seconds)
    coefficients[0] = max(coefficients[0], 1 / TICKS_PER_SECOND)
    error = seconds - design @ coefficients
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return FittedCost(
        CostModel(*coefficients.tolist()), len(seconds), 1 - float((error**2).sum()) / spread if spread else 1.0
    )


def non_negative_least_squares(design: Floats, target: Floats) -> Floats:
    """Return the x >= 0 that minimises |design x - target|, shape [k], for a handful of columns k.

    Each set of columns is solved without the constraint; the best solution that keeps it is the optimum.
    """
    count = design.shape[1]
    gram, moment = design.T @ design, design.T @ target
    best, least = np.zeros(count), 0.0
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            columns = np.array(chosen)
            part = np.linalg.lstsq(gram[np.ix_(columns, columns)], moment[columns], rcond=None)[0]
            if (part < 0).any():
                continue
            x = np.zeros(count)
            x[columns] = part
            error = float(x @ gram @ x - 2 * moment @ x)
            if error < least:
                best, least = x, error
    return best
