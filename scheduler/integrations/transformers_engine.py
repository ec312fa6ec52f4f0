"""Transformers' continuous batching, set up and driven one step at a time through its private API."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from scheduler.errors import InputError
from scheduler.integrations import transformers_sampling
from scheduler.integrations.transformers_attention import IN_WORDS, use_own_keys
from scheduler.kv_cache import KvCache

FIFO = "amin-fifo"
GRAPHS = {"use_cuda_graph": True, "q_padding_interval_size": 64, "kv_padding_interval_size": 8192}
"""On a GPU an iteration without a graph is bound by its launches; a graph is captured for each padded shape, so few.

With 512 tokens in an iteration and 20,480 in the cache there are 8 times 3 shapes, and as many again where a request
has more than 1,024 keys. One takes 0.1 to 0.2 s to capture.
"""


class OwnKeysFifo(FIFOScheduler):
    """The engine's own scheduler; being built between cache and batch, it is where the attention can be chosen."""

    def __init__(self, cache: Any, safety_margin: float | None, max_requests_per_batch: int) -> None:
        """Have each request of the new cache attend to its own keys, where that can be."""
        use_own_keys(cache)
        super().__init__(cache, safety_margin, max_requests_per_batch)


SCHEDULER_MAPPING[FIFO] = OwnKeysFifo


@dataclass(frozen=True, slots=True)
class Output:
    """The answer to one request.

    Attributes:
        tokens: Generated token ids, end token included.
        is_truncated: Whether it was cut at its limit of new tokens, not ended by the model.
    """

    tokens: list[int]
    is_truncated: bool


class Engine:
    """One engine with its cache; `close` frees it."""

    def __init__(
        self,
        model: Any,
        kv_cache: KvCache,
        generation_config: GenerationConfig,
        *,
        max_batch_tokens: int,
        is_forced: bool,
        seed: int,
        safety_margin: float | None,
        use_graphs: bool = True,
        forced_token: Callable[[RequestState], int] | None = None,
    ) -> None:
        """Set the engine up with a cache of `kv_cache` and its own first-in-first-out scheduler.

        Args:
            model: A transformers causal language model; its attention implementation may be switched.
            kv_cache: The memory; `block_size` is the engine's page size.
            generation_config: Sampling settings, `max_new_tokens` and `eos_token_id` included.
            max_batch_tokens: Most tokens of one iteration; longer prefills are split.
            is_forced: Whether each request generates exactly as many tokens as it may, whatever the model says.
            seed: Of the engine's sampling; reproducible only for an identical schedule.
            safety_margin: Share of free blocks below which the engine admits nothing; None for its own default.
            use_graphs: Whether iterations on a GPU run as CUDA graphs.
            forced_token: Returns the next token of a request, in place of what the model says.

        Raises:
            InputError: The engine could not make a cache of that size.
        """
        settings: dict[str, Any] = {
            "page_size": kv_cache.block_size,
            "num_blocks": kv_cache.num_blocks,
            "max_batch_tokens": max_batch_tokens,
            "scheduler_type": FIFO,
            "safety_margin": safety_margin,
            "allow_block_sharing": False,  # shared blocks would break the accounting
            "use_async_batching": False,
            "seed": seed,
        }
        if model.device.type == "cuda" and use_graphs:
            settings |= GRAPHS
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        if "page_size" not in known:
            settings["block_size"] = settings.pop("page_size")
        if is_forced:  # the lengths are given: no token needs to be drawn
            generation_config = copy.deepcopy(generation_config)
            generation_config.do_sample = False
            generation_config.temperature = generation_config.top_p = generation_config.top_k = None
        self._model, self._generation_config, self._is_forced = model, generation_config, is_forced
        self._config = model.config.get_text_config()
        self._attention = self._config._attn_implementation
        self._manager = model.init_continuous_batching(
            generation_config=generation_config, continuous_batching_config=ContinuousBatchingConfig(**settings)
        )
        try:
            self._processor = self._manager.batch_processor = self._manager._create_batch_processor()
        except BaseException:
            self._config._attn_implementation = self._attention
            raise
        if not settings.get("use_cuda_graph"):
            transformers_sampling.install(self._processor.model_runner, seed, model.device)
        if forced_token is not None:
            _force_tokens(self._processor.inputs_and_outputs, forced_token)
        if self._processor.cache.num_blocks < kv_cache.num_blocks:
            made = self._processor.cache.num_blocks
            self.close()
            raise InputError(f"the engine made {made} blocks of {kv_cache.num_blocks} asked for")

    @property
    def queues(self) -> Any:
        """The engine's scheduler: `waiting_requests`, `active_requests`."""
        return self._processor.scheduler

    @property
    def attention(self) -> str:
        """Which attention runs and, on a GPU, in how many CUDA graphs so far."""
        name = self._processor.cache.config._attn_implementation
        words = IN_WORDS.get(name, f"stock {name.removeprefix('paged|')}")
        if self._model.device.type != "cuda":
            return words
        return f"{words}; {len(self._processor.inputs_and_outputs.graphs._storage)} CUDA graphs"

    def state(self, index: int, prompt: list[int], max_new_tokens: int) -> RequestState:
        """Return a new request to the engine."""
        return RequestState(
            request_id=str(index),
            initial_tokens=list(prompt),
            max_new_tokens=int(max_new_tokens),
            eos_token_id=-1 if self._is_forced else self._generation_config.eos_token_id,
        )

    def free(self, state: RequestState) -> None:
        """Free the blocks of an active request and forget it."""
        self._processor.cache.free_blocks(state.request_id)
        del self.queues.active_requests[state.request_id]

    def prepare(self) -> int:
        """Let the engine's scheduler choose the next batch; return its prefill tokens.

        Raises:
            RuntimeError: It chose nothing although requests are there.
        """
        if not self._processor.prepare_next_batch():
            raise RuntimeError("the engine scheduled nothing although requests were admitted")
        batch = self._processor.inputs_and_outputs.requests_in_batch
        return sum(future.query_length for future in batch if not future.state.generated_tokens)

    @property
    def num_batch_tokens(self) -> int:
        """Tokens that the batch reads, padding left out."""
        return sum(future.query_length for future in self._processor.inputs_and_outputs.requests_in_batch)

    def read_in_batch(self) -> list[tuple[RequestState, int, int]]:
        """Return, in order of the batch, each request with the position and the number of the tokens that it reads."""
        batch = self._processor.inputs_and_outputs.requests_in_batch
        return [
            (future.state, future.state.position_offset - future.query_length, future.query_length) for future in batch
        ]

    def forward(self) -> None:
        """Run the batch and note its tokens."""
        with torch.no_grad():
            self._processor._generation_step(self._model)
            self._processor.update_batch()

    def output(self, state: RequestState, num_prompt_tokens: int) -> Output:
        """Return the answer of a finished request."""
        tokens = [*state.initial_tokens, *state.generated_tokens][num_prompt_tokens:]
        ended = self._is_forced or tokens[-1] in end_tokens(self._generation_config)
        return Output(tokens, is_truncated=not ended)

    def close(self) -> None:
        """Free the engine's cache; the model attends as before."""
        self._manager.destroy()
        self._config._attn_implementation = self._attention


def _force_tokens(inputs_and_outputs: Any, forced_token: Callable[[RequestState], int]) -> None:
    """Let the engine note other tokens than those that the model gave."""
    stock = inputs_and_outputs.prepare_batch_update

    def prepare_batch_update() -> tuple[Any, list[int], Any]:
        batch, _, logprobs = stock()
        return batch, [forced_token(future.state) for future in batch if future.has_new_token], logprobs

    inputs_and_outputs.prepare_batch_update = prepare_batch_update


def end_tokens(generation_config: GenerationConfig) -> set[int]:
    """Return the token ids that end an answer."""
    ids = generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
