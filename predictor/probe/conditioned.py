"""What a forecast of the prompt alone says later on, and a probe and such a forecast together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import BoolArray, FloatArray
from predictor.probe.calibration import StageCalibration

SHARES = np.linspace(0.0, 1.0, 11)
"""Shares of the probe that are tried."""
LEAST = 1e-6
"""Probability below which a likelihood does not fall: one surprise must not decide."""


def conditioned(
    length_bins: LengthBins, survival: FloatArray, generated: IntArray, remaining_bins: LengthBins
) -> FloatArray:
    """Return P(remaining > edge | longer than t) on `remaining_bins`, [N, K+1], from the forecast of a whole length.

    Inside a bin the survival is linear, and what outlives the last edge has no end. A row that its forecast takes for
    ended is as if nothing were known beyond: it goes on for longer than every edge.

    Args:
        length_bins: Bins of the forecasts, Kp of them.
        survival: P(length > edge) of the answers, [N, Kp+1].
        generated: Tokens that are out, t, [N].
        remaining_bins: Bins of the remaining length.
    """
    edges = length_bins.as_array().astype(np.float64)
    wanted = generated[:, None] + remaining_bins.as_array()[None, :]
    values = np.stack([np.interp(x, edges, row) for x, row in zip(wanted, survival, strict=True)])
    alive = values[:, :1]
    return np.asarray(np.where(alive > LEAST, values / np.maximum(alive, LEAST), 1.0))


@dataclass(frozen=True, slots=True)
class Mixture:
    """A probe together with a predictor that reads the prompt: the mean of their survival functions, weighted.

    Attributes:
        share: Of the probe; the conditioned forecast has the rest.
        predictor: SHA-256 of what the predictor's folder holds; another one needs a share and levels of its own.
        calibration: Of the mixture.
    """

    share: float
    predictor: str
    calibration: StageCalibration

    def survival(self, probe: FloatArray, prompt: FloatArray) -> FloatArray:
        """Return the mixture of P(remaining > edge), both [N, K+1]; without a state (NaN) the prompt's alone."""
        mixed = self.share * probe + (1.0 - self.share) * prompt
        return np.where(np.isnan(probe), prompt, mixed)

    def to_dict(self) -> dict[str, Any]:
        """Return the mixture for JSON."""
        return {"share": self.share, "predictor": self.predictor, "calibration": self.calibration.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Mixture":
        """Return the mixture that `to_dict` wrote."""
        calibration = StageCalibration.from_dict(value["calibration"])
        return cls(float(value["share"]), str(value["predictor"]), calibration)


def best_share(
    bins: LengthBins, probe: FloatArray, prompt: FloatArray, remaining: IntArray, is_truncated: BoolArray
) -> float:
    """Return the share of the probe, of those tried, under which remaining lengths [N] are likeliest."""
    likelihoods = [
        float(np.log(np.maximum(share * ours + (1.0 - share) * theirs, LEAST)).sum())
        for ours, theirs in [[_probability(bins, each, remaining, is_truncated) for each in (probe, prompt)]]
        for share in SHARES
    ]
    return float(np.round(SHARES[int(np.argmax(likelihoods))], 6))


def _probability(bins: LengthBins, survival: FloatArray, remaining: IntArray, is_truncated: BoolArray) -> FloatArray:
    """Return the probability of what is known of each remaining length: its bin, or that it is longer."""
    rows, ended_in = np.arange(len(remaining)), bins.index(remaining)
    outlived = survival[rows, bins.num_survived(remaining)]
    inside = np.minimum(ended_in, bins.num_bins - 1)
    ended = survival[rows, inside] - survival[rows, inside + 1]
    return np.asarray(np.where(is_truncated | (ended_in >= bins.num_bins), outlived, ended))
