"""The settings of a training run: one dataclass, from defaults, a YAML file and the command line."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from predictor.errors import InputError

HEADS = ("hazard", "mixture")
LARGEST = 2**31 - 1
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "max_prompts", "num_bins", "max_length", "hidden_size"), (1, LARGEST)),
    **dict.fromkeys(("num_components", "num_layers", "devices"), (1, LARGEST)),
    **dict.fromkeys(("epochs", "unfrozen_layers", "head_epochs", "num_terms", "patience"), (0, LARGEST)),
    **dict.fromkeys(("encoder_lr", "head_lr", "weight_decay", "warmup", "teacher_share"), (0.0, 1.0)),
    **dict.fromkeys(("dropout", "average_decay"), (0.0, 0.9999)),
    "seed": (0, 2**32 - 1),
    "max_prompt_tokens": (4, LARGEST),
}
"""The least and the largest value of the settings that are numbers; tau lies strictly between 0 and 1."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of `amin train`; lengths in tokens."""

    data: str = ""
    """Records (.parquet, .jsonl) or a hub data set of conversations (lmsys/lmsys-chat-1m)."""
    model: str | None = None
    """Served model whose rows are used; without it one network learns all the served models in the data."""
    default_model: str | None = None
    """Served model that predictions are for where none is named. Default: the only one, else average."""
    encoder: str | None = None
    """Text encoder: a folder or a hub name. Default: checkpoints/length-predictor beside the project."""
    init: str | None = None
    """Predictor to start from (a folder that amin train wrote), heads included; unknown served models start as the
    average of those it knows."""
    tokenizer: str | None = None
    """Tokenizer of the served model (folder, file or hub name); counts the answers of conversation data."""
    length_cap: int | None = None
    """Recorded answers of conversation data with at least so many tokens count as truncated."""
    tau: float = 0.1
    """Probability allowed below the bound, for the reported measures; a saved predictor answers any tau."""
    seed: int = 0
    """Seed of splits, subsampling, batches and dropout."""
    epochs: int = 6
    """Passes over the training prompts, at most (stops early by pinball loss in validation); 0 trains heads alone."""
    head_epochs: int = 8
    """Passes beforehand that train the heads alone, on states computed once."""
    batch_size: int = 32
    """Prompts in a batch, on each device."""
    max_prompts: int | None = None
    """Training prompts kept, drawn at random; for quick runs."""
    max_prompt_tokens: int = 64
    """Tokens of a prompt that the encoder reads: its first half and its last."""
    num_layers: int | None = None
    """Encoder layers kept, evenly chosen, the first and the last among them; all of them by default."""
    teacher: str | None = None
    """Predictor whose predictions are learnt beside the draws (a run, its predictor or an export), or several with
    commas between, whose mean is learnt: distillation."""
    teacher_share: float = 0.5
    """Weight of the teacher's predictions; the draws have the rest."""
    unfrozen_layers: int | None = None
    """Encoder layers that train, counted from the last; all of them by default, 0 for the heads alone."""
    num_terms: int = 4096
    """Tokens and pairs of tokens whose weights the network reads over the whole prompt."""
    num_components: int = 128
    """Dimensions to which these weights are projected."""
    heads: str = "hazard,mixture"
    """Heads whose survival is averaged: hazard, mixture, or both with a comma between."""
    num_bins: int = 48
    """Length bins, log-spaced."""
    max_length: int = 4096
    """Last edge of the length bins; longer draws count as longer than that, and measures clip lengths there."""
    hidden_size: int = 256
    """Width of the heads."""
    dropout: float = 0.5
    """Dropout on the inputs and the hidden layer of the heads; the encoder has none."""
    encoder_lr: float = 1e-4
    """Peak learning rate of the encoder."""
    head_lr: float = 1e-3
    """Peak learning rate of the heads; four times as much while they train alone."""
    weight_decay: float = 0.05
    """Weight decay (AdamW)."""
    warmup: float = 0.1
    """Share of the steps in which learning rates rise, while they fall to zero as a cosine."""
    average_decay: float = 0.995
    """Decay of the moving average of the weights, a step; what is validated and kept."""
    patience: int = 2
    """Epochs without a better pinball loss in validation before training stops."""
    bf16: bool = False
    """Train in bfloat16 where that is safe."""
    half: bool = False
    """Save the weights in float16: half the size."""
    accelerator: str = "auto"
    """Lightning accelerator: auto, cpu, gpu."""
    devices: int = 1
    """Devices to train on; more than one takes Lightning's strategy."""
    strategy: str = "auto"
    """Lightning strategy: auto, ddp, fsdp."""
    baselines: bool = True
    """Fit the baselines and report them beside the predictor."""
    progress: bool = True
    """Show progress bars."""


@cache
def field_descriptions() -> dict[str, str]:
    """Return the string under each field of TrainConfig, by field name."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    described: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            described[statement.target.id] = ast.literal_eval(following.value)
    return described


def field_type(name: str) -> tuple[type, bool]:
    """Return the type of a field of TrainConfig and whether it may be None."""
    hint = get_type_hints(TrainConfig)[name]
    if not isinstance(hint, UnionType):
        return hint, False
    return next(part for part in get_args(hint) if part is not type(None)), True


def override(config: TrainConfig, values: Mapping[str, Any], source: str) -> TrainConfig:
    """Return `config` with `values` in place of its own.

    Raises:
        InputError: a key that TrainConfig lacks, or a value of another type, named with `source`.
    """
    known = [field.name for field in fields(TrainConfig)]
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{source}: {key}: unknown; the keys are {', '.join(known)}")
        kind, is_optional = field_type(key)
        accepts = (kind, int) if kind is float else (kind,)
        is_right = isinstance(value, accepts) and (kind is bool or not isinstance(value, bool))
        if not is_right and not (is_optional and value is None):
            raise InputError(f"{source}: {key}: must be {kind.__name__}, not {value!r}")
    return replace(config, **values)


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; InputError where there is none."""
    import yaml

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; --config takes a YAML file")
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: must be a mapping of settings, not {type(value).__name__}")
    return value


def check(config: TrainConfig) -> None:
    """Raise InputError for a value out of range, naming it."""
    if not config.data:
        raise InputError("data: missing; give --data FILE_OR_HUB_NAME")
    if not 0.0 < config.tau < 1.0:
        raise InputError(f"tau: must lie between 0 and 1, not {config.tau}")
    unknown = [name for name in config.heads.split(",") if name not in HEADS]
    if unknown:
        raise InputError(f"heads: {unknown[0]!r} is not one of {', '.join(HEADS)}")
    for name, (least, most) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"{name}: must lie between {least} and {most}, not {value}")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the settings for YAML."""
    return asdict(config)
