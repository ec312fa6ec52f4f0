"""What a saved predictor states about itself beside its weights, and the predictions that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from predictor.bins import IntArray, LengthBins
from predictor.calibration import PitCalibration
from predictor.distribution import FloatArray, lower_bound, median
from predictor.errors import InputError

FORMAT_VERSION = 1
REPORTED_TAUS = (0.01, 0.05, 0.1, 0.25, 0.5)
NO_LIMIT = np.iinfo(np.int64).max

MaxNewTokens = int | Sequence[int | None] | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of N prompts in tokens: `lower_bounds` [N], `medians` [N], `survival` [N, K+1] on the length bins."""

    lower_bounds: IntArray
    medians: IntArray
    survival: FloatArray


@dataclass(frozen=True, slots=True)
class PredictorSpec:
    """The part of a predictor that is not weights: bins, prompt cut, calibration, served model."""

    bins: LengthBins
    max_prompt_tokens: int
    pad_token_id: int
    served_model: str
    calibration: PitCalibration
    versions: dict[str, str]

    def predictions(self, survival: FloatArray, tau: float, max_new_tokens: MaxNewTokens = None) -> Predictions:
        """Return the predictions that follow from survival [N, K+1]; `max_new_tokens` is one limit or one a prompt.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports.
        """
        limits = _limits(max_new_tokens, len(survival))
        bounds = lower_bound(self.bins, survival, self.calibration.level(tau), limits)
        return Predictions(bounds, np.minimum(median(self.bins, survival), limits), survival)

    def recalibrated(self, survival: FloatArray, output_lens: Sequence[IntArray]) -> "PredictorSpec":
        """Return this specification, calibrated on the survival [N, K+1] and the draws of N held-out prompts."""
        return replace(self, calibration=PitCalibration.fit(self.bins, survival, output_lens))

    def to_dict(self) -> dict[str, Any]:
        """Return the specification for JSON, with the marginal bounds of a few taus for other readers."""
        enough = [tau for tau in REPORTED_TAUS if tau * (self.calibration.lengths.num_prompts + 1) >= 1]
        return {
            "format_version": FORMAT_VERSION,
            "served_model": self.served_model,
            "max_length": self.bins.max_length,
            "bins": self.bins.to_list(),
            "max_prompt_tokens": self.max_prompt_tokens,
            "pad_token_id": self.pad_token_id,
            "marginal_bounds": {str(tau): self.calibration.marginal_bound(tau) for tau in enough},
            "calibration": self.calibration.to_dict(),
            "versions": self.versions,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], source: str) -> "PredictorSpec":
        """Return the specification read from `source`; InputError where its format is not this version's."""
        if value.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{source}: format_version: {value.get('format_version')!r} is not {FORMAT_VERSION}; "
                "write it again with this version of amin"
            )
        try:
            return cls(
                LengthBins.from_list(value["bins"]),
                int(value["max_prompt_tokens"]),
                int(value["pad_token_id"]),
                str(value["served_model"]),
                PitCalibration.from_dict(value["calibration"]),
                dict(value["versions"]),
            )
        except KeyError as error:
            raise InputError(f"{source}: {error.args[0]}: missing; write it again with this version of amin") from None


class LengthPredictorLike(Protocol):
    """What a trained and an exported predictor have in common."""

    @property
    def spec(self) -> PredictorSpec:
        """Bins, calibration and the rest."""

    @property
    def bins(self) -> LengthBins:
        """The length bins of the survival arrays."""

    def survival(self, prompts: Sequence[str]) -> FloatArray:
        """Return the predicted survival [N, K+1]."""

    def predict(self, prompts: Sequence[str], tau: float = 0.1, max_new_tokens: MaxNewTokens = None) -> Predictions:
        """Return the predictions of N prompts."""


def _limits(max_new_tokens: MaxNewTokens, num_prompts: int) -> IntArray:
    if max_new_tokens is None or isinstance(max_new_tokens, int):
        return np.full(num_prompts, max_new_tokens or NO_LIMIT, dtype=np.int64)
    if len(max_new_tokens) != num_prompts:
        raise ValueError(f"max_new_tokens: {len(max_new_tokens)} limits for {num_prompts} prompts")
    return np.asarray([limit or NO_LIMIT for limit in max_new_tokens], dtype=np.int64)
