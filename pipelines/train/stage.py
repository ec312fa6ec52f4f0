"""Train a predictor: records to splits to a network, calibrated, measured and saved."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub.utils.logging
import lightning.pytorch
from transformers.utils.logging import disable_progress_bar

from pipelines.files import atomic_file, atomic_files, discard, write_json
from pipelines.memory import keep_freed_memory
from pipelines.output.claim import is_launched
from pipelines.probe.stage import train_probe
from pipelines.settings.train import TrainSettings
from pipelines.train.data import digest, load_splits
from pipelines.train.fit import calibrate, fit_predictor, new_predictor, save
from pipelines.train.plots import write_plots
from pipelines.train.reduce import check_reduced, fit_reduced, reduced_predictor
from pipelines.train.results import print_groups, print_table, results_on_test
from pipelines.train.resume import (
    DATA_FILE,
    METRICS_FILE,
    check_settings,
    input_digests,
    is_done,
    require_same_inputs,
    write_config,
)
from predictor.bounds.metrics import CLIPPED_AT
from predictor.records.records import Records, write_records
from predictor.splits.data_report import DataReport
from predictor.training.config import TrainConfig
from predictor.training.lightning_module import check_devices
from predictor.training.network import TorchLengthPredictor
from predictor.training.reduced import RECORDS, HeadsOnStates, is_reduced


def run(settings: TrainSettings) -> None:
    """Train as `settings` say and print how the predictor compares with the baselines.

    Raises:
        InputError: a setting, file or row that the user can fix, or a run that began with others.
    """
    keep_freed_memory()
    quiet_libraries()
    if settings.probe.states is not None:
        train_probe(settings)
        return
    config = settings.training
    inputs = {} if is_launched() else input_digests(config)
    if not is_launched():
        check_settings(settings)
        if is_done(settings, inputs):
            return
        check_devices(config)
    if is_reduced(config.data):
        check_reduced(config)
    splits, report = load_splits(readable(config), settings.conversations)
    quiet_libraries()  # some that reading data imports set their own levels
    print_splits(splits)
    fit(settings, splits, report, inputs)


def fit(settings: TrainSettings, splits: dict[str, Records], account: DataReport, inputs: dict[str, str]) -> None:
    """Train on the splits, from the text of prompts or from what a reduced log holds, and write the run."""
    config = settings.training
    length_predictor: TorchLengthPredictor | HeadsOnStates
    if is_reduced(config.data):
        length_predictor = reduced_predictor(config, splits["train"])
    else:
        length_predictor = new_predictor(config, settings.conversations, splits["train"])
    if not is_launched():
        begin(settings, splits, account, inputs)
    if isinstance(length_predictor, HeadsOnStates):
        fit_reduced(config, splits, length_predictor, settings.out, resume=settings.resume)
    else:
        fit_predictor(config, splits, length_predictor, settings.out, resume=settings.resume)
    if not is_launched():
        conclude(settings, splits, length_predictor)


def readable(config: TrainConfig) -> TrainConfig:
    """Return the settings with the records of a reduced log in place of its folder."""
    return replace(config, data=str(Path(config.data) / RECORDS)) if is_reduced(config.data) else config


def begin(settings: TrainSettings, splits: dict[str, Records], report: DataReport, inputs: dict[str, str]) -> None:
    """Write what a run begins with: settings, the account of its data, and the splits that `amin export` needs.

    Raises:
        InputError: the run that goes on began with other splits.
    """
    out, splits_sha256 = settings.out, digest(splits)
    if settings.resume:
        require_same_inputs(out, inputs, splits_sha256)
    elif settings.force and out.exists():
        discard(out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(settings)
    account = {"conversations": asdict(settings.conversations), **report.to_dict()}
    write_json(out / DATA_FILE, {**account, "splits_sha256": splits_sha256, "inputs": inputs})
    if not is_reduced(settings.training.data):  # an export cannot calibrate on prompts without text
        keep_splits(splits, out)


def conclude(
    settings: TrainSettings, splits: dict[str, Records], length_predictor: TorchLengthPredictor | HeadsOnStates
) -> None:
    """Calibrate, save and measure what was fitted; the measures, which say that the run is finished, come last."""
    config, out = settings.training, settings.out
    calibrate(length_predictor, splits["calibration"], shown=config.progress)
    save(config, length_predictor, out)
    results = results_on_test(config, splits, length_predictor)
    longest = min(length_predictor.spec.bins.max_length, CLIPPED_AT, config.length_cap or CLIPPED_AT)
    metrics = results.metrics(config.tau, longest)
    if config.split_by == "time":
        metrics["days"] = results.groups(config.tau, longest)
    with atomic_files(out, last=METRICS_FILE) as new:
        write_plots(results, length_predictor.spec, config.tau, new)
        write_json(new / METRICS_FILE, metrics)
    print_table(metrics, config.tau)
    if "days" in metrics:
        print_groups(metrics["days"])
    print(f"predictor, measures and plots: {out}")


def print_splits(splits: dict[str, Records]) -> None:
    """Print how many prompts, draws and served models each split has."""
    for name, records in splits.items():
        counts = f"{len(set(records.prompts))} prompts, {sum(map(len, records.output_lens))} draws"
        print(f"{name}: {counts}, {len(set(records.models))} served models")


def quiet_libraries() -> None:
    """Keep advertisements, notes on hardware and the bars of small loads from the terminal."""
    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.WARNING)
    disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def keep_splits(splits: dict[str, Records], out: Path) -> None:
    """Write `calibration.parquet` and `test.parquet`: `amin export` calibrates the exported graph on them."""
    for name in ("calibration", "test"):
        with atomic_file(out / f"{name}.parquet") as new:
            write_records(splits[name], new)
