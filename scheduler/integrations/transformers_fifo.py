"""Transformers' continuous batching left to its own first-in-first-out scheduler: the control for our loop.

No policy and no loop of ours: the engine is given every request as it arrives and decides alone, with its default
safety margin. Only clocks are read from outside.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from scheduler.integrations.transformers_cb import check_room
from scheduler.integrations.transformers_engine import Engine, Output
from scheduler.kv_cache import KvCache
from scheduler.loop import Outcomes, RunResult
from scheduler.request import Request


class EngineFifo:
    """One run of the engine by itself. A request that it evicts keeps its tokens (it "soft resets" them)."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        requests: Sequence[Request],
        kv_cache: KvCache,
        generation_config: GenerationConfig,
        *,
        max_batch_tokens: int,
        forced_lens: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """Set the engine up; arguments as in `TransformersExecutor`, and the requests with their arrivals.

        Raises:
            InputError: The engine could not make the cache, or a request can never fit.
        """
        self._limits = forced_lens or [int(generation_config.max_new_tokens)] * len(requests)
        for request, limit in zip(requests, self._limits, strict=True):
            check_room(request, limit, kv_cache)
        self._engine = Engine(
            model,
            kv_cache,
            generation_config,
            max_batch_tokens=max_batch_tokens,
            is_forced=forced_lens is not None,
            seed=seed,
            safety_margin=None,
        )
        self._prompts, self._requests, self._kv_cache = prompts, requests, kv_cache
        self._outcomes = Outcomes(requests)
        self.outputs: dict[int, Output] = {}

    @property
    def attention(self) -> str:
        """Which attention the engine runs, in words."""
        return self._engine.attention

    def run(self, on_finish: Callable[[Sequence[int]], None] | None = None) -> RunResult:
        """Return the outcome of all requests; `on_finish` is told the indices that end, as they do."""
        requests, queues = self._requests, self._engine.queues
        left = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i), reverse=True)
        started = time.perf_counter()
        while len(self.outputs) < len(requests):
            now = time.perf_counter() - started
            while left and requests[left[-1]].arrival_time <= now:
                index = left.pop()
                queues.add_waiting_request(self._engine.state(index, self._prompts[index], self._limits[index]))
            if not queues.active_requests and not queues.waiting_requests:
                time.sleep(max(0.0, requests[left[-1]].arrival_time - now))
                continue
            batch = self._prepare(now)
            self._engine.forward()
            finished = self._note(batch, now, time.perf_counter() - started)
            if on_finish and finished:
                on_finish(finished)
        return self._outcomes.result()

    def _prepare(self, now: float) -> list[RequestState]:
        """Let the engine choose a batch; return all that are active, and note who came and who was evicted."""
        before = dict(self._engine.queues.active_requests)
        self._engine.prepare()
        active, outcomes = self._engine.queues.active_requests, self._outcomes
        for name, state in before.items():
            if active.get(name) is not state:
                outcomes.num_evictions[int(name)] += 1
                outcomes.num_recomputed_tokens[int(name)] += state.position_offset
        for name in active:
            if math.isnan(outcomes.admission_time[int(name)]):
                outcomes.admission_time[int(name)] = now
        return list(active.values())

    def _note(self, batch: Sequence[RequestState], started: float, now: float) -> list[int]:
        """Note first tokens and ends of an iteration from `started` to `now`, and its entry in the timeline."""
        outcomes, finished = self._outcomes, []
        for state in batch:
            index = int(state.request_id)
            if state.generated_tokens and math.isnan(outcomes.first_token_time[index]):
                outcomes.first_token_time[index] = now
            if state.status == RequestStatus.FINISHED:
                finished.append(index)
                outcomes.finish_time[index] = now
                self.outputs[index] = self._engine.output(state, len(self._prompts[index]))
                outcomes.output_len[index] = len(self.outputs[index].tokens)
        blocks = sum(self._kv_cache.blocks(state.position_offset) for state in batch)
        num_waiting = len(self._engine.queues.waiting_requests)
        outcomes.entries.extend((now, now - started, 1, num_waiting, len(batch), blocks, blocks))
        return finished

    def close(self) -> None:
        """Free the engine's cache."""
        self._engine.close()
