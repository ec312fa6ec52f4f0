"""Train a predictor: records to splits to a network, calibrated, measured and saved."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from predictor.chat_turns import ChatOptions
    from predictor.config import TrainConfig
    from predictor.data_report import DataReport
    from predictor.network import TorchLengthPredictor
    from predictor.records import Records

HELP = "train and calibrate a predictor of lower bounds on response length"

TABLE = (
    ("coverage", "coverage", "{:.3f}"),
    ("worst group", "worst_group_coverage", "{:.3f}"),
    ("pinball", "pinball_loss", "{:.1f}"),
    ("tightness", "tightness", "{:.3f}"),
    ("kendall tau", "kendall_tau", "{:.3f}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of `predictor.config.TrainConfig`."""
    from predictor.config import TrainConfig, field_descriptions, field_type

    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--config", type=Path, help="YAML file of settings; options given here override it")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole epoch in --out")
    defaults = TrainConfig()
    for name, description in field_descriptions().items():
        kind, _ = field_type(name)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
        default = getattr(defaults, name)
        shown = description.rstrip(".") + ("" if default in (None, "") else f" (default: {default})")
        parser.add_argument(f"--{name.replace('_', '-')}", help=shown.replace("%", "%%"), **options)
    add_chat_arguments(parser)


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `predictor.chat_turns.ChatOptions`."""
    chats = parser.add_argument_group("conversation data")
    chats.add_argument(
        "--turn", choices=["first", "last"], default=argparse.SUPPRESS,
        help="the prompt: the opening user message, or the last that was answered (default: first)",
    )  # fmt: skip
    chats.add_argument(
        "--context-turns", type=int, metavar="N", default=argparse.SUPPRESS,
        help="earlier messages put before the prompt, at most (default: 0)",
    )  # fmt: skip
    chats.add_argument(
        "--context-characters", type=int, metavar="N", default=argparse.SUPPRESS,
        help="characters of these messages, at most; the latest stay (default: 2000)",
    )  # fmt: skip
    chats.add_argument(
        "--language", metavar="TEXT", default=argparse.SUPPRESS,
        help="language of the conversations kept, as the data names it, e.g. English (default: all)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Train as `args` say and print how the predictor compares with the baselines.

    Raises:
        InputError: a setting, file or row that the user can mend.
    """
    import torch

    from predictor.checkpoint import load_encoder

    out = Path(args.out)
    config = resolve_config(args, out)
    quiet_libraries()
    chat_options = resolve_chat_options(args, out)
    splits, report = load_splits(config, chat_options)
    for name, records in splits.items():
        print(f"{name}: {len(records)} prompts, {sum(map(len, records.output_lens))} draws")
    quiet_libraries()
    torch.manual_seed(config.seed)
    encoder, tokenizer = load_encoder(config.encoder)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out)
    write_data_report(chat_options, report, out)
    keep_splits(splits, out)
    length_predictor = fit_predictor(config, splits, encoder, tokenizer, out, resume=args.resume)
    calibrate(length_predictor, splits["calibration"], shown=config.progress)
    results = evaluate(config, splits, length_predictor)
    save(config, length_predictor, results, out)
    print_table(results, config.tau)
    print(f"predictor and measures: {out}")


def quiet_libraries() -> None:
    """Keep advertisements, notes on hardware and the bars of small loads from the terminal."""
    import logging

    import huggingface_hub.utils.logging
    import lightning.pytorch
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.WARNING)
    disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def resolve_config(args: argparse.Namespace, out: Path) -> "TrainConfig":
    """Return the settings: defaults, then the file, then options; with `--resume` those of the run must agree."""
    from predictor.config import TrainConfig, check, override, read_config

    given = {name: vars(args)[name] for name in TrainConfig.__dataclass_fields__ if name in vars(args)}
    stored = out / "config.yaml"
    if stored.is_file() and not args.resume:
        raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
    config = TrainConfig()
    if stored.is_file():
        values = {name: value for name, value in read_config(stored).items() if name != "versions"}
        config = override(config, values, str(stored))
    wanted = override(config, read_config(args.config), str(args.config)) if args.config else config
    wanted = override(wanted, given, "option")
    if stored.is_file():
        free = {"progress", "baselines", "accelerator"}
        for name in TrainConfig.__dataclass_fields__:
            before, now = getattr(config, name), getattr(wanted, name)
            if before != now and name not in free:
                raise InputError(
                    f"{out}: {name}: the run has {before!r}, not {now!r}; leave it out or choose another --out"
                )
    check(wanted)
    return wanted


def resolve_chat_options(args: argparse.Namespace, out: Path) -> "ChatOptions":
    """Return how conversations are read, as `args` say; a resumed run keeps its own.

    Raises:
        InputError: a value out of range, or another than the run has.
    """
    import json

    from predictor.chat_turns import ChatOptions

    stored = out / "data.json"
    before = json.loads(stored.read_text())["conversations"] if stored.is_file() else {}
    given = {name: vars(args)[name] for name in ChatOptions.__dataclass_fields__ if name in vars(args)}
    for name, value in given.items():
        if before and before[name] != value:
            raise InputError(
                f"{out}: {name}: the run has {before[name]!r}, not {value!r}; leave it out or choose another --out"
            )
    return ChatOptions(**{**before, **given})


def load_splits(config: "TrainConfig", chat_options: "ChatOptions") -> tuple[dict[str, "Records"], "DataReport"]:
    """Return the records of each split and the report on them, printed; InputError where one is too small for `tau`."""
    import numpy as np

    from predictor.calibration import required_prompts
    from predictor.chats import load_data
    from predictor.data_report import split_and_audit
    from predictor.records import SPLITS

    loaded = load_data(
        config.data, config.model, config.tokenizer, config.length_cap, chat_options, shown=config.progress
    )
    names, report = split_and_audit(loaded, config.seed, shown=config.progress)
    print_data_report(config.data, report)
    splits = {name: loaded.records.select(np.flatnonzero(np.asarray(names) == name)) for name in SPLITS}
    needed = {"train": 8, "validation": 1, "calibration": required_prompts(config.tau), "test": 2}
    for name, part in splits.items():
        if len(part) < needed[name]:
            raise InputError(
                f"{config.data}: split: {name} has {len(part)} prompts, at least {needed[name]} are needed "
                f"(tau {config.tau}); give more data"
            )
    if config.max_prompts is not None and config.max_prompts < len(splits["train"]):
        rng = np.random.default_rng(config.seed)
        kept = np.sort(rng.choice(len(splits["train"]), config.max_prompts, replace=False))
        splits["train"] = splits["train"].select(kept)
    return splits, report


def print_data_report(data: str, report: "DataReport") -> None:
    """Print the account of the rows and splits, and to stderr a warning where splits leak."""
    import sys

    print(report.line())
    if (warning := report.warning()) is not None:
        print(f"amin train: warning: {data}: {warning}", file=sys.stderr)


def fit_predictor(
    config: "TrainConfig",
    splits: dict[str, "Records"],
    encoder: Any,
    tokenizer: "Tokenizer",
    out: Path,
    *,
    resume: bool,
) -> "TorchLengthPredictor":
    """Return the trained predictor, not yet calibrated; writes `checkpoints/` and `logs/` in `out`."""
    from predictor.bins import LengthBins
    from predictor.calibration import PitCalibration
    from predictor.checkpoint import versions
    from predictor.data import LengthDataModule, encode_records
    from predictor.lightning_module import train_network
    from predictor.losses import marginal_hazard_logits
    from predictor.network import HazardNetwork, TorchLengthPredictor
    from predictor.spec import PredictorSpec

    max_tokens = min(config.max_prompt_tokens, getattr(encoder.config, "max_position_embeddings", 10**9))
    bins, pad_id = LengthBins.log_spaced(config.max_length, config.num_bins), encoder.config.pad_token_id or 0
    train, validation = (encode_records(splits[name], tokenizer, bins, max_tokens) for name in ("train", "validation"))
    network = HazardNetwork(encoder, bins.num_bins, config.hidden_size, config.dropout)
    network.start_at(marginal_hazard_logits(train.events, train.at_risk))
    if config.unfrozen_layers is not None:
        network.unfreeze_last(config.unfrozen_layers)
    data = LengthDataModule(train, validation, batch_size=config.batch_size, pad_token_id=pad_id, seed=config.seed)
    train_network(network, data, config, out, resume=resume)
    if config.half:
        network.round_to_half()
    served_model = config.model or splits["train"].models[0]
    marginal = PitCalibration.marginal(splits["calibration"].output_lens)
    spec = PredictorSpec(bins, max_tokens, pad_id, served_model, marginal, versions())
    return TorchLengthPredictor(network, tokenizer, spec)


def calibrate(length_predictor: "TorchLengthPredictor", calibration: "Records", *, shown: bool) -> None:
    """Calibrate the predictor in place on the calibration split."""
    from pipelines.predict import survival_with_progress

    survival = survival_with_progress(length_predictor, calibration.prompts, "calibrate", shown=shown)
    length_predictor.spec = length_predictor.spec.recalibrated(survival, calibration.output_lens)


def evaluate(
    config: "TrainConfig", splits: dict[str, "Records"], length_predictor: "TorchLengthPredictor"
) -> dict[str, Any]:
    """Return what `metrics.json` holds: the measures on the test split, of the predictor and the baselines."""
    from pipelines.predict import survival_with_progress
    from predictor.baselines import evaluate_baselines
    from predictor.metrics import bound_quality

    test = splits["test"]
    survival = survival_with_progress(length_predictor, test.prompts, "measure", shown=config.progress)
    predictions = length_predictor.spec.predictions(survival, config.tau)
    quality = bound_quality(
        predictions.lower_bounds, predictions.medians, test.output_lens, test.datasets, config.tau, config.max_length
    )
    baselines: dict[str, Any] = {}
    if config.baselines:
        baselines = evaluate_baselines(
            splits["train"], splits["calibration"], test, config.tau, config.max_length, config.seed
        )
    return {"test": quality.to_dict(), "baselines": baselines}


def write_config(config: "TrainConfig", out: Path) -> None:
    """Write the resolved settings and the versions to `config.yaml`."""
    import yaml

    from pipelines.files import atomic_file
    from predictor.checkpoint import versions
    from predictor.config import to_dict

    with atomic_file(out / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump({**to_dict(config), "versions": versions()}, sort_keys=False))


def write_data_report(chat_options: "ChatOptions", report: "DataReport", out: Path) -> None:
    """Write `data.json`: how conversations were read, what became of the rows, and the audit of the splits."""
    from dataclasses import asdict

    from pipelines.files import write_json

    write_json(out / "data.json", {"conversations": asdict(chat_options), **report.to_dict()})


def keep_splits(splits: dict[str, "Records"], out: Path) -> None:
    """Write `calibration.parquet` and `test.parquet`: `amin export` calibrates the exported graph on them."""
    from pipelines.files import atomic_file
    from predictor.records import write_records

    for name in ("calibration", "test"):
        with atomic_file(out / f"{name}.parquet") as aside:
            write_records(splits[name], aside)


def save(config: "TrainConfig", length_predictor: "TorchLengthPredictor", results: dict[str, Any], out: Path) -> None:
    """Write `predictor/` and then `metrics.json`."""
    from pipelines.files import atomic_directory, write_json
    from predictor.checkpoint import save_predictor

    with atomic_directory(out / "predictor") as folder:
        save_predictor(
            folder, length_predictor.network, length_predictor.tokenizer, length_predictor.spec, half=config.half
        )
    write_json(out / "metrics.json", results)


def print_table(results: dict[str, Any], tau: float) -> None:
    """Print the predictor beside the baselines; pinball in tokens."""
    print(f"\ntest split, tau {tau} (target coverage {1 - tau:.2f})")
    print(f"{'':22}" + "".join(f"{title:>13}" for title, _, _ in TABLE))
    for name, row in {"predictor": results["test"], **results["baselines"]}.items():
        cells = ("-" if row[key] is None else shape.format(row[key]) for _, key, shape in TABLE)
        print(f"{name:22}" + "".join(f"{cell:>13}" for cell in cells))
    if (ceiling := results["test"]["kendall_tau_ceiling"]) is not None:
        print(f"kendall tau of one draw against the mean of the others (ceiling): {ceiling:.3f}")
