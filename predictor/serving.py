"""The exported predictor: needs numpy, onnxruntime and tokenizers, nothing else."""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import BoolArray, FloatArray, survival_from_hazard_logits
from predictor.export_folder import MODEL, TOKENIZER, not_whole, read_export
from predictor.prompts.request_features import Contexts
from predictor.prompts.tokens import INPUT_NAMES, batches_by_length, encode_prompts, load_tokenizer
from predictor.spec import LengthPredictorLike, MaxNewTokens, Predictions

# Of two lengths: padding is tried as well, and the cut, so that no request is the first to pay for its memory.
_TRIAL_PROMPTS = ("Hello", "Why is the sky blue? " * 200)
# On a CPU the sum and the layer norm fused take seven times as long as the layer norm alone (onnxruntime 1.32).
_SLOW_FUSIONS = ["SkipLayerNormFusion"]
# Prompts between two looks at the clock, where time is limited.
_TIMED_BATCH_SIZE = 8


class LengthPredictor(LengthPredictorLike):
    """A length predictor read from a folder that `amin export` wrote; safe to share between threads."""

    def __init__(
        self, path: str | Path, *, batch_size: int = 32, num_threads: int = 0, num_batches_at_once: int = 1
    ) -> None:
        """Read the folder `path` and try it.

        Args:
            path: Written by `amin export`.
            batch_size: Prompts that go through the network together.
            num_threads: That share the work of a batch; 0 leaves the choice to onnxruntime.
            num_batches_at_once: Batches of one call that run next to each other. With one thread a batch, threads never
                wait for one another, so that a busy machine slows them in proportion.

        Raises:
            InputError: the folder is not an export, not whole, or of another format version.
        """
        folder = Path(path)
        self.spec = read_export(folder)
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(num_batches_at_once, "amin-batches")  # its threads start when they are needed
        self._terms = np.asarray(self.spec.terms, dtype=np.int64)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4
        # onnxruntime and tokenizers raise errors of many kinds, Exception itself among them.
        try:
            self._tokenizer = load_tokenizer(folder / TOKENIZER)
        except Exception as error:
            raise not_whole(folder / TOKENIZER, error) from None
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, ["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
            )
            self.survivals(_TRIAL_PROMPTS)
        except Exception as error:
            raise not_whole(folder / MODEL, error) from None

    def survivals(self, prompts: Sequence[str], contexts: Contexts = None) -> FloatArray:
        """Return the predicted survival [N, M, K+1] of N requests for every served model."""
        return self._survivals(prompts, contexts, None)

    def predict(
        self,
        prompts: Sequence[str],
        tau: float = 0.1,
        max_new_tokens: MaxNewTokens = None,
        model: str | None = None,
        *,
        contexts: Contexts = None,
        timeout: float | None = None,
    ) -> Predictions:
        """Return lower bounds reached with probability >= 1 - tau, medians and survival of N prompts, in tokens.

        `model` is a served model that the predictor knows, or `average` for one it does not; default: the one that
        the folder names. `contexts` are what the requests say apart from their prompts, one each. With a `timeout` in
        seconds, prompts are taken in order, and those not predicted by then get the marginal predictions of the
        calibration split, which ignore the prompt (`Predictions.is_fallback`). The network is stopped in the middle of
        its work, the tokenizer only between batches.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration split supports, or `model` is unknown.
        """
        if timeout is None:
            return super().predict(prompts, tau, max_new_tokens, model, contexts=contexts)
        survivals, is_fallback = self._survivals_within(prompts, contexts, timeout)
        survival = self.spec.survival_of(survivals, model)
        return self.spec.predictions(survival, tau, max_new_tokens, model, is_fallback=is_fallback)

    def _survivals(
        self, prompts: Sequence[str], contexts: Contexts, run_options: onnxruntime.RunOptions | None
    ) -> FloatArray:
        spec = self.spec
        inputs = encode_prompts(
            self._tokenizer, prompts, spec.max_prompt_tokens, self._terms, contexts, spec.num_features
        )
        logits = np.zeros((len(prompts), len(spec.models), spec.bins.num_bins), dtype=np.float32)

        def run(indices: IntArray) -> Any:
            arrays = inputs.batch(indices, spec.pad_token_id)
            return self._session.run(None, dict(zip(INPUT_NAMES, arrays, strict=True)), run_options)[0]

        batches = list(batches_by_length(inputs.token_ids, self._batch_size))
        # A single batch needs no other thread, and going to one costs time.
        outputs: Iterable[Any] = self._pool.map(run, batches) if len(batches) > 1 else map(run, batches)
        for indices, output in zip(batches, outputs, strict=True):
            if output.shape != (len(indices), *logits.shape[1:]):
                raise ValueError(f"predicts an array of {output.shape}, not {(len(indices), *logits.shape[1:])}")
            logits[indices] = output
        return survival_from_hazard_logits(logits)

    def _survivals_within(
        self, prompts: Sequence[str], contexts: Contexts, timeout: float
    ) -> tuple[FloatArray, BoolArray]:
        """Return the survivals as far as they came in `timeout` seconds, and which prompts [N] have none."""
        survivals = np.ones((len(prompts), len(self.spec.models), self.spec.bins.num_bins + 1))
        is_fallback = np.ones(len(prompts), dtype=np.bool_)
        size = min(self._batch_size, _TIMED_BATCH_SIZE)
        run_options, is_over = onnxruntime.RunOptions(), threading.Event()

        def stop() -> None:
            is_over.set()
            run_options.terminate = True

        timer = threading.Timer(min(max(0.0, timeout), threading.TIMEOUT_MAX), stop)
        timer.daemon = True
        timer.start()
        try:
            for start in range(0, len(prompts), size):
                rows = slice(start, start + size)
                if is_over.is_set():
                    break
                known = None if contexts is None else contexts[rows]
                survivals[rows] = self._survivals(prompts[rows], known, run_options)
                is_fallback[rows] = False
        except Exception:  # onnxruntime's own, where it was stopped
            if not is_over.is_set():
                raise
        finally:
            timer.cancel()
        return survivals, is_fallback
