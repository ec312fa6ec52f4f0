"""Runs the loop's iterations on transformers' continuous batching, with any Hugging Face causal language model.

Works with transformers >=5.17,<5.24: continuous batching is driven one step at a time through its private API,
which keeps the clock exact and every decision in the policy's hands. The engine's own first-in-first-out scheduler
only ever sees what the policy admitted, so it has nothing left to decide; see docs/architecture.md.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.executor import Executor, Progress
from scheduler.kv_cache import KvCache
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Output:
    """The answer to one request.

    Attributes:
        tokens: Generated token ids, end token included.
        is_truncated: Whether it was cut at its limit of new tokens, not ended by the model.
    """

    tokens: list[int]
    is_truncated: bool


class TransformersExecutor(Executor):
    """Generates with a real model; the clock is the wall clock in seconds since construction.

    An evicted request frees its cache blocks in the engine. It restarts from its prompt, or resumes with prompt and
    generated tokens as the new prompt.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        kv_cache: KvCache,
        generation_config: GenerationConfig,
        *,
        max_batch_tokens: int,
        forced_lens: Sequence[int] | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> None:
        """Set the engine up with a cache of `kv_cache`.

        Args:
            model: A transformers causal language model; its attention implementation may be switched.
            prompts: Token ids by request index.
            kv_cache: The memory; `block_size` is the engine's page size.
            generation_config: Sampling settings, `max_new_tokens` and `eos_token_id` included.
            max_batch_tokens: Most tokens of one iteration; longer prefills are split.
            forced_lens: If given, request i generates exactly forced_lens[i] tokens, whatever the model says, so
                that policies can be compared on the same work.
            resume: Whether evicted requests keep their generated tokens.
            seed: Of the engine's sampling; reproducible only for an identical schedule.

        Raises:
            InputError: The engine could not make a cache of that size.
        """
        settings: dict[str, Any] = {
            "page_size": kv_cache.block_size,
            "num_blocks": kv_cache.num_blocks,
            "max_batch_tokens": max_batch_tokens,
            "scheduler_type": "fifo",
            "safety_margin": 0.0,  # memory is the policy's business
            "allow_block_sharing": False,  # shared blocks would break the accounting
            "use_async_batching": False,
            "seed": seed,
        }
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        if "page_size" not in known:
            settings["block_size"] = settings.pop("page_size")
        self._model, self._prompts, self._resume = model, prompts, resume
        self._generation_config, self._forced_lens = generation_config, forced_lens
        self._manager = model.init_continuous_batching(
            generation_config=generation_config, continuous_batching_config=ContinuousBatchingConfig(**settings)
        )
        self._engine = self._manager.batch_processor = self._manager._create_batch_processor()
        if self._engine.cache.num_blocks < kv_cache.num_blocks:
            raise InputError(
                f"the engine made {self._engine.cache.num_blocks} blocks of {kv_cache.num_blocks} asked for"
            )
        self._kv_cache, self._max_batch_tokens = kv_cache, max_batch_tokens
        self._states: dict[int, RequestState] = {}
        self._evicted: dict[int, RequestState] = {}
        self.outputs: dict[int, Output] = {}
        self._started = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since the engine was ready."""
        return time.perf_counter() - self._started

    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a prompt that leaves no room for `max_new_tokens` in the cache."""
        limit = self._limit(index)
        tokens = request.num_prompt_tokens + limit
        if self._kv_cache.blocks(tokens) > self._kv_cache.num_blocks:
            raise InputError(
                f"request {request.request_id!r}: {request.num_prompt_tokens} prompt tokens and up to {limit} new ones "
                f"exceed the KV cache of {self._kv_cache.num_blocks} blocks of {self._kv_cache.block_size}"
            )

    def _limit(self, index: int) -> int:
        return int(
            self._forced_lens[index] if self._forced_lens is not None else self._generation_config.max_new_tokens
        )

    def wait_until(self, time: float) -> None:
        """Sleep until the clock reaches `time`."""
        _sleep(time - self.now)

    def evict(self, index: int) -> None:
        """Free the blocks of a request in the engine."""
        state = self._states.pop(index)
        engine_scheduler = self._engine.scheduler
        if engine_scheduler.waiting_requests.pop(state.request_id, None) is not None:
            engine_scheduler.waiting_requests_order.remove(state.request_id)
        else:
            self._engine.cache.free_blocks(state.request_id)
            del engine_scheduler.active_requests[state.request_id]
        if self._resume:
            self._evicted[index] = state.create_equivalent_initial_request()

    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Hand a request to the engine, which prefills it in the next iteration; what it kept is known here."""
        state = self._evicted.pop(index, None) or RequestState(
            request_id=str(index),
            initial_tokens=list(self._prompts[index]),
            max_new_tokens=self._limit(index),
            eos_token_id=-1 if self._forced_lens is not None else self._generation_config.eos_token_id,
        )
        self._states[index] = state
        self._engine.scheduler.add_waiting_request(state)

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run one forward pass; requests still in prefill produce nothing."""
        with torch.no_grad():
            if not self._engine.prepare_next_batch():
                raise RuntimeError("the engine scheduled nothing although requests were admitted")
            if self._engine.scheduler.starved_requests:
                raise RuntimeError("the engine ran out of blocks that the policy had counted as free")
            self._engine._generation_step(self._model)
            self._engine.update_batch()
        stalled, finished = [], []
        for index in running:
            state = self._states[index]
            generated = len(state.initial_tokens) + state.generated_len() - len(self._prompts[index])
            if generated == running.num_generated(index):
                stalled.append(index)
            if state.status == RequestStatus.FINISHED:
                finished.append(index)
                self._collect(index, self._states.pop(index))
        return Progress(self.now, finished, stalled)

    def _collect(self, index: int, state: RequestState) -> None:
        tokens = [*state.initial_tokens, *state.generated_tokens][len(self._prompts[index]) :]
        ended = self._forced_lens is None and tokens[-1] in end_tokens(self._generation_config)
        self.outputs[index] = Output(tokens, is_truncated=not ended and self._forced_lens is None)

    def close(self) -> None:
        """Free the engine's cache."""
        self._manager.destroy()


def end_tokens(generation_config: GenerationConfig) -> set[int]:
    """Return the token ids that end an answer."""
    ids = generation_config.eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)
