"""A distribution of scores with mass on each, from exact and censored values, and conformal thresholds of it."""

from dataclasses import dataclass

import numpy as np

from predictor.bounds.calibration import ConformalTable
from predictor.bounds.distribution import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SurvivalTable:
    """Sorted `values` [V] with the `cumulated` mass [V] up to each, in all at most 1; the rest lies beyond.

    `size` is how many values it stands for: its finite-sample term.
    """

    values: FloatArray
    cumulated: FloatArray
    size: float

    @classmethod
    def of(cls, table: ConformalTable) -> "SurvivalTable":
        """Return a shipped table in this form."""
        return cls(np.asarray(table.scores), np.asarray(table.cumulated) / table.num_prompts, table.num_prompts)

    def blend(self, other: "SurvivalTable", weight: float) -> "SurvivalTable":
        """Return the mixture of this table and, with `weight` in [0, 1], another."""
        if weight >= 1.0:
            return other
        values = np.concatenate([self.values, other.values])
        own, others = np.diff(self.cumulated, prepend=0.0), np.diff(other.cumulated, prepend=0.0)
        mass = np.concatenate([(1.0 - weight) * own, weight * others])
        order = np.argsort(values, kind="stable")
        size = (1.0 - weight) * self.size + weight * other.size
        return SurvivalTable(values[order], np.cumsum(mass[order]), size)

    def threshold(self, tau: float) -> float:
        """Return the largest value that a fresh one falls below with probability at most `tau`; 0 where it is too fine.

        The fresh one counts as one more, at the bottom, as in split conformal prediction.
        """
        allowed = tau - (1.0 - tau) / self.size if self.size else -1.0
        return self.quantile(allowed) if allowed >= -1e-9 else 0.0

    def quantile(self, share: float) -> float:
        """Return the least value up to which there is more than `share` of the mass, the last one at most."""
        first = int(self.cumulated.searchsorted(share + 1e-9, side="right"))
        return float(self.values[min(first, len(self.values) - 1)]) if len(self.values) else 0.0

    def mass_up_to(self, value: float) -> float:
        """Return the mass of the values up to `value`."""
        count = int(self.values.searchsorted(value, side="right"))
        return float(self.cumulated[count - 1]) if count else 0.0


def product_limit(values: FloatArray, is_exact: BoolArray) -> SurvivalTable:
    """Return the distribution of N values of which those not exact are known to be larger only.

    Kaplan and Meier 1958: mass stands on exact values; what a larger one would have had is divided among those beyond.
    Where the largest is not exact, the rest of the mass lies beyond all.
    """
    order = np.lexsort((~is_exact, values))  # at a tie the exact one comes first: the other is larger
    at_risk = np.arange(len(values), 0, -1)
    exact = is_exact[order]
    alive = np.cumprod(np.where(exact, 1.0 - 1.0 / at_risk, 1.0))
    kept = values[order][exact]
    last = values[order][-1:] if len(values) and not exact[-1] else np.empty(0)
    cumulated = np.concatenate([1.0 - alive[exact], np.ones(len(last))])
    return SurvivalTable(np.concatenate([kept, last]), cumulated, float(len(values)))
