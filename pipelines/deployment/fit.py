"""The clock of a deployment, fitted on iterations."""

import numpy as np
from numpy.typing import NDArray

from scheduler.cost_model import TICKS_PER_SECOND, CostModel
from scheduler.deployments.deployment import ClockError
from scheduler.errors import InputError

Floats = NDArray[np.float64]
LEAST = 8
"""Iterations below which four numbers are not fitted."""


def fit_clock(iterations: Floats) -> tuple[CostModel, ClockError]:
    """Return the clock of least mean squared relative error with no negative number, and how far off it is.

    Relative, since a busy server's iterations differ by a factor of ten and its latency is a sum of all of them.

    Args:
        iterations: Seconds, prefill tokens, decoding requests and KV tokens of each, shape [n, 4].

    Raises:
        InputError: There are too few, or one took no time.
    """
    from scipy.optimize import nnls

    if len(iterations) < LEAST:
        raise InputError(f"{len(iterations)} iterations, must be at least {LEAST} to fit a clock")
    seconds = iterations[:, 0]
    if not (np.isfinite(iterations).all() and (seconds > 0).all() and (iterations >= 0).all()):
        raise InputError("an iteration took no time, or has a number that is negative or not finite")
    prefills = iterations[:, 1] > 0
    design = np.column_stack([np.ones(len(seconds)), iterations[:, 1:], prefills]) / seconds[:, None]
    scale = design.max(axis=0, initial=1e-300)  # columns of like size: nnls stops early where they differ by 1e8
    coefficients = nnls(design / scale, np.ones(len(seconds)))[0] / scale
    coefficients[0] = max(coefficients[0], 1 / TICKS_PER_SECOND)
    off = np.abs(design @ coefficients - 1)
    error = ClockError(len(off), *(round(float(value), 4) for value in (*np.quantile(off, (0.5, 0.9)), off.max())))
    return CostModel(*(float(f"{value:.4g}") for value in coefficients)), error
