"""Runs the loop's iterations on transformers' continuous batching, with any Hugging Face causal language model.

Works with transformers >=5.17,<5.25: continuous batching is driven one step at a time through its private API,
which keeps the clock exact and every decision in the policy's hands. The engine's own first-in-first-out scheduler
only ever sees what the policy admitted, so it has nothing left to decide; see docs/architecture.md.
"""

import time
from array import array
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.executor import Executor, Progress
from scheduler.integrations.transformers_engine import Engine, Output
from scheduler.integrations.transformers_states import Chunk, StateReader
from scheduler.kv_cache import KvCache
from scheduler.look_ahead import LookAhead
from scheduler.request import Request
from scheduler.worker import Worker


class TransformersExecutor(Executor):
    """Generates with a real model; the clock is the wall clock in seconds since construction.

    An evicted request frees its cache blocks in the engine. It restarts from its prompt, or resumes with prompt and
    generated tokens as the new prompt.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        worker: Worker,
        generation_config: GenerationConfig,
        *,
        forced_lens: Sequence[int] | None = None,
        forced_tokens: Sequence[Sequence[int]] | None = None,
        max_new_tokens: Sequence[int] | None = None,
        states: StateReader | None = None,
        look_ahead: LookAhead | None = None,
        seed: int = 0,
    ) -> None:
        """Set the engine up with the worker's cache.

        Args:
            model: The served model.
            prompts: Token ids by request index.
            worker: The memory, and the most tokens of one iteration, without which there is no engine.
            generation_config: Sampling settings.
            forced_lens: If given, request i generates exactly forced_lens[i] tokens, whatever the model says, so
                that policies can be compared on the same work.
            forced_tokens: Likewise, the tokens of each answer: what the model reads is then the answer that has this
                length, as its states must be.
            max_new_tokens: Cap of each request's answer, in tokens; by default that of `generation_config` for all.
            states: Is told what each iteration read; closed by the caller.
            look_ahead: Reads prompts of waiting requests in each iteration, after all that runs; the loop has it too.
            seed: Of the engine's sampling.

        Raises:
            InputError: The engine could not make a cache of that size, or `worker` does not limit an iteration.
        """
        if worker.max_batch_tokens is None:
            raise InputError("max_batch_tokens is None, must be >= 1: an engine limits the tokens of an iteration")
        if forced_tokens is not None:
            forced_lens = [len(tokens) for tokens in forced_tokens]
        self._forced_tokens = forced_tokens
        self._engine = Engine(
            model,
            worker.kv_cache,
            generation_config,
            max_batch_tokens=worker.max_batch_tokens,
            is_forced=forced_lens is not None,
            seed=seed,
            safety_margin=0.0,  # memory is the policy's business
            forced_token=None if forced_tokens is None else self._next_token,
        )
        self.worker, self._prompts, self._reader, self._look_ahead = worker, prompts, states, look_ahead
        self._max_batch_tokens = worker.max_batch_tokens
        self._limits = forced_lens or max_new_tokens or [int(generation_config.max_new_tokens)] * len(prompts)
        self._states: dict[int, RequestState] = {}
        self._evicted: dict[int, RequestState] = {}
        self.outputs: dict[int, Output] = {}
        self.iterations = array("d")
        """Of each iteration: seconds since the end of the one before, the policy's time in it; prefill tokens, those
        read ahead included; requests that decode; tokens in the KV cache at its end."""
        self._started = time.perf_counter()
        self._last_end = 0.0

    @property
    def now(self) -> float:
        """Seconds since the engine was ready."""
        return time.perf_counter() - self._started

    @property
    def attention(self) -> str:
        """Which attention the engine runs, in words."""
        return self._engine.attention

    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a prompt that leaves no room for `max_new_tokens` in the cache."""
        check_room(request, self._limits[index], self.worker.kv_cache)

    @property
    def running_tokens(self) -> dict[int, list[int]]:
        """What the requests that run have generated so far."""
        return {
            index: [*state.initial_tokens, *state.generated_tokens][len(self._prompts[index]) :]
            for index, state in self._states.items()
        }

    def _next_token(self, state: RequestState) -> int:
        """Return the token that a request is made to generate next."""
        assert self._forced_tokens is not None
        index = int(state.request_id)
        return self._forced_tokens[index][self._num_generated(index, state)]

    def _num_generated(self, index: int, state: RequestState) -> int:
        return len(state.initial_tokens) + state.generated_len() - len(self._prompts[index])

    def wait_until(self, time: float) -> None:
        """Sleep until the clock reaches `time`."""
        _sleep(time - self.now)
        self._last_end = self.now

    def evict(self, index: int) -> int:
        """Free the blocks of a request in the engine; return how many tokens were still to be prefilled."""
        state = self._states.pop(index)
        num_missing = len(state.remaining_prefill_tokens)
        if self._reader is not None:
            self._reader.forget(state.request_id)
        queues = self._engine.queues
        if queues.waiting_requests.pop(state.request_id, None) is not None:
            queues.waiting_requests_order.remove(state.request_id)
        else:
            self._engine.free(state)
        if self.worker.resume:
            self._evicted[index] = state.create_equivalent_initial_request()
        return num_missing

    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Hand a request to the engine, which prefills it in the next iteration; what it kept is known here."""
        state = self._evicted.pop(index, None)
        if state is None:
            state = self._engine.state(index, self._prompts[index], self._limits[index])
        self._states[index] = state
        self._engine.queues.add_waiting_request(state)

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run one forward pass; requests still in prefill produce nothing."""
        num_prefilling = sum(not self._states[index].generated_tokens for index in running)
        prefill_tokens = self._engine.prepare()
        if self._engine.queues.starved_requests:
            raise RuntimeError("the engine ran out of blocks that the policy had counted as free")
        read = () if self._reader is None else self._engine.read_in_batch()
        spare = self._max_batch_tokens - self._engine.num_batch_tokens
        self._engine.forward()
        if self._reader is not None:
            self._reader.note([Chunk(s.request_id, at, size, self._prompt_len(s)) for s, at, size in read])
        if self._look_ahead is not None:
            prefill_tokens += self._look_ahead.read(spare)
        stalled, finished = [], []
        for index in running:
            state = self._states[index]
            if self._num_generated(index, state) == running.num_generated(index):
                stalled.append(index)
            if state.status == RequestStatus.FINISHED:
                finished.append(index)
                self._collect(index, self._states.pop(index))
        now = self.now
        num_decoding, num_tokens = len(running) - num_prefilling, running.total_tokens + len(running) - len(stalled)
        self.iterations.extend((now - self._last_end, prefill_tokens, num_decoding, num_tokens))
        self._last_end = now
        return Progress(now, finished, stalled)

    def _prompt_len(self, state: RequestState) -> int:
        return len(self._prompts[int(state.request_id)])

    def _collect(self, index: int, state: RequestState) -> None:
        if self._reader is not None:
            self._reader.forget(state.request_id)
        self.outputs[index] = self._engine.output(state, len(self._prompts[index]))

    def close(self) -> None:
        """Free the engine's cache."""
        self._engine.close()


def check_room(request: Request, limit: int, kv_cache: KvCache) -> None:
    """Raise InputError for a prompt that leaves no room for `limit` new tokens in the cache."""
    if kv_cache.blocks(request.num_prompt_tokens + limit) > kv_cache.num_blocks:
        raise InputError(
            f"request {request.request_id!r}: {request.num_prompt_tokens} prompt tokens and up to {limit} new ones "
            f"exceed the KV cache of {kv_cache.num_blocks} blocks of {kv_cache.block_size}"
        )


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)
