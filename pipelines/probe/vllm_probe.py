"""A probe in vLLM: checked against engine and served model before anything is served, and read by its worker."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from numpy.typing import NDArray

from pipelines.probe.renewed_bounds import CalibratedBounds, RenewedBounds
from pipelines.probe.use import is_mixed, read_probe
from pipelines.served_model.hidden_states import template_digest
from pipelines.served_model.weights_digest import folder_digest
from predictor.errors import InputError
from predictor.probe.probe import Probe, survival_from_logits
from predictor.probe.states import StateSource
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.integrations.vllm_renewals import ReportedRenewals
from scheduler.integrations.vllm_settings import Settings
from scheduler.policies import POLICIES, Reads
from scheduler.renewals import Renewal
from scheduler.request import Request

_log = logging.getLogger(__name__)
WORKER = "pipelines.probe.vllm_worker.ProbingWorker"
SCHEDULER = "pipelines.vllm_scheduler.PredictingScheduler"
FIELD = "additional_config: amin: probe"


def probe_of(settings: Settings) -> Probe | None:
    """Return the probe that the settings name; None without one, or where the policy is not in charge.

    Raises:
        InputError: There is none in the folder, or tau is finer than its calibration.
    """
    folder = settings.prediction.get("probe")
    if folder is None or settings.mode != "on":
        return None
    return read_probe(Path(folder), settings.prediction.get("tau", 0.1))


def require_engine(config: Any) -> None:
    """Raise InputError where states cannot be read in this engine; `config` is vLLM's."""
    parallel, quantization = config.parallel_config, config.model_config.quantization
    refused = {
        "pipeline parallelism: the layer and the scheduler's rank differ": parallel.pipeline_parallel_size > 1,
        "context parallelism: a rank has the states of its own tokens alone": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "two batches at once (--enable-dbo)": parallel.enable_dbo,
        "speculative decoding: states of tokens that are rejected would count": config.speculative_config is not None,
        "LoRA adapters: their states are another model's": config.lora_config is not None,
        "a KV connector: tokens from elsewhere have no states": config.kv_transfer_config is not None,
        f"weights quantised as {quantization}: the probe's model is told by its own": quantization is not None,
    }
    if config.scheduler_config.scheduler_cls is None:
        raise InputError(f"{FIELD}: vLLM's own scheduler asks for no forecasts; add --scheduler-cls {SCHEDULER}")
    for reason, is_so in refused.items():
        if is_so:
            raise InputError(f"{FIELD}: does not work with {reason}; leave one of the two out")


def require_served(probe: Probe, folder: Path, config: Any, tokenizer: Any) -> None:
    """Raise InputError where the probe is of another model, layer or template than vLLM serves.

    A model is told by its weights, not by its name.
    """
    model = config.model_config
    (layer,), most = probe.source.layers, int(model.hf_text_config.num_hidden_layers)
    if not 0 <= layer <= most:
        raise InputError(f"{folder}: layers: the model has 0 (the embedding) to {most}, not {layer}")
    weights = folder_digest(folder_of(model), trust_remote_code=model.trust_remote_code)
    served = StateSource(
        probe.source.served_model, weights, template_digest(tokenizer), (layer,), int(model.get_hidden_size())
    )
    probe.source.require(served, folder)


def folder_of(model_config: Any) -> Path:
    """Return where vLLM has the model's files: the folder it was given, or what it fetched from the hub."""
    folder = Path(model_config.model)
    if folder.is_dir():
        return folder
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model_config.model, revision=model_config.revision, allow_patterns=["*.safetensors", "*.json"]
            )
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{FIELD}: the weights of {model_config.model} cannot be read ({reason})") from error


class WorkerRenewals:
    """Makes renewals of what vLLM's worker read with a probe."""

    def __init__(self, bounds: RenewedBounds) -> None:
        """Start with nothing admitted."""
        self._bounds, self._calibrated = bounds, CalibratedBounds()

    @property
    def num_failed(self) -> int:
        """States that were no numbers: such a request keeps the forecast that it had."""
        return self._bounds.num_failed

    def start(self, index: int) -> None:
        """Take note that a request was admitted."""
        self._calibrated.start(index)

    def end(self, index: int) -> None:
        """Let go of a request."""
        self._calibrated.start(index)

    def renew(
        self, indices: Sequence[int], generated: Sequence[int], logits: NDArray[np.float32], requests: Sequence[Request]
    ) -> Sequence[tuple[int, Renewal]]:
        """Return the renewals of requests, which are given as their prompts alone were predicted."""
        survival = survival_from_logits(logits)
        renewed = self._bounds.renew_from(survival, generated, [request.forecast for request in requests])
        pairs = zip(indices, renewed, strict=True)
        return [(index, self._calibrated.bounded(index, renewal)) for index, renewal in pairs if renewal is not None]


def probe_renewals(settings: Settings, worker: str, metrics: Metrics) -> ReportedRenewals | None:
    """Return what renews in vLLM's scheduler; None without a probe.

    Args:
        settings: Of the plug-in.
        worker: Name of vLLM's worker class.
        metrics: Where renewals are counted.

    Raises:
        InputError: The worker reads no probes, the policy no predictions, or a setting is out of range.
    """
    given = settings.prediction
    if (probe := probe_of(settings)) is None:
        return None
    every = given.get("renew_every", 16)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"additional_config: amin: renew_every: {every!r}, must be an integer >= 1")
    if worker != WORKER:
        raise InputError(f"{FIELD}: vLLM's worker has no states to give; add --worker-cls {WORKER}")
    if POLICIES[settings.policy].reads is not Reads.PREDICTION:
        raise InputError(f"{FIELD}: the policy {settings.policy!r} reads no predictions; leave the probe out")
    folder, predictor = Path(given["probe"]), Path(given["predictor"])
    mixed = is_mixed(probe, predictor)
    if probe.mixture is not None and not mixed:
        _log.warning("%s was trained next to another predictor than %s: it is read alone", folder, predictor)
    bounds = RenewedBounds(probe, given.get("tau", 0.1), is_mixed=mixed)
    return ReportedRenewals(WorkerRenewals(bounds), every, metrics)
