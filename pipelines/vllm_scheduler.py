"""vLLM's scheduler under a policy, with predictions made in vLLM's own process as requests arrive.

    vllm serve MODEL --scheduler-cls pipelines.vllm_scheduler.PredictingScheduler
        --additional-config '{"amin": {"predictor": "serving"}}'

Further keys next to `predictor` (a folder that `amin export` wrote): `model` (the served model it predicts for), `tau`,
`timeout` (seconds), `tokenizer` (folder or hub name; by default the one vLLM uses), `state` (a file that keeps what is
learnt from the answers over a restart), `probe` (a folder of `amin train --states`; `pipelines.probe.vllm_worker`) and
`renew_every`. A request that brings a bound of its own keeps it. Another export that takes the folder's place is taken
up within seconds, but not with a probe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config, get_tokenizer

from pipelines.current_bounds import watched_bounds
from pipelines.served_model.prompt_text import prompt_reader
from pipelines.vllm_learning import LearningPredictions, state_file_of
from scheduler.errors import InputError
from scheduler.integrations.vllm import AminScheduler
from scheduler.integrations.vllm_renewals import ReportedRenewals
from scheduler.integrations.vllm_settings import Settings


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
        folder, state = Path(settings["predictor"]), None
        if "state" in settings:
            state = state_file_of(Path(settings["state"]), self.vllm_config.parallel_config.data_parallel_index)
        bounds, renewed = watched_bounds(folder, settings.get("model"), settings.get("tau", 0.1))
        if "probe" in settings:
            renewed.close()  # a probe is weighed against the forecasts of this predictor
        self.predictions = LearningPredictions(
            bounds, prompt_reader(tokenizer), settings.get("timeout", 0.05), state, renewed
        )
        return self.predictions

    def make_renewals(self, settings: Settings) -> ReportedRenewals | None:
        """Return what renews forecasts by the probe that `settings` name; None without one.

        Raises:
            InputError: There is no such probe, the policy reads no predictions, or the worker does not read probes.
        """
        given = settings.prediction
        if "probe" not in given:
            if "renew_every" in given:
                raise InputError(
                    "additional_config: amin: renew_every: without a probe nothing is renewed; leave it out"
                )
            return None
        from pipelines.probe.vllm_probe import probe_renewals  # needs torch, which only a probe does

        return probe_renewals(settings, self.vllm_config.parallel_config.worker_cls, self.metrics)

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
