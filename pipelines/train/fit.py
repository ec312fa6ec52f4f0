"""The stages of `amin train`: data, network, fit and calibration."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from predictor.prompts.tokens import PromptInputs
    from predictor.records.chat_turns import ChatOptions
    from predictor.records.prompt_table import PromptTable
    from predictor.records.records import Records
    from predictor.spec import PredictorSpec
    from predictor.splits.data_report import DataReport
    from predictor.training.config import TrainConfig
    from predictor.training.network import TorchLengthPredictor

CHUNK_SIZE = 1024


def load_splits(config: "TrainConfig", chat_options: "ChatOptions") -> tuple[dict[str, "Records"], "DataReport"]:
    """Return the records of each split and the report on them, printed; InputError where one is too small for `tau`."""
    import numpy as np

    from predictor.records.chats import load_data
    from predictor.records.prompt_table import served_models
    from predictor.records.records import SPLITS
    from predictor.splits.data_report import split_and_audit

    loaded = load_data(
        config.data, config.model, config.tokenizer, config.length_cap, chat_options, shown=config.progress
    )
    models = served_models(loaded.records)
    if len(models) > 1 and "" in models:
        prompt_id = loaded.records.prompt_ids[loaded.records.models.index("")]
        raise InputError(
            f"{config.data}: prompt_id {prompt_id!r}: model: missing, while other rows have it; fill it in"
        )
    names, report = split_and_audit(loaded, config.seed, shown=config.progress)
    print_data_report(config.data, report)
    splits = {name: loaded.records.select(np.flatnonzero(np.asarray(names) == name)) for name in SPLITS}
    for model in models:
        _require_enough(config, splits, model, "give more data", others=len(models) > 1)
    if config.max_prompts is not None:
        splits["train"] = subsample(splits["train"], config.max_prompts, config.seed)
        for model in models:
            _require_enough(config, splits, model, "raise --max-prompts", others=len(models) > 1)
    return splits, report


def _require_enough(
    config: "TrainConfig", splits: dict[str, "Records"], model: str, advice: str, *, others: bool
) -> None:
    from predictor.bounds.calibration import required_prompts

    needed = {"train": 8, "validation": 1, "calibration": required_prompts(config.tau), "test": 2}
    for name, records in splits.items():
        if (found := records.models.count(model)) < needed[name]:
            raise InputError(
                f"{config.data}: split: {name} has {found} prompts{f' of {model}' if others else ''}, at least "
                f"{needed[name]} are needed (tau {config.tau}); {advice}"
            )


def subsample(records: "Records", max_prompts: int, seed: int) -> "Records":
    """Return the records of at most `max_prompts` distinct prompts, drawn at random."""
    import numpy as np

    prompts, numbers = np.unique(np.asarray(records.prompts, dtype=object), return_inverse=True)
    if len(prompts) <= max_prompts:
        return records
    kept = np.random.default_rng(seed).choice(len(prompts), max_prompts, replace=False)
    return records.select(np.flatnonzero(np.isin(numbers, kept)))


def digest(splits: dict[str, "Records"]) -> str:
    """Return the SHA-256 of which prompts, served models and lengths are in which split."""
    hashed = sha256()
    for name, records in splits.items():
        hashed.update(f"{name} {len(records)}\n".encode())
        rows = zip(records.prompts, records.models, records.output_lens, records.is_truncated, strict=True)
        for prompt, model, lengths, is_truncated in rows:
            text = f"{len(prompt)} {len(model)} {len(lengths)}\n{prompt}{model}".encode()
            hashed.update(text + lengths.tobytes() + is_truncated.tobytes())
    return hashed.hexdigest()


def print_data_report(data: str, report: "DataReport") -> None:
    """Print the account of the rows and splits, and to stderr a warning where splits leak."""
    import sys

    print(report.line())
    if (warning := report.warning()) is not None:
        print(f"amin train: warning: {data}: {warning}", file=sys.stderr)


def fit_predictor(
    config: "TrainConfig",
    splits: dict[str, "Records"],
    length_predictor: "TorchLengthPredictor",
    out: Path,
    *,
    resume: bool,
) -> None:
    """Train the predictor in place, not calibrated yet; writes `checkpoints/` and `logs/` in `out`."""
    import torch

    from pipelines.train.teaching import taught_by
    from predictor.records.prompt_table import prompt_table
    from predictor.training.data import LengthDataModule, encode_table
    from predictor.training.head_start import start_network
    from predictor.training.lightning_module import train_network

    network, tokenizer, spec = length_predictor.network, length_predictor.tokenizer, length_predictor.spec
    tables = [prompt_table(splits[name], spec.models) for name in ("train", "validation")]
    inputs = [encode_with_progress(tokenizer, table, spec, shown=config.progress) for table in tables]
    train, validation = (encode_table(table, part, spec.bins) for table, part in zip(tables, inputs, strict=True))
    if config.teacher is not None:
        train = taught_by(config, train, tables[0], spec)
    network.unfreeze_last(config.unfrozen_layers)
    for module in network.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    device = "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    loss = start_network(
        network.to(device), spec.bins, train, validation, spec.pad_token_id, config, is_new=config.init is None
    )
    print(f"heads alone: validation pinball loss {loss:.3f} tokens")
    if config.epochs:
        data = LengthDataModule(
            train, validation, batch_size=config.batch_size, pad_token_id=spec.pad_token_id, seed=config.seed
        )
        loss = train_network(network, spec.bins, data, config, out, loss, resume=resume)
        print(f"whole network: validation pinball loss {loss:.3f} tokens")
    network.cpu()
    if config.half:
        network.round_to_half()


def encode_with_progress(
    tokenizer: "Tokenizer", table: "PromptTable", spec: "PredictorSpec", *, shown: bool
) -> "PromptInputs":
    """Return what `predictor.prompts.tokens.encode_prompts` gives, with a progress bar while it takes."""
    import numpy as np

    from predictor.progress import progress_bar
    from predictor.prompts.tokens import PromptInputs, encode_prompts

    parts, prompts, contexts = [], table.prompts, table.contexts
    with progress_bar("encode prompts", "prompt", len(prompts), shown=shown) as progress:
        for start in range(0, len(prompts), CHUNK_SIZE):
            rows = slice(start, start + CHUNK_SIZE)
            chunk, known = prompts[rows], contexts[rows] if contexts else None
            parts.append(encode_prompts(tokenizer, chunk, spec.max_prompt_tokens, spec.terms, known, spec.num_features))
            progress.update(len(chunk))
    return PromptInputs(
        [ids for part in parts for ids in part.token_ids],
        np.concatenate([part.features for part in parts]),
        [weights for part in parts for weights in part.terms],
        len(spec.terms),
    )


def new_predictor(config: "TrainConfig", chat_options: "ChatOptions", train: "Records") -> "TorchLengthPredictor":
    """Return the predictor that training starts from, for the served models of `train`, its heads untrained or not.

    Raises:
        InputError: no such encoder, predictor to start from, or default served model.
    """
    import torch

    from predictor.bounds.bins import LengthBins
    from predictor.prompts.terms import choose_terms
    from predictor.records.prompt_table import served_models
    from predictor.spec import AVERAGE, PredictorSpec
    from predictor.training.checkpoint import load_encoder, load_for_models, versions
    from predictor.training.distillation import keep_layers
    from predictor.training.head_start import MAX_PROMPTS
    from predictor.training.network import HazardNetwork, NetworkShape, TorchLengthPredictor

    torch.manual_seed(config.seed)
    models = served_models(train)
    default = config.default_model or (models[0] if len(models) == 1 else AVERAGE)
    turns, characters = chat_options.context_turns, chat_options.context_characters
    if config.init is not None:
        started = load_for_models(config.init, models, config.dropout)
        keep_layers(started.network, config.num_layers)
        started.spec = replace(
            started.spec,
            max_prompt_tokens=_encoder_tokens(config, started.network.encoder),
            served_model=default,
            versions=versions(),
            context_turns=turns,
            context_characters=characters,
        )
        started.spec.choose()
        return started
    encoder, tokenizer = load_encoder(config.encoder)
    bins, pad_id = LengthBins.log_spaced(config.max_length, config.num_bins), encoder.config.pad_token_id or 0
    max_tokens = _encoder_tokens(config, encoder)
    texts = list(dict.fromkeys(train.prompts))
    texts = texts[:: max(1, len(texts) // MAX_PROMPTS)]
    terms = choose_terms([encoding.ids for encoding in tokenizer.encode_batch_fast(texts)], config.num_terms)
    spec = PredictorSpec(bins, max_tokens, pad_id, models, default, terms, {}, versions(), turns, characters)
    spec.choose()
    shape = NetworkShape(
        len(models),
        len(terms),
        config.num_components,
        config.hidden_size,
        tuple(config.heads.split(",")),
        spec.num_features,
    )
    network = HazardNetwork(encoder, bins, shape, config.dropout)
    keep_layers(network, config.num_layers)
    return TorchLengthPredictor(network, tokenizer, spec)


def _encoder_tokens(config: "TrainConfig", encoder: Any) -> int:
    return min(config.max_prompt_tokens, getattr(encoder.config, "max_position_embeddings", 10**9))


def calibrate(length_predictor: "TorchLengthPredictor", calibration: "Records", *, shown: bool) -> None:
    """Calibrate the predictor in place on the calibration split, for each served model."""
    from pipelines.predict import survivals_with_progress
    from predictor.records.prompt_table import prompt_table

    table = prompt_table(calibration, length_predictor.spec.models)
    survivals = survivals_with_progress(length_predictor, table.prompts, "calibrate", table.contexts, shown=shown)
    length_predictor.spec = length_predictor.spec.recalibrated(survivals, table)


def save(config: "TrainConfig", length_predictor: "TorchLengthPredictor", out: Path) -> None:
    """Write `predictor/`; levels that `amin tune` has written there stay."""
    import shutil

    from pipelines.files import atomic_directory
    from pipelines.scheduling import FILE_NAME
    from predictor.training.checkpoint import save_predictor

    tuned = out / "predictor" / FILE_NAME
    with atomic_directory(out / "predictor") as folder:
        save_predictor(
            folder, length_predictor.network, length_predictor.tokenizer, length_predictor.spec, half=config.half
        )
        if tuned.is_file():
            shutil.copy(tuned, folder)
