"""Train a predictor: records to splits to a network, calibrated, measured and saved."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.train.data import digest, load_splits
from pipelines.train.fit import calibrate, fit_predictor, new_predictor, save
from pipelines.train.results import measure, print_table
from pipelines.train.settings import add_arguments, is_launched, require_same_data, resolve_chat_options, resolve_config

if TYPE_CHECKING:
    from predictor.records.chat_turns import ChatOptions
    from predictor.records.records import Records
    from predictor.splits.data_report import DataReport
    from predictor.training.config import TrainConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train and calibrate a predictor of lower bounds on response length"


def run(args: argparse.Namespace) -> None:
    """Train as `args` say and print how the predictor compares with the baselines.

    Raises:
        InputError: a setting, file or row that the user can mend.
    """
    from pipelines.files import write_json
    from pipelines.memory import keep_freed_memory
    from pipelines.train.plots import write_plots

    keep_freed_memory()
    out = Path(args.out)
    config = resolve_config(args, out)
    quiet_libraries()
    chat_options = resolve_chat_options(args, out)
    splits, report = load_splits(config, chat_options)
    for name, records in splits.items():
        counts = f"{len(set(records.prompts))} prompts, {sum(map(len, records.output_lens))} draws"
        print(f"{name}: {counts}, {len(set(records.models))} served models")
    quiet_libraries()
    if not is_launched():
        from predictor.training.lightning_module import check_devices

        check_devices(config)
    length_predictor = new_predictor(config, chat_options, splits["train"])
    if not is_launched():
        splits_sha256 = digest(splits)
        require_same_data(out, config.data, splits_sha256)
        out.mkdir(parents=True, exist_ok=True)
        write_config(config, out)
        write_data_report(chat_options, report, splits_sha256, out)
        keep_splits(splits, out)
    fit_predictor(config, splits, length_predictor, out, resume=args.resume)
    if is_launched():
        return
    calibrate(length_predictor, splits["calibration"], shown=config.progress)
    save(config, length_predictor, out)
    results = measure(config, splits, length_predictor)
    metrics = results.metrics(config.tau, config.max_length)
    write_json(out / "metrics.json", metrics)
    write_plots(results, length_predictor.spec, config.tau, out)
    print_table(metrics, config.tau)
    print(f"predictor, measures and plots: {out}")


def quiet_libraries() -> None:
    """Keep advertisements, notes on hardware and the bars of small loads from the terminal."""
    import logging

    import huggingface_hub.utils.logging
    import lightning.pytorch
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.WARNING)
    disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def write_config(config: "TrainConfig", out: Path) -> None:
    """Write the resolved settings and the versions to `config.yaml`."""
    import yaml

    from pipelines.files import atomic_file
    from predictor.training.checkpoint import versions
    from predictor.training.config import to_dict

    with atomic_file(out / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump({**to_dict(config), "versions": versions()}, sort_keys=False))


def write_data_report(chat_options: "ChatOptions", report: "DataReport", splits_sha256: str, out: Path) -> None:
    """Write `data.json`: how conversations were read, what became of the rows, and the audit of the splits."""
    from dataclasses import asdict

    from pipelines.files import write_json

    account = {"conversations": asdict(chat_options), **report.to_dict(), "splits_sha256": splits_sha256}
    write_json(out / "data.json", account)


def keep_splits(splits: dict[str, "Records"], out: Path) -> None:
    """Write `calibration.parquet` and `test.parquet`: `amin export` calibrates the exported graph on them."""
    from pipelines.files import atomic_file
    from predictor.records.records import write_records

    for name in ("calibration", "test"):
        with atomic_file(out / f"{name}.parquet") as aside:
            write_records(splits[name], aside)
