"""A probe in front of other people's engines: checked against the served model before the engine starts."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.probe.renewed_bounds import RenewedBounds
from pipelines.probe.use import ProbeRenewals, is_mixed, read_probe, require_model, state_reader
from pipelines.served_model.loading import ServedModel
from pipelines.served_model.weights_digest import weights_digest
from predictor.errors import InputError
from scheduler.integrations.transformers_states import Renewing, StateReader
from scheduler.request import Request

_log = logging.getLogger(__name__)


def probe_renewing(
    folder: Path, prompt_predictor: Path, served_model: Any, tokenizer: Any, tau: float, every: int
) -> Renewing:
    """Return how an engine renews forecasts with a probe.

    A model is told by its weights, not by its name, which is what the user calls its folder.

    Args:
        folder: Of the probe.
        prompt_predictor: Folder of what predicts from prompts; both together are read if the probe has learnt so.
        served_model: The transformers model that the engine runs.
        tokenizer: Its tokenizer, with its chat template.
        tau: Probability allowed below the bounds.
        every: Iterations, and so tokens, from one renewal of all to the next.

    Raises:
        InputError: There is no probe, it is of another model, layer or template, `tau` is finer than its calibration,
            or an option is missing or out of range.
    """
    if served_model is None:
        raise InputError("served_model: missing; a probe reads the states of the model that generates: give it")
    if every < 1:
        raise InputError(f"renew_every: is {every}, must be at least 1")
    probe = read_probe(folder, tau)
    name, config = probe.source.served_model, served_model.config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", 1 << 30))
    revision = weights_digest(served_model)
    served = ServedModel(name, served_model, tokenizer, served_model.generation_config, context, revision)
    require_model(probe, folder, served, "probe")
    mixed = is_mixed(probe, prompt_predictor)
    if probe.mixture is not None and not mixed:
        _log.warning("%s was trained next to another predictor than %s: it is read alone", folder, prompt_predictor)
    bounds = RenewedBounds(probe, tau, served_model.device, is_mixed=mixed)

    def make_states(cache: Any) -> StateReader:
        if cache.config is not config:
            raise InputError("served_model: is not the model that generates; give the one whose generate_batch is run")
        return state_reader(probe, served, int(cache.max_batch_tokens))

    def make_source(states: StateReader, request: Callable[[int], Request]) -> ProbeRenewals:
        return ProbeRenewals(bounds, states, request, every)

    return Renewing(make_states, make_source)
