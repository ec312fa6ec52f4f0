"""The predictor that reads the prompt, next to a probe: what it says of answers that have gone on for a while."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.predict import survivals_with_progress
from pipelines.predictor_digest import predictor_sha256
from pipelines.probe.data import SplitStates
from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.errors import InputError
from predictor.probe.conditioned import conditioned
from predictor.resolve import resolve_predictor
from predictor.spec import LengthPredictorLike


@dataclass(frozen=True, slots=True)
class PromptPredictor:
    """A prompt-only predictor of the served model that a probe is of.

    Attributes:
        length_predictor: The predictor.
        model: The served model that is predicted for.
        sha256: Of what its predictions depend on, by which a mixture knows it.
    """

    length_predictor: LengthPredictorLike
    model: str
    sha256: str

    @classmethod
    def load(cls, path: Path, served_model: str) -> "PromptPredictor":
        """Return the predictor of a run or an export; InputError where it does not know the served model."""
        length_predictor = resolve_predictor(path)
        if served_model not in length_predictor.spec.models:
            known = ", ".join(length_predictor.spec.models)
            raise InputError(f"--prompt-predictor: {path} predicts for {known}; the states are of {served_model}")
        return cls(length_predictor, served_model, predictor_sha256(path))

    def conditioned(self, split: SplitStates, bins: LengthBins, *, shown: bool) -> FloatArray:
        """Return P(remaining > edge of `bins`) of each state, [S, K+1], from its prompt alone."""
        records, spec = split.records, self.length_predictor.spec
        survivals = survivals_with_progress(
            self.length_predictor, records.prompts, "prompt-only", records.contexts, shown=shown
        )
        survival = spec.survival_of(survivals, self.model)[split.record_of]
        return conditioned(spec.bins, survival, split.data.states.generated, bins)
