"""The served model: loading it, its chat template, and answers from it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils.logging
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from pipelines.memory import keep_freed_memory
from predictor.errors import InputError
from scheduler.batch import RunningBatch
from scheduler.executor import Progress
from scheduler.integrations.transformers_cb import TransformersExecutor
from scheduler.integrations.transformers_engine import Output, end_tokens
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import make_policy
from scheduler.request import Request
from scheduler.worker import Worker

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
"""Single precision on a CPU keeps greedy tokens independent of what else is in the batch."""
SECONDS_BETWEEN_SNAPSHOTS = 2.0
"""At least so many, and more where writing one takes longer than its share of the time."""
MAX_SHARE_OF_SNAPSHOTS = 0.02


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A causal language model with what is needed to serve it."""

    name: str
    model: Any
    tokenizer: Any
    generation_config: GenerationConfig
    max_context: int


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
    greedy: bool = False,
    trust_remote_code: bool = False,
) -> ServedModel:
    """Return a served model from a local folder or the Hugging Face hub.

    Args:
        name: Folder or hub name.
        max_new_tokens: Cap of every answer, in tokens.
        device: "cpu" or "cuda"; by default cuda where there is one.
        greedy: Take the likeliest token instead of the model's own sampling settings.
        trust_remote_code: Run Python files that the model brings; without it a model that needs them is refused.

    Raises:
        InputError: It cannot be loaded, or has no end token.
    """
    keep_freed_memory()
    disable_progress_bar()  # of loading weights: seconds at most
    huggingface_hub.utils.logging.set_verbosity_error()  # its retries; the last error is shown
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; leave the option out")
    if (Path(name).exists() or name.count("/") != 1) and not (Path(name) / "config.json").exists():
        raise InputError(f"served model {name!r}: no folder with a config.json, and not a hub name (OWNER/MODEL)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=DTYPES[device], attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            raise InputError(
                f"served model {name!r} brings Python code of its own, which does not run unless you read it and give "
                "--trust-remote-code"
            ) from error
        raise InputError(
            f"served model {name!r} cannot be loaded ({reason}); a hub model needs a network, a "
            f"gated one also its terms accepted at https://huggingface.co/{name} and `hf auth login`"
        ) from error
    generation_config = copy.deepcopy(model.generation_config)
    generation_config.max_new_tokens = max_new_tokens
    if generation_config.eos_token_id is None:
        generation_config.eos_token_id = tokenizer.eos_token_id
    if not end_tokens(generation_config):
        raise InputError(f"served model {name!r} has no end token: every answer would run to the cap")
    if generation_config.pad_token_id is None:
        generation_config.pad_token_id = min(end_tokens(generation_config))
    if greedy:
        generation_config.do_sample = False
        generation_config.temperature = generation_config.top_p = generation_config.top_k = None
    max_context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
    short_name = Path(name).name if Path(name).exists() else name
    return ServedModel(short_name, model.to(device).eval(), tokenizer, generation_config, max_context)


def encode_prompts(served: ServedModel, prompts: Sequence[str], source: Path) -> list[list[int]]:
    """Return the token ids of each prompt as one user turn of the chat template (as they are without a template).

    Raises:
        InputError: A prompt and its answer would not fit the model's context; names the row of `source`.
    """
    ids: list[list[int]] = []
    room = served.max_context - served.generation_config.max_new_tokens
    for row, prompt in enumerate(prompts, 1):
        if served.tokenizer.chat_template is None:
            tokens = served.tokenizer(prompt)["input_ids"]
        else:
            turn = [{"role": "user", "content": prompt}]
            tokens = served.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        if len(tokens) > room:
            raise InputError(
                f"{source}: prompt {row} has {len(tokens)} tokens; {served.name} takes {served.max_context} with "
                f"max_new_tokens {served.generation_config.max_new_tokens}: shorten it or lower --max-new-tokens"
            )
        ids.append(list(tokens))
    return ids


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment of `generate`, by index: all that the answers to come depend on.

    To go on from one after an interruption leaves the lengths distributed as without it. To keep the answers that had
    ended, and draw the others afresh, does not: those are the long ones.

    Attributes:
        ended: The answers.
        begun: The tokens so far, in this call, of those that are being generated.
    """

    ended: Mapping[int, Output]
    begun: Mapping[int, Sequence[int]]


class _Recorded(TransformersExecutor):
    """Hands out a snapshot now and then."""

    on_snapshot: Callable[[Snapshot], None] | None = None
    _last_snapshot, _seconds_of_one = 0.0, 0.0

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        progress = super().iterate(running, most, next_arrival)
        wait = max(SECONDS_BETWEEN_SNAPSHOTS, self._seconds_of_one / MAX_SHARE_OF_SNAPSHOTS)
        if self.on_snapshot and (started := self.now) >= self._last_snapshot + wait:
            self.on_snapshot(Snapshot(self.outputs, self.running_tokens))
            self._last_snapshot, self._seconds_of_one = self.now, self.now - started
        return progress


def generate(
    served: ServedModel,
    prompts: Sequence[list[int]],
    *,
    max_running: int,
    seed: int,
    description: str,
    begun: Sequence[Sequence[int]] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> list[Output]:
    """Return the answers to all prompts, made without memory pressure: nothing is ever evicted.

    Args:
        served: The model.
        prompts: Token ids.
        max_running: About how many answers are generated at a time.
        seed: Of the sampling.
        description: Label of the progress bar.
        begun: Tokens that each answer has already and goes on from; the outputs have those that follow.
        on_snapshot: Called every few seconds.
    """
    begun = begun or [()] * len(prompts)
    caps = [int(served.generation_config.max_new_tokens) - len(tokens) for tokens in begun]
    prompts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
    sizes = [len(prompt) + cap for prompt, cap in zip(prompts, caps, strict=True)]
    block_size = 16
    kv_cache = KvCache.from_budget(max(*sizes, max_running * sum(sizes) // len(sizes)) + block_size, block_size)
    requests = [Request(str(i), len(prompt), cap) for i, (prompt, cap) in enumerate(zip(prompts, caps, strict=True))]
    worker = Worker(kv_cache, max_batch_tokens=max(512, 2 * max_running))
    executor = _Recorded(
        served.model,
        prompts,
        worker,
        served.generation_config,
        max_new_tokens=caps,
        seed=seed,
    )
    executor.on_snapshot = on_snapshot
    policy = make_policy("fcfs-reserve", worker, np.random.default_rng(seed))
    with tqdm(total=len(prompts), desc=description, unit="answer") as bar:
        try:
            Loop(policy, executor, requests).run(lambda finished: bar.update(len(finished)) and None)
        finally:
            executor.close()
    return [executor.outputs[i] for i in range(len(prompts))]
