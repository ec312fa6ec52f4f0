"""One-sided split conformal calibration on the predicted CDF value (PIT) of held-out draws."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.censoring import complete_weights
from predictor.bounds.distribution import BoolArray, FloatArray, cdf
from predictor.bounds.tail import UNKNOWN_TAIL, tail_index
from predictor.errors import InputError

# A level this far below a score covers that score in spite of rounding in `quantile`.
LEVEL_MARGIN = 1e-9
MAX_TABLE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class ConformalTable:
    """Sorted scores of `num_prompts` prompts and their cumulated weight, each prompt weighing 1 in all.

    Draws of one prompt are not independent, so they share the weight of their prompt (hierarchical conformal
    prediction: Lee, Barber and Willett, arXiv 2306.06342). With one draw each it is the plain rule: the floor(tau (n +
    1))-th smallest.
    """

    num_prompts: int
    scores: tuple[float, ...]
    cumulated: tuple[float, ...]

    @classmethod
    def fit(
        cls, scores: Sequence[FloatArray | IntArray], weights: Sequence[FloatArray] | None = None
    ) -> "ConformalTable":
        """Return the table of one array of scores (its draws) per prompt.

        `weights` are those of the draws (`predictor.bounds.censoring.complete_weights`). Where a prompt sums to less
        than 1, the rest is put at the largest score. Long tables are thinned: neighbours join under their smallest
        score. That can only lower a threshold.
        """
        if not scores:
            raise InputError("calibration split: 0 prompts; add prompts or change the split fractions")
        values = np.concatenate([np.asarray(draws, dtype=np.float64) for draws in scores])
        equal = [np.full(len(draws), 1.0 / len(draws)) for draws in scores]
        shares = np.concatenate(equal if weights is None else weights)
        order = np.argsort(values, kind="stable")
        values, cumulated = values[order], np.cumsum(shares[order])
        cumulated = np.minimum(cumulated, len(scores))
        cumulated[-1] = len(scores)
        ends = np.unique(np.linspace(1, len(values), min(len(values), MAX_TABLE_SIZE)).astype(np.int64))
        starts = np.concatenate([[0], ends[:-1]])
        return cls(len(scores), tuple(values[starts].tolist()), tuple(np.round(cumulated[ends - 1], 9).tolist()))

    def threshold(self, tau: float) -> float:
        """Return the largest stored score that a fresh draw falls below with probability at most `tau`.

        Raises:
            InputError: `tau` is outside (0, 1), or there are too few prompts for it.
        """
        if not 0.0 < tau < 1.0:
            raise InputError(f"tau: must lie between 0 and 1, not {tau}")
        # The prompt to come counts as one more, at the bottom.
        allowed = tau * (self.num_prompts + 1) - 1.0
        if allowed < -1e-9:
            needed = required_prompts(tau)
            raise InputError(
                f"tau: {tau} needs at least {needed} calibration prompts, only {self.num_prompts} available; "
                "give more data or a larger tau"
            )
        first = bisect_right(self.cumulated, allowed + 1e-7)
        return self.scores[min(first, len(self.scores) - 1)]

    def to_dict(self) -> dict[str, Any]:
        """Return the table for JSON."""
        return {"num_prompts": self.num_prompts, "scores": list(self.scores), "cumulated": list(self.cumulated)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ConformalTable":
        """Return the table that `to_dict` wrote."""
        return cls(int(value["num_prompts"]), tuple(value["scores"]), tuple(value["cumulated"]))


def required_prompts(tau: float) -> int:
    """Return the fewest calibration prompts that support `tau`: the least n with tau (n + 1) >= 1; at most 1e15."""
    return max(1, ceil(1.0 / max(tau, 1e-15) - 1e-9) - 1)


@dataclass(frozen=True, slots=True)
class PitCalibration:
    """What turns a wanted `tau` into the level at which to read the predicted CDF, for any `tau`.

    `lengths` holds the calibration lengths themselves: the marginal bound, for when no prediction is at hand. `tail` is
    the index of their tail (`predictor.bounds.tail`), for what is longer than the last edge.
    """

    pit: ConformalTable
    lengths: ConformalTable
    tail: float = UNKNOWN_TAIL

    @classmethod
    def fit(
        cls,
        bins: LengthBins,
        survival: FloatArray,
        output_lens: Sequence[IntArray],
        is_truncated: Sequence[BoolArray] | None = None,
        weights: Sequence[FloatArray] | None = None,
    ) -> "PitCalibration":
        """Return the calibration from the survival [N, K+1] and the draws (tokens) of N held-out prompts.

        The score of a draw L is cdf(L + 1): the bound at level t covers it exactly when t is below. Complete draws
        stand in for those that were cut, by inverse probability of censoring weights; without `is_truncated` none was.
        `weights` of the draws take the place of these, but not in the tail.
        """
        scores = [
            cdf(bins, survival[i : i + 1], np.asarray(draws)[None, :] + 1)[0] for i, draws in enumerate(output_lens)
        ]
        if weights is None and is_truncated is not None:
            weights = complete_weights(output_lens, is_truncated)
        tail = tail_index(output_lens, is_truncated)
        return cls(ConformalTable.fit(scores, weights), ConformalTable.fit(output_lens, weights), tail)

    @classmethod
    def marginal(cls, output_lens: Sequence[IntArray]) -> "PitCalibration":
        """Return a calibration that holds the marginal lengths alone: level 0, so every bound is 1."""
        lengths = ConformalTable.fit(output_lens)
        return cls(ConformalTable(lengths.num_prompts, (0.0,), (float(lengths.num_prompts),)), lengths)

    def level(self, tau: float) -> float:
        """Return the CDF level whose lower bound is reached with probability >= 1 - tau; InputError as `threshold`."""
        return max(self.pit.threshold(tau) - LEVEL_MARGIN, 0.0)

    def marginal_bound(self, tau: float) -> int:
        """Return the bound, in tokens, that ignores the prompt; InputError as `threshold`."""
        return max(1, int(self.lengths.threshold(tau)))

    def marginal_median(self) -> int:
        """Return the median of the calibration lengths, in tokens."""
        half = int(np.searchsorted(self.lengths.cumulated, 0.5 * self.lengths.num_prompts))
        return max(1, int(self.lengths.scores[min(half, len(self.lengths.scores) - 1)]))

    def marginal_survival(self, bins: LengthBins) -> FloatArray:
        """Return the share of calibration lengths above each edge, shape [K+1]."""
        num_within = np.searchsorted(self.lengths.scores, bins.as_array(), side="right")
        cumulated = np.concatenate([[0.0], self.lengths.cumulated])
        return np.maximum(1.0 - cumulated[num_within] / self.lengths.num_prompts, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration for JSON."""
        return {"pit": self.pit.to_dict(), "lengths": self.lengths.to_dict(), "tail": self.tail}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "PitCalibration":
        """Return the calibration that `to_dict` wrote."""
        tail = float(value.get("tail", UNKNOWN_TAIL))
        return cls(ConformalTable.from_dict(value["pit"]), ConformalTable.from_dict(value["lengths"]), tail)
