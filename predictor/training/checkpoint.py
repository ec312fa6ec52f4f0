"""Predictors on disk: a folder of safetensors and JSON, no pickle. Torch is imported only to read weights."""

import json
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.bounds.likeness import likeness
from predictor.errors import InputError
from predictor.json_file import read_object
from predictor.prompts.tokens import load_tokenizer
from predictor.spec import PredictorSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from predictor.training.network import HazardNetwork, NetworkShape, TorchLengthPredictor

SPEC_FILE = "predictor.json"
WEIGHTS_FILE = "model.safetensors"
# Weights with a row for each served model.
OF_EACH_MODEL = re.compile(r"heads\.\d+\.(embedding|residual|bias)")
DEFAULT_ENCODER = Path(__file__).resolve().parents[2] / "checkpoints" / "length-predictor"

REMEDY = "copy or train the predictor again"


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a predictor, as far as they are installed."""
    found: dict[str, str] = {}
    for name in ("amin", "torch", "transformers", "tokenizers", "lightning", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def save_predictor(
    folder: Path, network: "HazardNetwork", tokenizer: "Tokenizer", spec: PredictorSpec, *, half: bool = False
) -> None:
    """Write a predictor into the existing `folder`; with `half` the weights are kept in float16.

    Writes `model.safetensors` (encoder and head), `config.json` (the encoder's), `tokenizer.json` and `predictor.json`.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    (folder / WEIGHTS_FILE).write_bytes(save(state))  # save_file keeps others from reading it
    network.encoder.config.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / SPEC_FILE).write_text(json.dumps({**spec.to_dict(), "network": network.shape.to_dict()}) + "\n")


def load_predictor(folder: str | Path, batch_size: int = 32) -> "TorchLengthPredictor":
    """Return the predictor in a RUN or predictor folder, in float32 on the CPU; InputError where it is not one."""
    return _load(predictor_folder(folder), None, 0.0, batch_size)


def load_for_models(folder: str | Path, models: tuple[str, ...], dropout: float) -> "TorchLengthPredictor":
    """Return the predictor in a folder made to answer for `models`, to be trained and calibrated for them.

    One it knows keeps its weights; another starts as the average of those it knows, weighed by how like it they are
    (`predictor.bounds.likeness`). InputError as `load_predictor`.
    """
    return _load(predictor_folder(folder), models, dropout, 32)


def load_spec(folder: str | Path) -> tuple[PredictorSpec, "NetworkShape"]:
    """Return what the predictor in a RUN or predictor folder states about itself; InputError where it is not one."""
    from predictor.training.network import NetworkShape

    file = predictor_folder(folder) / SPEC_FILE
    value = read_object(file, REMEDY)
    spec = PredictorSpec.from_dict(value, str(file))
    return spec, NetworkShape.from_dict(value["network"])


def _load(path: Path, models: tuple[str, ...] | None, dropout: float, batch_size: int) -> "TorchLengthPredictor":
    from predictor.training.network import HazardNetwork, TorchLengthPredictor

    spec, shape = load_spec(path)
    weights = _read_weights(path / WEIGHTS_FILE)
    if models is not None:
        weights = _weights_for_models(weights, spec.models, models)
        shape = replace(shape, num_models=len(models))
        spec = replace(spec, models=models, calibrations={})
    network = HazardNetwork(_bare_encoder(path), spec.bins, shape, dropout)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path / WEIGHTS_FILE}: does not fit {SPEC_FILE} ({str(error).splitlines()[0]})") from None
    return TorchLengthPredictor(network, load_tokenizer(path / "tokenizer.json"), spec, batch_size)


def _weights_for_models(weights: dict[str, Any], known: tuple[str, ...], models: tuple[str, ...]) -> dict[str, Any]:
    import torch

    def adapted(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value[known.index(name)] if name in known else mixed(value, name) for name in models])

    def mixed(value: torch.Tensor, name: str) -> torch.Tensor:
        weights = torch.as_tensor(likeness(name, known), dtype=value.dtype)
        return torch.einsum("m,m...->...", weights, value)

    return {name: adapted(value) if OF_EACH_MODEL.fullmatch(name) else value for name, value in weights.items()}


def predictor_folder(path: str | Path) -> Path:
    """Return the predictor folder of a RUN folder or of itself; InputError where there is none."""
    for folder in (Path(path), Path(path) / "predictor"):
        if (folder / SPEC_FILE).is_file():
            return folder
    raise InputError(f"{path}: no predictor there; give a folder that `amin train` or `amin export` wrote")


def load_encoder(name: str | None) -> tuple[Any, "Tokenizer"]:
    """Return the encoder and its tokenizer from a RUN or predictor folder, a local encoder folder or the hub.

    Raises:
        InputError: there is no such encoder, or it has no fast tokenizer; one line that says what to do.
    """
    if name is None and not DEFAULT_ENCODER.is_dir():
        raise InputError(f"encoder: {DEFAULT_ENCODER} does not exist; give one with --encoder PATH_OR_HUB")
    path = Path(name) if name is not None else DEFAULT_ENCODER
    if (path / "predictor" / SPEC_FILE).is_file():
        path = path / "predictor"
    if (path / SPEC_FILE).is_file():
        encoder = _bare_encoder(path)
        weights = _read_weights(path / WEIGHTS_FILE)
        prefix = "encoder."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        encoder.load_state_dict(own)
        return encoder, load_tokenizer(path / "tokenizer.json")
    return _pretrained(str(path) if path.is_dir() else str(name))


def _pretrained(name: str) -> tuple[Any, "Tokenizer"]:
    from transformers import AutoModel, AutoTokenizer

    try:
        encoder = AutoModel.from_pretrained(name, attn_implementation=attention(), trust_remote_code=False)
        fast = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"encoder: {name!r} brings Python code of its own, which never runs; choose another"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"encoder: {name!r} is neither an encoder folder nor available from the hub ({reason})"
        ) from None
    tokenizer = getattr(fast, "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError(f"encoder: {name!r} has no fast tokenizer (tokenizer.json); choose another encoder")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return encoder.float(), tokenizer


def _bare_encoder(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel

    file = folder / "config.json"
    if "auto_map" in read_object(file, REMEDY):
        raise InputError(f"{file}: auto_map: names Python code, which no predictor brings; copy the predictor again")
    build: Any = AutoModel.from_config
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    encoder = build(config, attn_implementation=attention(), trust_remote_code=False).float()
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    return encoder


def attention() -> str:
    """Return the attention to train with: on a CPU the fused one spends twice the time, most of it going back."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def _read_weights(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {REMEDY}") from None
