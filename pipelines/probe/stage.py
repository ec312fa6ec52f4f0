"""Train a probe: states of a served model to a small network, calibrated, measured and saved."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch

from pipelines.files import atomic_files, content_sha256, discard, write_json
from pipelines.output.claim import is_launched
from pipelines.probe.data import SplitStates, load_states, read_matching_source
from pipelines.probe.measures import measure, print_table
from pipelines.probe.plots import write_plot
from pipelines.probe.prompt_predictor import PromptPredictor
from pipelines.settings.train import TrainSettings
from pipelines.train.data import digest, load_splits
from pipelines.train.resume import (
    DATA_FILE,
    METRICS_FILE,
    check_settings,
    input_digests,
    is_done,
    write_config,
)
from predictor.bounds.distribution import FloatArray
from predictor.errors import InputError
from predictor.probe.calibration import StageCalibration
from predictor.probe.conditioned import Mixture, best_share
from predictor.probe.fit import FittedProbe, ProbeConfig, fit_probe
from predictor.probe.probe import remaining_survival
from predictor.probe.states import StateSource
from predictor.records.prompt_table import served_models
from predictor.records.records import Records


def train_probe(settings: TrainSettings) -> None:
    """Train a probe as `settings` say and print how it compares with what the prompt alone tells.

    Raises:
        InputError: a setting, file or row that the user can fix; states that are not of the records.
    """
    config, out = settings.training, settings.out
    if is_launched():
        raise InputError("--devices: a probe trains on one device; leave the option out")
    check_settings(settings)
    states = Path(str(settings.probe.states))
    source = read_matching_source(states, config.data)
    inputs = {**input_digests(config), f"states {states}": content_sha256(states)}
    if is_done(settings, inputs):
        return
    predictor_path = settings.probe.prompt_predictor
    prompt = None if predictor_path is None else PromptPredictor.load(Path(predictor_path), source.served_model)
    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.WARNING)
    splits, report = load_splits(config, settings.conversations)
    _require_model(config.data, splits, source)
    data = load_states(states, source, config.data, splits)
    for name, split in data.items():
        answers = len(set(zip(split.data.states.prompt, split.data.states.draw, strict=True)))
        print(f"{name}: {len(split.records)} prompts, {answers} answers, {len(split.data.states)} states")
    if settings.force and out.exists():
        discard(out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(settings)
    write_json(out / DATA_FILE, {**report.to_dict(), "splits_sha256": digest(splits), "inputs": inputs})
    _train(settings, data, source, prompt)


def _train(
    settings: TrainSettings, data: Mapping[str, SplitStates], source: StateSource, prompt: PromptPredictor | None
) -> None:
    config, out = settings.training, settings.out
    made = ProbeConfig(tau=config.tau, seed=config.seed, progress=config.progress)
    fitted = fit_probe({name: split.data for name, split in data.items()}, source, made)
    for layer, loss in fitted.losses.items():
        print(f"layer {layer}: validation pinball loss {loss:.3f} tokens" + " *" * (layer == fitted.probe.layer))
    curves = None
    if prompt is not None:
        fitted, curves = _with_prompt(fitted, data, prompt, shown=config.progress)
    metrics: dict[str, Any] = {
        "tau": config.tau,
        "source": fitted.probe.source.to_dict(),
        "validation_pinball": {str(layer): loss for layer, loss in fitted.losses.items()},
        "share_of_probe_in_both": None if fitted.probe.mixture is None else fitted.probe.mixture.share,
        "test": measure(fitted, data["test"].data, config.tau, curves),
    }
    with atomic_files(out, last=METRICS_FILE) as new:
        fitted.probe.save(new)
        write_plot(metrics["test"], config.tau, new / "by_generated.png")
        write_json(new / METRICS_FILE, metrics)
    print_table(metrics, config.tau)
    print(f"probe, measures and plot: {out}")


def _with_prompt(
    fitted: FittedProbe, data: Mapping[str, SplitStates], prompt: PromptPredictor, *, shown: bool
) -> tuple[FittedProbe, tuple[FloatArray, StageCalibration]]:
    """Return the probe with its mixture, and the conditioned curves of the test split with their own calibration."""
    probe = fitted.probe
    ours, theirs = {}, {}
    for name in ("validation", "calibration", "test"):
        theirs[name] = prompt.conditioned(data[name], probe.bins, shown=shown)
        ours[name] = remaining_survival(probe.network, data[name].data.inputs(fitted.place))
    held_out = data["validation"].data
    share = best_share(probe.bins, ours["validation"], theirs["validation"], held_out.remaining, held_out.is_truncated)
    fresh = data["calibration"].data
    alone = StageCalibration.fit(fresh.scores(probe.bins, theirs["calibration"]))
    mixed = share * ours["calibration"] + (1.0 - share) * theirs["calibration"]
    mixture = Mixture(share, prompt.sha256, StageCalibration.fit(fresh.scores(probe.bins, mixed)))
    print(f"both together: {share:.1f} of the probe, {1 - share:.1f} of the conditioned curve")
    return replace(fitted, probe=replace(probe, mixture=mixture)), (theirs["test"], alone)


def _require_model(data: str, splits: Mapping[str, Records], source: StateSource) -> None:
    found = sorted({model for records in splits.values() for model in served_models(records)})
    if found != [source.served_model]:
        raise InputError(f"{data}: model: {', '.join(found)}; the states are of {source.served_model}")
