"""From records to a trained, calibrated and saved predictor: the work of `amin train`."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from pipelines.files import atomic_directory
from pipelines.predict import survivals_with_progress
from pipelines.scheduling import FILE_NAME
from predictor.bounds.bins import LengthBins
from predictor.errors import InputError
from predictor.progress import progress_bar
from predictor.prompts.terms import choose_terms
from predictor.prompts.tokens import PromptInputs, encode_prompts, token_ids_of
from predictor.records.chat_turns import ChatOptions
from predictor.records.prompt_table import PromptTable, prompt_table, served_models
from predictor.records.records import Records
from predictor.resolve import resolve_predictor
from predictor.spec import AVERAGE, PredictorSpec
from predictor.training.checkpoint import load_encoder, load_for_models, save_predictor, versions
from predictor.training.config import TrainConfig
from predictor.training.data import EncodedPrompts, LengthDataModule, encode_table
from predictor.training.distillation import keep_layers, teacher_columns, with_teacher
from predictor.training.head_start import MAX_PROMPTS, few, pool_prompts, start_heads
from predictor.training.lightning_module import LengthModule, train_stage
from predictor.training.losses import Objective, censored_hazard_nll
from predictor.training.network import FrozenNetwork, HazardNetwork, NetworkShape, TorchLengthPredictor
from predictor.training.reduced import HeadsOnStates
from predictor.training.stages import HEADS_BATCH_SIZE, heads_stage, network_stage

CHUNK_SIZE = 1024


def fit_predictor(
    config: TrainConfig,
    splits: dict[str, Records],
    length_predictor: TorchLengthPredictor,
    out: Path,
    *,
    resume: bool,
    objective: Objective | None = None,
) -> None:
    """Train the predictor in place, not calibrated yet; writes `checkpoints/` and `logs/` in `out`.

    `objective` takes the place of the censored likelihood.
    """
    network, bins = length_predictor.network, length_predictor.spec.bins
    parts = training_prompts(config, splits, length_predictor)
    prepare_encoder(network, config)
    loss_of, rng = objective or censored_hazard_nll, np.random.default_rng([config.seed, 1])
    if config.head_epochs or config.init is None:
        few_parts = [few(part, rng) for part in parts]
        pooled = [pool_prompts(network.to(device_of(config)), part, config) for part in few_parts]
        start_heads(network.cpu(), pooled[0], config, is_new=config.init is None)
    if config.head_epochs:
        frozen = FrozenNetwork(network)
        data = LengthDataModule(*pooled, batch_size=HEADS_BATCH_SIZE, seed=config.seed)
        module = LengthModule(frozen, bins, config, heads_stage(frozen, config), loss_of)
        report(module, train_stage(module, data, out, resume=resume))
    if config.epochs:
        data = LengthDataModule(*parts, batch_size=config.batch_size, seed=config.seed)
        module = LengthModule(network, bins, config, network_stage(network, config), loss_of)
        report(module, train_stage(module, data, out, resume=resume))
    network.requires_grad_(True)
    if config.half:
        network.round_to_half()


def report(module: LengthModule, measured: dict[str, float]) -> None:
    """Print what a stage has come to."""
    print(f"{module.stage.name}: validation pinball loss {measured['validation_pinball']:.3f} tokens")


def training_prompts(
    config: TrainConfig, splits: dict[str, Records], length_predictor: TorchLengthPredictor
) -> list[EncodedPrompts]:
    """Return the prompts to train on, with what the teachers say of them, and those to validate on."""
    spec = length_predictor.spec
    tables = [prompt_table(splits[name], spec.models) for name in ("train", "validation")]
    parts = []
    for table in tables:
        inputs = encode_with_progress(length_predictor.tokenizer, table, spec, shown=config.progress)
        parts.append(encode_table(table, inputs, spec.bins, spec.pad_token_id))
    if config.teacher is not None:
        parts[0] = with_teachers(config, parts[0], tables[0], spec)
    return parts


def with_teachers(
    config: TrainConfig, train: EncodedPrompts, table: PromptTable, spec: PredictorSpec
) -> EncodedPrompts:
    """Return `train` with targets from the teachers as well, asked once.

    Raises:
        InputError: one is no predictor, cannot teach one of `spec`, or predicts what is not a number.
    """
    survivals = []
    for name in str(config.teacher).split(","):
        teacher = resolve_predictor(name)
        columns = teacher_columns(teacher.spec, spec.models, spec.bins, name)
        predicted = survivals_with_progress(
            teacher, table.prompts, "ask teacher", table.contexts, shown=config.progress
        )[:, columns]
        if failed := int((~np.isfinite(predicted).all(axis=(1, 2))).sum()):
            raise InputError(
                f"teacher: {name}: no number for {failed} of {len(table.prompts)} prompts; train or export it again"
            )
        survivals.append(predicted)
    return with_teacher(train, np.mean(survivals, axis=0), config.teacher_share)


def prepare_encoder(network: HazardNetwork, config: TrainConfig) -> None:
    """Say which layers of the encoder train, and leave out its dropout."""
    network.unfreeze_last(config.unfrozen_layers)
    for module in network.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def device_of(config: TrainConfig) -> str:
    """Return the device that computes the states of prompts."""
    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def encode_with_progress(tokenizer: Tokenizer, table: PromptTable, spec: PredictorSpec, *, shown: bool) -> PromptInputs:
    """Return what `predictor.prompts.tokens.encode_prompts` gives, with a progress bar while it takes."""
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


def new_predictor(config: TrainConfig, chat_options: ChatOptions, train: Records) -> TorchLengthPredictor:
    """Return the predictor that training starts from, for the served models of `train`, its heads untrained or not.

    Raises:
        InputError: no such encoder, predictor to start from, or default served model.
    """
    torch.manual_seed(config.seed)
    models = served_models(train)
    default = config.default_model or (models[0] if len(models) == 1 else AVERAGE)
    if config.init is not None:
        return _from_another(config, chat_options, models, default)
    return _from_encoder(config, chat_options, train, default)


def _from_another(
    config: TrainConfig, chat_options: ChatOptions, models: tuple[str, ...], default: str
) -> TorchLengthPredictor:
    """Return the predictor of `config.init` with these served models."""
    assert config.init is not None
    started = load_for_models(config.init, models, config.dropout)
    keep_layers(started.network, config.num_layers)
    started.spec = replace(
        started.spec,
        max_prompt_tokens=_encoder_tokens(config, started.network.encoder),
        served_model=default,
        versions=versions(),
        context_turns=chat_options.context_turns,
        context_characters=chat_options.context_characters,
    )
    started.spec.choose()
    return started


def _from_encoder(config: TrainConfig, chat_options: ChatOptions, train: Records, default: str) -> TorchLengthPredictor:
    """Return a predictor with untrained heads on a text encoder."""
    models = served_models(train)
    encoder, tokenizer = load_encoder(config.encoder)
    bins, pad_id = length_bins(config, train), encoder.config.pad_token_id or 0
    max_tokens = _encoder_tokens(config, encoder)
    texts = list(dict.fromkeys(train.prompts))
    texts = texts[:: max(1, len(texts) // MAX_PROMPTS)]
    terms = choose_terms(token_ids_of(tokenizer, texts), config.num_terms)
    turns, characters = chat_options.context_turns, chat_options.context_characters
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


def length_bins(config: TrainConfig, train: Records) -> LengthBins:
    """Return the length bins of a new predictor."""
    if config.max_length is None:
        return LengthBins.of_lengths(np.concatenate(train.output_lens), config.num_bins)
    return LengthBins.log_spaced(config.max_length, config.num_bins)


def _encoder_tokens(config: TrainConfig, encoder: Any) -> int:
    return min(config.max_prompt_tokens, getattr(encoder.config, "max_position_embeddings", 10**9))


def calibrate(length_predictor: TorchLengthPredictor | HeadsOnStates, calibration: Records, *, shown: bool) -> None:
    """Calibrate the predictor in place on the calibration split, for each served model."""
    table = prompt_table(calibration, length_predictor.spec.models)
    survivals = survivals_with_progress(length_predictor, table.prompts, "calibrate", table.contexts, shown=shown)
    length_predictor.spec = length_predictor.spec.recalibrated(survivals, table)


def save(config: TrainConfig, length_predictor: TorchLengthPredictor | HeadsOnStates, out: Path) -> None:
    """Write `predictor/`; levels that `amin tune` has written there stay."""
    tuned = out / "predictor" / FILE_NAME
    with atomic_directory(out / "predictor") as folder:
        save_predictor(
            folder, length_predictor.network, length_predictor.tokenizer, length_predictor.spec, half=config.half
        )
        if tuned.is_file():
            shutil.copy(tuned, folder)
