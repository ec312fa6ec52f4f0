"""The data of `amin train`: records of each split, enough of them, and what identifies them."""

import sys
from dataclasses import fields, replace
from hashlib import sha256

import numpy as np

from predictor.bounds.calibration import required_prompts
from predictor.errors import InputError
from predictor.prompts.context import UNKNOWN, RequestContext
from predictor.records.chat_turns import ChatOptions
from predictor.records.chats import LoadedData, load_data
from predictor.records.prompt_table import served_models
from predictor.records.records import SPLITS, Records
from predictor.splits.data_report import DataReport, split_and_audit
from predictor.splits.splits import days_of
from predictor.training.config import TrainConfig
from predictor.training.slow_tokenizers import converted_tokenizer


def load_splits(config: TrainConfig, chat_options: ChatOptions) -> tuple[dict[str, Records], DataReport]:
    """Return the records of each split and the report on them, printed; InputError where one is too small for `tau`."""
    loaded = _loaded(config, chat_options)
    models = served_models(loaded.records)
    is_by_time = config.split_by == "time"
    names, report = split_and_audit(loaded, config.seed, by_time=is_by_time, shown=config.progress)
    print_data_report(config.data, report)
    records = without_constant_contexts(loaded.records)
    if is_by_time and records.arrival_times is not None:
        records = replace(records, datasets=tuple(days_of(records.arrival_times)))
    splits = {name: records.select(np.flatnonzero(np.asarray(names) == name)) for name in SPLITS}
    for model in models:
        _require_enough(config, splits, model, "give more data", others=len(models) > 1)
    if config.max_prompts is not None:
        splits["train"] = subsample(splits["train"], config.max_prompts, config.seed)
        for model in models:
            _require_enough(config, splits, model, "raise --max-prompts", others=len(models) > 1)
    return splits, report


def _loaded(config: TrainConfig, chat_options: ChatOptions) -> LoadedData:
    """Return the data; InputError where some rows name their served model and others do not."""
    loaded = load_data(
        config.data,
        config.model,
        config.tokenizer,
        config.length_cap,
        chat_options,
        shown=config.progress,
        convert=converted_tokenizer,
    )
    models = served_models(loaded.records)
    if len(models) > 1 and "" in models:
        prompt_id = loaded.records.prompt_ids[loaded.records.models.index("")]
        raise InputError(
            f"{config.data}: prompt_id {prompt_id!r}: model: missing, while other rows have it; fill it in"
        )
    return loaded


def without_constant_contexts(records: Records) -> Records:
    """Return the records without what all requests of a served model say alike, as a fixed temperature.

    It tells no more than the model's name, and one prompt that several models answered would be several requests.
    """
    if records.contexts is None:
        return records
    values: dict[str, dict[str, set[object]]] = {}
    for model, context in zip(records.models, records.contexts, strict=True):
        for field in fields(RequestContext):
            values.setdefault(field.name, {}).setdefault(model, set()).add(getattr(context, field.name))
    constant = [name for name, of_model in values.items() if all(len(found) == 1 for found in of_model.values())]
    kept = tuple(replace(context, **dict.fromkeys(constant)) for context in records.contexts)
    return replace(records, contexts=kept if any(context != UNKNOWN for context in kept) else None)


def _require_enough(config: TrainConfig, splits: dict[str, Records], model: str, advice: str, *, others: bool) -> None:
    needed = {"train": 8, "validation": 1, "calibration": required_prompts(config.tau), "test": 2}
    for name, records in splits.items():
        if (found := records.models.count(model)) < needed[name]:
            raise InputError(
                f"{config.data}: split: {name} has {found} prompts{f' of {model}' if others else ''}, at least "
                f"{needed[name]} are needed (tau {config.tau}); {advice}"
            )


def subsample(records: Records, max_prompts: int, seed: int) -> Records:
    """Return the records of at most `max_prompts` distinct prompts, drawn at random."""
    prompts, numbers = np.unique(np.asarray(records.prompts, dtype=object), return_inverse=True)
    if len(prompts) <= max_prompts:
        return records
    kept = np.random.default_rng(seed).choice(len(prompts), max_prompts, replace=False)
    return records.select(np.flatnonzero(np.isin(numbers, kept)))


def digest(splits: dict[str, Records]) -> str:
    """Return the SHA-256 of which prompts, served models and lengths are in which split."""
    hashed = sha256()
    for name, records in splits.items():
        hashed.update(f"{name} {len(records)}\n".encode())
        rows = zip(records.prompts, records.models, records.output_lens, records.is_truncated, strict=True)
        for prompt, model, lengths, is_truncated in rows:
            text = f"{len(prompt)} {len(model)} {len(lengths)}\n{prompt}{model}".encode()
            hashed.update(text + lengths.tobytes() + is_truncated.tobytes())
    return hashed.hexdigest()


def print_data_report(data: str, report: DataReport) -> None:
    """Print the account of the rows and splits, and to stderr a warning where splits leak."""
    print(report.line())
    if (warning := report.warning()) is not None:
        print(f"amin train: warning: {data}: {warning}", file=sys.stderr)
