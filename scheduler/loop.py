"""The one loop: every policy is run by it, on every executor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.executor import Executor
from scheduler.kv_cache import KvCache
from scheduler.policy import Decision, Policy
from scheduler.request import Request

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """State during each iteration; times in the executor's unit.

    Attributes:
        end: When the iteration ended.
        duration: How long it took.
        num_waiting: Requests that had arrived and did not run.
        num_running: Requests that ran.
        kv_blocks: Blocks of the KV cache in use.
    """

    end: list[float] = field(default_factory=list)
    duration: list[float] = field(default_factory=list)
    num_waiting: list[int] = field(default_factory=list)
    num_running: list[int] = field(default_factory=list)
    kv_blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What happened to every request, by index; times in the executor's unit.

    Attributes:
        arrival_time: Shape [n].
        first_token_time: When the first token was produced for the first time, shape [n].
        finish_time: When the last token was produced, shape [n].
        num_evictions: Shape [n].
        num_recomputed_tokens: Prompt and generated tokens whose KV an eviction threw away, shape [n].
        timeline: Memory and queue in every iteration.
    """

    arrival_time: Floats
    first_token_time: Floats
    finish_time: Floats
    num_evictions: NDArray[np.int64]
    num_recomputed_tokens: NDArray[np.int64]
    timeline: Timeline


class Loop:
    """Runs a workload to its end: arrivals -> policy decides -> executor carries out -> outcomes are recorded."""

    def __init__(
        self,
        policy: Policy,
        executor: Executor,
        requests: Sequence[Request],
        kv_cache: KvCache,
        *,
        resume: bool = False,
    ) -> None:
        """Check every request and start with nothing running.

        Args:
            policy: A new policy; it is used up by the run.
            executor: A new executor that knows these requests by their index.
            requests: The workload; an index is a position in it.
            kv_cache: The memory, the same that the policy has.
            resume: Whether an evicted request keeps its generated tokens; the policy must agree.

        Raises:
            InputError: A request can never fit, or two have one id.
        """
        check_requests(requests, executor, kv_cache)
        self._policy, self._executor, self._requests, self._kv_cache = policy, executor, requests, kv_cache
        self._resume = resume
        self._arrivals = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i), reverse=True)
        self._num_waiting = 0
        self._running = RunningBatch()
        self._kept_tokens: dict[int, int] = {}
        arrival = np.array([r.arrival_time for r in requests], dtype=np.float64)
        self.result = RunResult(
            arrival_time=arrival,
            first_token_time=np.full(len(requests), np.nan),
            finish_time=np.full(len(requests), np.nan),
            num_evictions=np.zeros(len(requests), dtype=np.int64),
            num_recomputed_tokens=np.zeros(len(requests), dtype=np.int64),
            timeline=Timeline(),
        )

    def run(self, on_finish: Callable[[Sequence[int]], None] | None = None) -> RunResult:
        """Return the outcome of all requests; `on_finish` is told the indices that end, iteration by iteration."""
        while self._arrivals or self._num_waiting or len(self._running):
            self._take_arrivals()
            if not self._num_waiting and not len(self._running):
                self._executor.wait_until(self._requests[self._arrivals[-1]].arrival_time)
                continue
            self._carry_out(self._policy.schedule(self._running))
            finished = self._iterate()
            if on_finish and finished:
                on_finish(finished)
        return self.result

    def _take_arrivals(self) -> None:
        while self._arrivals and self._requests[self._arrivals[-1]].arrival_time <= self._executor.now:
            index = self._arrivals.pop()
            self._policy.add(index, self._requests[index])
            self._num_waiting += 1

    def _carry_out(self, decision: Decision) -> None:
        running = self._running
        if len(decision.preempt) == len(running) == 1:
            request = self._requests[int(running.indices[0])]
            raise InputError(
                f"request {request.request_id!r} outgrew the KV cache while it ran alone: raise the budget"
            )
        for row in decision.preempt:
            index = int(running.indices[row])
            self.result.num_evictions[index] += 1
            self.result.num_recomputed_tokens[index] += running.num_tokens[row]
            self._kept_tokens[index] = int(running.num_generated[row]) if self._resume else 0
            self._executor.evict(index)
        running.remove(decision.preempt)
        for index in decision.admit:
            running.append(index, self._requests[index].num_prompt_tokens, self._kept_tokens.pop(index, 0))
            self._executor.admit(index)
        self._num_waiting += len(decision.preempt) - len(decision.admit)

    def _iterate(self) -> list[int]:
        running, result = self._running, self.result
        blocks = int(self._kv_cache.blocks(running.num_tokens + 1).sum())
        assert len(running) > 0, "the policy left the worker idle"
        assert blocks <= self._kv_cache.num_blocks, "the policy left a batch that does not fit"
        started = self._executor.now
        iteration = self._executor.iterate(running)
        now = self._executor.now
        running.advance(iteration.produced)
        first = running.indices[(running.num_generated > 0) & np.isnan(result.first_token_time[running.indices])]
        result.first_token_time[first] = now
        finished: list[int] = running.indices[iteration.finished].tolist()
        result.finish_time[finished] = now
        for index in finished:
            self._policy.finish(index)
        timeline = result.timeline
        timeline.end.append(now)
        timeline.duration.append(now - started)
        timeline.num_waiting.append(self._num_waiting)
        timeline.num_running.append(len(running))
        timeline.kv_blocks.append(blocks)
        running.remove(iteration.finished)
        return finished


def check_requests(requests: Sequence[Request], executor: Executor, kv_cache: KvCache) -> None:
    """Raise InputError for an empty workload, a repeated id, or a request that can never fit."""
    if not requests:
        raise InputError("the workload has no request")
    budget, seen = kv_cache.num_blocks * kv_cache.block_size, set[str]()
    for index, request in enumerate(requests):
        if request.request_id in seen:
            raise InputError(f"request_id {request.request_id!r} appears twice")
        seen.add(request.request_id)
        least = request.num_prompt_tokens + request.output_len_lower_bound
        if kv_cache.blocks(least) > kv_cache.num_blocks:
            raise InputError(
                f"request {request.request_id!r}: {request.num_prompt_tokens} prompt tokens and at least "
                f"{request.output_len_lower_bound} output tokens do not fit the KV budget of {budget} tokens"
            )
        executor.check(index, request)
