"""What a saved predictor states about itself next to its weights, and the predictions that follow from it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Protocol

import numpy as np

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.bounds.censoring import complete_weights
from predictor.bounds.distribution import BoolArray, FloatArray, bound_and_median
from predictor.bounds.likeness import likeness
from predictor.errors import InputError
from predictor.prompts.features import NAMES
from predictor.prompts.request_features import FEATURE_NAMES, Contexts
from predictor.records.chat_turns import ChatOptions
from predictor.records.prompt_table import PromptTable
from predictor.records.records import Records

FORMAT_VERSION = 2
REPORTED_TAUS = (0.01, 0.05, 0.1, 0.25, 0.5)
NO_LIMIT = np.iinfo(np.int64).max

# Stands for a served model that the predictor does not know: the mixture of all it knows.
AVERAGE = "average"
# Before the name of one that it does not know: the mixture of those whose names say that they are like it.
LIKE = "like:"

MaxNewTokens = int | Sequence[int | None] | None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of N prompts in tokens: `lower_bounds` [N], `medians` [N], `survival` [N, K+1] on the length bins.

    `is_fallback` [N]: whether a row is marginal, made without looking at its prompt, for want of time or because the
    network's answer was not a number.
    """

    lower_bounds: IntArray
    medians: IntArray
    survival: FloatArray
    is_fallback: BoolArray


@dataclass(frozen=True, slots=True)
class PredictorSpec:
    """The part of a predictor that is not weights.

    `models` are the M served models it knows, in the order of the network's outputs; `served_model` is the one meant
    where none is named, one of them or `average`. `terms` are those of `predictor.prompts.terms`.
    """

    bins: LengthBins
    max_prompt_tokens: int
    pad_token_id: int
    models: tuple[str, ...]
    served_model: str
    terms: tuple[int, ...]
    calibrations: dict[str, PitCalibration]
    versions: dict[str, str]
    context_turns: int = 0
    """Earlier turns of a conversation that it was trained to see before the prompt, at most."""
    context_characters: int = 0
    """Characters of these turns, at most."""
    num_features: int = len(FEATURE_NAMES)
    """How many of `FEATURE_NAMES` it reads."""

    @property
    def chat_options(self) -> ChatOptions | None:
        """How messages become the prompt that this predictor was trained on; None for the last user message alone."""
        if not self.context_turns:
            return None
        return ChatOptions(context_turns=self.context_turns, context_characters=self.context_characters)

    @property
    def choices(self) -> tuple[str, ...]:
        """What may be asked for by name: the served models, and `average` where they are several."""
        return (*self.models, AVERAGE) if len(self.models) > 1 else self.models

    def choose(self, model: str | None = None) -> str:
        """Return the served model meant by `model`, the default where it is None; InputError where it is unknown.

        `average` of one served model is that one, and so is `like:NAME`, which stands for a model called NAME that the
        predictor does not know.
        """
        name = self.served_model if model is None else model
        is_new = name == AVERAGE or (name.startswith(LIKE) and len(name) > len(LIKE))
        if is_new and len(self.models) == 1:
            return self.models[0]
        if name not in self.choices and not is_new:
            raise InputError(
                f"model: {name!r} is not known to this predictor; it knows {', '.join(self.choices)}, and {LIKE}NAME "
                "stands for another, by what its name tells"
            )
        if is_new and name != AVERAGE and LIKE not in self.calibrations and self.calibrations:
            raise InputError(f"model: {name!r}: this predictor has no calibration for it; calibrate or export it again")
        return name

    def calibration(self, model: str | None = None) -> PitCalibration:
        """Return the calibration of a served model; InputError as `choose`."""
        name = self.choose(model)
        return self.calibrations[LIKE if name.startswith(LIKE) and name not in self.models else name]

    def survival_of(self, survivals: FloatArray, model: str | None = None) -> FloatArray:
        """Return the survival [N, K+1] of one served model from that of all, [N, M, K+1]; InputError as `choose`."""
        name = self.choose(model)
        if name in self.models:
            return survivals[:, self.models.index(name)]
        if name == AVERAGE:
            return np.asarray(survivals.mean(axis=1))
        return np.tensordot(survivals, likeness(name.removeprefix(LIKE), self.models), axes=(1, 0))

    def predictions(
        self,
        survival: FloatArray,
        tau: float,
        max_new_tokens: MaxNewTokens = None,
        model: str | None = None,
        *,
        is_fallback: BoolArray | None = None,
    ) -> Predictions:
        """Return the predictions for `model` that follow from its survival [N, K+1].

        `max_new_tokens` is one limit or one a prompt. Rows in `is_fallback` [N], and those whose survival is not a
        number, get the marginal predictions.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports, or `model` is unknown.
        """
        limits = _limits(max_new_tokens, len(survival))
        calibration = self.calibration(model)
        marginal: BoolArray = np.any(~np.isfinite(survival), axis=1)
        if is_fallback is not None:
            marginal = marginal | is_fallback
        if marginal.any():
            survival = np.where(marginal[:, None], calibration.marginal_survival(self.bins), survival)
        bounds, medians = bound_and_median(self.bins, survival, calibration.level(tau))
        if marginal.any():
            bounds = np.where(marginal, calibration.marginal_bound(tau), bounds)
            medians = np.where(marginal, calibration.marginal_median(), medians)
        return Predictions(np.minimum(bounds, limits), np.minimum(medians, limits), survival, marginal)

    def recalibrated(self, survivals: FloatArray, table: PromptTable) -> "PredictorSpec":
        """Return this specification calibrated on the survivals [P, M, K+1] and draws of P held-out prompts.

        Each served model gets its own calibration. Those of `average` and `like:` are for a model that nobody knows:
        the draws of each known one are scored by the average of the others, or by those that are like it, as if it were
        new, and each weighs the same.
        """
        calibrations: dict[str, PitCalibration] = {}
        parts: list[tuple[FloatArray, Records]] = []
        alike: list[tuple[FloatArray, Records]] = []
        for number, model, rows, records in table.columns():
            own = survivals[rows, number]
            calibrations[model] = PitCalibration.fit(self.bins, own, records.output_lens, records.is_truncated)
            parts.append(((survivals[rows].sum(axis=1) - own) / max(len(self.models) - 1, 1), records))
            alike.append((np.tensordot(survivals[rows], likeness(model, self.models), axes=(1, 0)), records))
        if len(self.models) > 1:
            calibrations[AVERAGE] = _of_a_new_model(self.bins, parts)
            calibrations[LIKE] = _of_a_new_model(self.bins, alike)
        return replace(self, calibrations=calibrations)

    def to_dict(self) -> dict[str, Any]:
        """Return the specification for JSON, with the marginal bounds of a few taus for other readers."""
        return {
            "format_version": FORMAT_VERSION,
            "models": list(self.models),
            "served_model": self.served_model,
            "max_length": self.bins.max_length,
            "bins": self.bins.to_list(),
            "max_prompt_tokens": self.max_prompt_tokens,
            "pad_token_id": self.pad_token_id,
            "marginal_bounds": {name: _marginal_bounds(value) for name, value in self.calibrations.items()},
            "terms": list(self.terms),
            "calibrations": {name: value.to_dict() for name, value in self.calibrations.items()},
            "versions": self.versions,
            "context_turns": self.context_turns,
            "context_characters": self.context_characters,
            "num_features": self.num_features,
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
                tuple(value["models"]),
                str(value["served_model"]),
                tuple(value["terms"]),
                {name: PitCalibration.from_dict(table) for name, table in value["calibrations"].items()},
                dict(value["versions"]),
                int(value.get("context_turns", 0)),
                int(value.get("context_characters", 0)),
                int(value.get("num_features", len(NAMES))),
            )
        except KeyError as error:
            raise InputError(f"{source}: {error.args[0]}: missing; write it again with this version of amin") from None


class LengthPredictorLike(Protocol):
    """What a trained and an exported predictor have in common; all follows from `spec` and `survivals`."""

    spec: PredictorSpec

    @property
    def bins(self) -> LengthBins:
        """The length bins of the survival arrays."""
        return self.spec.bins

    @abstractmethod
    def survivals(self, prompts: Sequence[str], contexts: Contexts = None) -> FloatArray:
        """Return the predicted survival [N, M, K+1] of N requests for every served model.

        `contexts` are what the requests say apart from their prompts, one a prompt; None where nothing is known.
        """

    def survival(self, prompts: Sequence[str], model: str | None = None, contexts: Contexts = None) -> FloatArray:
        """Return the predicted survival [N, K+1] of N requests for a served model; InputError where it is unknown."""
        return self.spec.survival_of(self.survivals(prompts, contexts), model)

    def predict(
        self,
        prompts: Sequence[str],
        tau: float = 0.1,
        max_new_tokens: MaxNewTokens = None,
        model: str | None = None,
        *,
        contexts: Contexts = None,
    ) -> Predictions:
        """Return lower bounds reached with probability >= 1 - tau, medians and survival of N prompts, in tokens.

        `model` is a served model that the predictor knows, or `average` for one it does not; default: the one that
        `spec` names. `contexts` are what the requests say apart from their prompts, one a prompt.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports, or `model` is unknown.
        """
        return self.spec.predictions(self.survival(prompts, model, contexts), tau, max_new_tokens, model)


def _of_a_new_model(bins: LengthBins, parts: Sequence[tuple[FloatArray, Records]]) -> PitCalibration:
    """Return the calibration on the records of each model and what the others say of them."""
    size = sum(len(records) for _, records in parts)
    weights = [
        draws * (size / (len(parts) * len(records)))
        for _, records in parts
        for draws in complete_weights(records.output_lens, records.is_truncated)
    ]
    lengths = [draws for _, records in parts for draws in records.output_lens]
    flags = [draws for _, records in parts for draws in records.is_truncated]
    return PitCalibration.fit(bins, np.concatenate([survival for survival, _ in parts]), lengths, flags, weights)


def _marginal_bounds(calibration: PitCalibration) -> dict[str, int]:
    size = calibration.lengths.num_prompts
    return {str(tau): calibration.marginal_bound(tau) for tau in REPORTED_TAUS if tau * (size + 1) >= 1}


def _limits(max_new_tokens: MaxNewTokens, num_prompts: int) -> IntArray:
    is_one = max_new_tokens is None or isinstance(max_new_tokens, int | float | Integral)
    limits: list[Any] = [max_new_tokens] * num_prompts if is_one else list(max_new_tokens)  # type: ignore[arg-type]
    if len(limits) != num_prompts:
        raise InputError(f"max_new_tokens: {len(limits)} limits for {num_prompts} prompts; give one, or one a prompt")
    for limit in limits:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
            raise InputError(f"max_new_tokens: must be a whole number of at least 1, not {limit!r}")
    return np.asarray([NO_LIMIT if limit is None else limit for limit in limits], dtype=np.int64)
