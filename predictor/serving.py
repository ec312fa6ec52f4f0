"""The exported predictor: needs numpy, onnxruntime and tokenizers, nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from predictor.bins import LengthBins
from predictor.distribution import FloatArray, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.prompt_tokens import INPUT_NAMES, batches_by_length, encode_prompts, load_tokenizer
from predictor.spec import MaxNewTokens, Predictions, PredictorSpec


class LengthPredictor:
    """A length predictor read from a folder that `amin export` wrote; safe to share between threads."""

    def __init__(self, path: str | Path, *, batch_size: int = 32, num_threads: int = 0) -> None:
        """Read the folder `path`; `num_threads` 0 leaves the choice to onnxruntime.

        Raises:
            InputError: the folder is not an export, or of another format version.
        """
        folder = Path(path)
        manifest, model = folder / "manifest.json", folder / "model.onnx"
        for file in (manifest, model):
            if not file.is_file():
                raise InputError(f"{file}: no such file; {folder} is not a folder written by `amin export`")
        self.spec = PredictorSpec.from_dict(json.loads(manifest.read_text()), str(manifest))
        self._tokenizer = load_tokenizer(folder / "tokenizer.json")
        self._batch_size = batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    @property
    def bins(self) -> LengthBins:
        """The length bins of the survival arrays."""
        return self.spec.bins

    def survivals(self, prompts: Sequence[str]) -> FloatArray:
        """Return the predicted survival [N, M, K+1] of N prompts for every served model."""
        spec = self.spec
        inputs = encode_prompts(self._tokenizer, prompts, spec.max_prompt_tokens, spec.terms)
        logits = np.zeros((len(prompts), len(spec.models), spec.bins.num_bins), dtype=np.float32)
        for indices in batches_by_length(inputs.token_ids, self._batch_size):
            arrays = inputs.batch(indices, spec.pad_token_id)
            logits[indices] = self._session.run(None, dict(zip(INPUT_NAMES, arrays, strict=True)))[0]
        return survival_from_hazard_logits(logits)

    def survival(self, prompts: Sequence[str], model: str | None = None) -> FloatArray:
        """Return the predicted survival [N, K+1] of N prompts for a served model; InputError where it is unknown."""
        return self.spec.survival_of(self.survivals(prompts), model)

    def predict(
        self,
        prompts: Sequence[str],
        tau: float = 0.1,
        max_new_tokens: MaxNewTokens = None,
        model: str | None = None,
    ) -> Predictions:
        """Return lower bounds reached with probability >= 1 - tau, medians and survival of N prompts, in tokens.

        `model` is a served model that the predictor knows, or `average` for one it does not; default: the one that
        the folder names.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports, or `model` is unknown.
        """
        return self.spec.predictions(self.survival(prompts, model), tau, max_new_tokens, model)
