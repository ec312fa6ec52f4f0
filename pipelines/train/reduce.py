"""Reduce a log to what training needs, before it leaves a machine; and train heads from that."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pipelines.files import atomic_directory, content_sha256
from pipelines.memory import keep_freed_memory
from pipelines.scheduling import FILE_NAME
from pipelines.settings.reduce import ReduceSettings
from pipelines.train.data import load_splits
from pipelines.train.fit import length_bins, report
from predictor.errors import InputError
from predictor.records.chat_turns import ChatOptions
from predictor.records.prompt_table import served_models
from predictor.records.records import Records, write_records
from predictor.spec import AVERAGE
from predictor.training.checkpoint import DEFAULT_ENCODER, load_predictor, predictor_folder
from predictor.training.config import TrainConfig
from predictor.training.data import LengthDataModule, PooledPrompts
from predictor.training.lightning_module import LengthModule, train_stage
from predictor.training.losses import censored_hazard_nll
from predictor.training.network import FrozenNetwork
from predictor.training.reduced import (
    FACTS,
    RECORDS,
    STATES,
    HeadsOnStates,
    facts_of,
    heads_on_states,
    read_states,
    reduced,
    write_states,
)
from predictor.training.stages import HEADS_BATCH_SIZE, heads_stage


def run(settings: ReduceSettings) -> None:
    """Write lengths, splits, states and features of a log, without its text, whole or not at all.

    Raises:
        InputError: data, option or encoder that the user can fix.
    """
    keep_freed_memory()
    _refuse_foreign(settings.out)
    config = TrainConfig(
        data=settings.data, model=settings.model, tokenizer=settings.tokenizer, length_cap=settings.length_cap,
        split_by=settings.split_by, seed=settings.seed, progress=settings.progress,
    )  # fmt: skip
    folder = source_folder(settings.encoder)
    source = load_predictor(folder)
    splits, account = load_splits(config, settings.conversations)
    bare, states = reduced(_joined(splits), source, shown=settings.progress)
    facts = facts_of(source_sha256(folder), settings.conversations, account.to_dict())
    with atomic_directory(settings.out) as new:
        write_records(bare, new / RECORDS)
        write_states(new, states, facts)
    print(f"{len(states.names)} prompts, {len(bare)} rows, no text: {settings.out}")


def _refuse_foreign(out: Path) -> None:
    """Raise InputError where `out` holds what no `amin reduce` wrote: the whole folder is replaced."""
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if other := there - {FACTS, RECORDS, STATES} or (there if FACTS not in there else set()):
        raise InputError(f"--out: {out} holds {min(other)}, which no amin reduce wrote; give a new folder")


def source_folder(encoder: str | None) -> Path:
    """Return the folder of the predictor that reads the prompts; InputError where it is none."""
    return predictor_folder(encoder or DEFAULT_ENCODER)


def source_sha256(folder: Path) -> str:
    """Return what identifies a predictor that reads prompts."""
    return content_sha256(folder, without={FILE_NAME, "README.md"})


def _joined(splits: dict[str, Records]) -> Records:
    """Return the records of all splits, each row with the name of its split."""
    parts = list(splits.values())
    whole = parts[0]
    columns: dict[str, Any] = {
        field.name: tuple(chain.from_iterable(getattr(part, field.name) for part in parts))
        for field in fields(whole)
        if isinstance(getattr(whole, field.name), tuple)
    }
    names = tuple(name for name, part in splits.items() for _ in range(len(part)))
    return replace(whole, **{**columns, "splits": names})


def check_reduced(config: TrainConfig) -> None:
    """Raise InputError for a setting that would take the text of prompts, of which a reduced log has none."""
    problems = {
        "epochs": (config.epochs != 0, "must be 0: heads alone train on a reduced log"),
        "init": (config.init is not None, "takes the text of prompts; leave it out"),
        "teacher": (config.teacher is not None, "takes the text of prompts; leave it out"),
    }
    for name, (is_wrong, what) in problems.items():
        if is_wrong:
            raise InputError(f"--{name}: {what} ({config.data} has no text)")


def reduced_predictor(config: TrainConfig, train: Records) -> HeadsOnStates:
    """Return the predictor that training on a reduced log starts from.

    Raises:
        InputError: the log is not whole, or another encoder read it.
    """
    data = Path(config.data)
    states, facts = read_states(data)
    folder = source_folder(config.encoder)
    if facts.get("source_sha256") != source_sha256(folder):
        raise InputError(f"{data / FACTS}: another encoder than {folder} read this log; give its folder with --encoder")
    models = served_models(train)
    default = config.default_model or (models[0] if len(models) == 1 else AVERAGE)
    options = ChatOptions(**facts["conversations"])
    return heads_on_states(load_predictor(folder), states, length_bins(config, train), models, default, config, options)


def fit_reduced(
    config: TrainConfig, splits: dict[str, Records], started: HeadsOnStates, out: Path, *, resume: bool
) -> None:
    """Train the heads in place, not calibrated yet; writes `checkpoints/` and `logs/` in `out`."""
    parts = [started.pooled(splits[name]) for name in ("train", "validation")]
    started.start(parts[0], config)
    fit_heads(config, parts, started, out, resume=resume)
    if config.half:
        started.network.round_to_half()


def fit_heads(
    config: TrainConfig, parts: Sequence[PooledPrompts], started: HeadsOnStates, out: Path, *, resume: bool
) -> None:
    """Train the heads in place on the prompts that train and those that validate, from where they are."""
    started.network.encoder.requires_grad_(False)
    frozen = FrozenNetwork(started.network, is_projected=True)
    data = LengthDataModule(*parts, batch_size=HEADS_BATCH_SIZE, seed=config.seed)
    module = LengthModule(frozen, started.spec.bins, config, heads_stage(frozen, config), censored_hazard_nll)
    report(module, train_stage(module, data, out, resume=resume))
    started.network.requires_grad_(True)
