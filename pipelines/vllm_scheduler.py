"""vLLM's scheduler under a policy, with predictions made in vLLM's own process as requests arrive.

    vllm serve MODEL --scheduler-cls pipelines.vllm_scheduler.PredictingScheduler
        --additional-config '{"amin": {"policy": "amin-survival", "predictor": "serving"}}'

Further keys beside `predictor` (a folder that `amin export` wrote): `model` (the served model it predicts for), `tau`,
`timeout` (seconds), `tokenizer` (folder of the served model's tokenizer; by default the one that vLLM uses). A request
that brings a bound of its own keeps it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipelines.plug_ins import background_predictions
from pipelines.request_bounds import RequestBounds
from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.vllm import AminScheduler


class PredictingScheduler(AminScheduler):
    """`AminScheduler` that predicts the bounds of requests which bring none."""

    def make_predictions(self, settings: Mapping[str, Any]) -> BackgroundPredictions:
        """Return the predictor that `settings` name, at work on a thread beside the engine's loop.

        Raises:
            InputError: No predictor is named, or it cannot be read, or the tokenizer's tokenizer.json is not there.
        """
        if "predictor" not in settings:
            raise InputError('additional_config: amin: predictor: missing; give a folder that "amin export" wrote')
        file = Path(settings.get("tokenizer", self.vllm_config.model_config.tokenizer)) / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"additional_config: amin: tokenizer: {file}: no such file")
        tokenizer = Tokenizer.from_file(str(file))

        def decode(token_ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))

        bounds = RequestBounds.read(Path(settings["predictor"]), settings.get("model"), settings.get("tau", 0.1))
        return background_predictions(bounds, decode, settings.get("timeout", 0.05))
