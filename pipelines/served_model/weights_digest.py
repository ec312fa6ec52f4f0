"""What tells the weights of one model from those of another."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from predictor.errors import InputError

SAMPLED = 64
"""Values of each weight that go into the hash of a model: enough to tell models apart, quick where they are large."""


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the names and shapes of all weights and of some values of each.

    It is the same in every precision that a model is loaded in: the values are rounded to bfloat16.
    """
    return _digest((name, weight.detach()) for name, weight in model.named_parameters())


def folder_digest(folder: Path, *, trust_remote_code: bool = False) -> str:
    """Return `weights_digest` of the model in a folder from its files, where an engine names the weights otherwise.

    Raises:
        InputError: The folder has no safetensors files, or not the weights that transformers takes from it by name.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        found = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no mapping)
        return _digest((name, found[name].get_tensor(name)) for name, _ in model.named_parameters())
    except KeyError as error:
        raise InputError(f"{folder}: no weights called {error} in its safetensors files") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: no weights that can be read ({' '.join(str(error).split())[:200]})") from None


def _digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    hashed = hashlib.sha256()
    for name, weight in weights:
        flat = weight.reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        hashed.update(f"{name} {tuple(weight.shape)}\n".encode() + some.view(torch.int16).numpy().tobytes())
    return hashed.hexdigest()[:16]
