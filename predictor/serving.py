"""The exported predictor: needs numpy, onnxruntime and tokenizers, nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from predictor.bins import LengthBins
from predictor.distribution import FloatArray, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.prompt_tokens import batches_by_length, encode_prompts, load_tokenizer, pad
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

    def survival(self, prompts: Sequence[str]) -> FloatArray:
        """Return the predicted survival [N, K+1] of N prompts."""
        token_ids = encode_prompts(self._tokenizer, prompts, self.spec.max_prompt_tokens)
        logits = np.zeros((len(prompts), self.bins.num_bins), dtype=np.float32)
        for indices in batches_by_length(token_ids, self._batch_size):
            input_ids, attention_mask = pad([token_ids[i] for i in indices], self.spec.pad_token_id)
            feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
            logits[indices] = self._session.run(None, feeds)[0]
        return survival_from_hazard_logits(logits)

    def predict(self, prompts: Sequence[str], tau: float = 0.1, max_new_tokens: MaxNewTokens = None) -> Predictions:
        """Return lower bounds reached with probability >= 1 - tau, medians and survival of N prompts, in tokens.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports.
        """
        return self.spec.predictions(self.survival(prompts), tau, max_new_tokens)
