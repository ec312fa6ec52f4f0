"""vLLM's scheduler under a policy, with predictions made in vLLM's own process as requests arrive.

    vllm serve MODEL --scheduler-cls pipelines.vllm_scheduler.PredictingScheduler
        --additional-config '{"amin": {"predictor": "serving"}}'

Further keys next to `predictor` (a folder that `amin export` wrote): `model` (the served model it predicts for), `tau`,
`timeout` (seconds), `tokenizer` (folder or hub name; by default the one vLLM uses), `state` (a file that keeps what is
learnt from the answers over a restart). A request that brings a bound of its own keeps it. Another export that takes
the folder's place is taken up within seconds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config, get_tokenizer

from pipelines.current_bounds import watched_bounds
from pipelines.served_model.prompt_text import prompt_reader
from pipelines.vllm_learning import LearningPredictions
from scheduler.errors import InputError
from scheduler.integrations.vllm import AminScheduler


class PredictingScheduler(AminScheduler):
    """`AminScheduler` that predicts the bounds of requests which bring none."""

    predictions: LearningPredictions | None = None

    def make_predictions(self, settings: Mapping[str, Any]) -> LearningPredictions:
        """Return the predictor that `settings` name, at work on a thread of its own.

        Raises:
            InputError: No predictor is named, or it cannot be read, or there is no tokenizer.
        """
        if "predictor" not in settings:
            raise InputError('additional_config: amin: predictor: missing; give a folder that "amin export" wrote')
        tokenizer = _tokenizer(self.vllm_config.model_config, settings.get("tokenizer"))
        folder, state = Path(settings["predictor"]), Path(settings["state"]) if "state" in settings else None
        bounds, renewed = watched_bounds(folder, settings.get("model"), settings.get("tau", 0.1))
        self.predictions = LearningPredictions(
            bounds, prompt_reader(tokenizer), settings.get("timeout", 0.05), state, renewed
        )
        return self.predictions

    def shutdown(self) -> None:
        """Stop vLLM's scheduler, and keep what was learnt."""
        super().shutdown()
        if self.predictions is not None:
            self.predictions.close()


def _tokenizer(model_config: Any, name: str | None) -> Any:
    """Return vLLM's tokenizer, or the one named, resolved as vLLM does: a folder or a hub name.

    Raises:
        InputError: There is none.
    """
    if name is None:
        tokenizer = cached_tokenizer_from_config(model_config)
        if tokenizer is None:
            raise InputError("additional_config: amin: tokenizer: missing; vLLM has none (--skip-tokenizer-init)")
        return tokenizer
    try:
        return get_tokenizer(name, trust_remote_code=model_config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"additional_config: amin: tokenizer: {name}: {str(error).splitlines()[0]}") from error
