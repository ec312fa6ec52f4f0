"""The served model: loading it, how it samples, and its chat template."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils.logging
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from pipelines.memory import keep_freed_memory
from pipelines.served_model.gguf import BUNDLED, bundled_file, converted
from pipelines.served_model.packed_weights import pack_weights
from pipelines.served_model.weights_digest import weights_digest
from pipelines.settings.sampling import Sampling
from predictor.errors import InputError
from scheduler.integrations.transformers_engine import end_tokens

RANDOM = "random:"
"""Before a folder with config.json and tokenizer: that architecture with random weights, for what an iteration costs.
Its lengths mean something only where they are forced."""
BUNDLED_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0}
"""Of SmolLM2, whose file says nothing of sampling: what its bundled records were drawn with."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A causal language model with what is needed to serve it; `revision` is the hash of its weights."""

    name: str
    model: Any
    tokenizer: Any
    generation_config: GenerationConfig
    max_context: int
    revision: str


@contextmanager
def device_memory(remedy: str) -> Iterator[None]:
    """Turn running out of memory, the device's or the machine's, into an InputError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory on the device: {remedy}; finished work is kept") from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise InputError(f"out of memory: {remedy}; finished work is kept") from error


def load_served_model(
    name: str,
    max_new_tokens: int,
    device: str | None = None,
    *,
    sampling: Sampling | None = None,
    exact: bool = False,
    trust_remote_code: bool = False,
) -> ServedModel:
    """Return a served model from a local folder, a GGUF file or the Hugging Face hub.

    Args:
        name: Folder, GGUF file, hub name, "smollm2" for the bundled one, or "random:FOLDER" for random weights.
        max_new_tokens: Cap of every answer, in tokens.
        device: "cpu" or "cuda"; by default cuda where there is one.
        sampling: How tokens are drawn, where it differs from the model's own settings.
        exact: Compute in single precision: then greedy tokens do not depend on what else is in the batch.
        trust_remote_code: Run Python files that the model brings; without it a model that needs them is refused.

    Raises:
        InputError: It cannot be loaded, or has no end token.
    """
    keep_freed_memory()
    disable_progress_bar()  # of loading weights: seconds at most
    set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()  # its retries; the last error is shown
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; leave the option out")
    dtype = torch.float32 if exact else fastest_dtype(device)
    with _readable(name):
        place = place_of(name, dtype)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": "sdpa",
            "trust_remote_code": trust_remote_code,
        }
        model = _random(place, device, options) if name.startswith(RANDOM) else _with_weights(name, place, options)
    generation_config = _generation_config(name, model, tokenizer, max_new_tokens)
    (sampling or Sampling()).apply(generation_config)
    max_context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
    model = model.to(device).eval()
    revision = weights_digest(model)
    if not exact:
        pack_weights(model)
    return ServedModel(_short_name(name), model, tokenizer, generation_config, max_context, revision)


def _with_weights(name: str, place: str, options: Mapping[str, Any]) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(f"served model {name!r}: the weights of {min(report['missing_keys'])} are missing")
    return model


def _random(place: str, device: str, options: Mapping[str, Any]) -> Any:
    config = AutoConfig.from_pretrained(place, trust_remote_code=options["trust_remote_code"])
    with torch.device(device):  # billions of numbers are drawn where they stay
        return AutoModelForCausalLM.from_config(config, **options)


def fastest_dtype(device: str) -> torch.dtype:
    """Return half precision where the device multiplies it fast: a GPU, or a CPU with avx512_bf16 or amx."""
    features = torch.cpu.get_capabilities()
    is_fast = device != "cpu" or features.get("avx512_bf16") or features.get("amx_bf16")
    return torch.bfloat16 if is_fast else torch.float32


def place_of(name: str, dtype: torch.dtype) -> str:
    """Return what transformers loads: a folder or a hub name."""
    name = name.removeprefix(RANDOM)
    path = bundled_file() if name == BUNDLED else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"served model {name!r}: there is no such file")
        return str(converted(path, dtype))
    if (path.exists() or name.count("/") != 1) and not (path / "config.json").exists():
        raise InputError(
            f"served model {name!r}: no folder with a config.json, no GGUF file, and not a hub name (OWNER/MODEL) nor "
            f"{BUNDLED!r}"
        )
    return name


def _short_name(name: str) -> str:
    """Return what records call the model: of a GGUF file without its quantisation, which follows the last dot."""
    if name == BUNDLED:
        return bundled_file().stem.rpartition(".")[0]
    return Path(name).name.removesuffix(".gguf") if Path(name).exists() else name


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a damaged or foreign file makes its reader raise into one line; Rust's panics are no Exception."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            raise InputError(
                f"served model {name!r} brings Python code of its own, which does not run unless you read it and give "
                "--trust-remote-code"
            ) from error
        is_local = name == BUNDLED or Path(name).exists()
        remedy = (
            "the file may be damaged, or of a kind that transformers cannot read"
            if is_local
            else "a hub model needs a network, a gated one also its terms accepted at "
            f"https://huggingface.co/{name} and `hf auth login`"
        )
        raise InputError(f"served model {name!r} cannot be loaded ({reason}); {remedy}") from error


def _generation_config(name: str, model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    config: GenerationConfig = copy.deepcopy(model.generation_config)
    config.max_new_tokens = max_new_tokens
    if name == BUNDLED:
        config.update(**BUNDLED_SAMPLING)
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if not end_tokens(config):
        raise InputError(f"served model {name!r} has no end token: every answer would run to the cap")
    if config.pad_token_id is None:
        config.pad_token_id = min(end_tokens(config))
    return config


Chat = Sequence[Mapping[str, str]]
"""Messages with role and content; the last one is the user's."""


def encode_chats(served: ServedModel, chats: Sequence[Chat], source: Path) -> list[list[int]]:
    """Return the token ids of each conversation in the chat template (the last message alone without a template).

    Raises:
        InputError: The template fails or gives nothing, or a conversation and its answer would not fit the model's
            context; names the row of `source`.
    """
    ids: list[list[int]] = []
    room = served.max_context - served.generation_config.max_new_tokens
    for row, chat in enumerate(chats, 1):
        try:
            tokens = _encode(served.tokenizer, chat)
        except Exception as error:  # a template is a program of the model's makers
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{source}: row {row}: the chat template of {served.name} fails ({reason})") from error
        if not tokens:
            raise InputError(f"{source}: row {row}: the chat template of {served.name} gives no tokens")
        if len(tokens) > room:
            raise InputError(
                f"{source}: row {row}: the prompt has {len(tokens)} tokens; {served.name} takes {served.max_context} "
                f"with max_new_tokens {served.generation_config.max_new_tokens}: shorten it or lower --max-new-tokens"
            )
        ids.append(tokens)
    return ids


def _encode(tokenizer: Any, chat: Chat) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(chat[-1]["content"])["input_ids"])
    messages = [dict(message) for message in chat]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
