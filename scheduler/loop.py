"""The one loop: every policy is run by it, on every executor."""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from scheduler.arrival_source import ArrivalSource, KnownArrivals
from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.executor import Executor
from scheduler.kv_cache import Ints, KvCache
from scheduler.look_ahead import LookAhead
from scheduler.policy import Policy, Status
from scheduler.prefixes.cache import PrefixCache
from scheduler.renewals import NoRenewals, RenewalSource
from scheduler.request import Request

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """State from event to event: an entry is one iteration or several of one batch; times in the executor's unit.

    Time in which nothing runs has an entry, of no iteration, only where requests wait for something to be found out.

    Attributes:
        end: When the last of the iterations ended, shape [entries], as all others.
        duration: How long they took together.
        num_iterations: How many they were.
        num_waiting: Requests that had arrived and did not run, those that the policy did not know of yet included.
        num_running: Requests that ran.
        first_kv_blocks: Blocks of the KV cache in use during the first of them, the least.
        kv_blocks: During the last of them, the most.
    """

    end: Floats
    duration: Floats
    num_iterations: Ints
    num_waiting: Ints
    num_running: Ints
    first_kv_blocks: Ints
    kv_blocks: Ints

    @classmethod
    def from_entries(cls, entries: "array[float]") -> "Timeline":
        """Return the timeline of a flat list of entries, the attributes of each one after the other."""
        end, duration, *counts = np.array(entries).reshape(-1, len(fields(cls))).T
        return cls(end, duration, *(column.astype(np.int64) for column in counts))


@dataclass(frozen=True, slots=True)
class RunResult:
    """What happened to every request, by index; times in the executor's unit.

    Attributes:
        arrival_time: Shape [n].
        admission_time: When it was admitted for the first time, shape [n].
        first_token_time: When the first token was produced for the first time, shape [n].
        finish_time: When the last token was produced, shape [n].
        output_len: Tokens of its answer, shape [n].
        num_evictions: Shape [n].
        num_recomputed_tokens: Prompt and generated tokens whose KV an eviction threw away, shape [n].
        timeline: Memory and queue over time.
    """

    arrival_time: Floats
    admission_time: Floats
    first_token_time: Floats
    finish_time: Floats
    output_len: Ints
    num_evictions: Ints
    num_recomputed_tokens: Ints
    timeline: Timeline


class Outcomes:
    """What a run notes of every request, by index, as `RunResult` has it; NaN and 0 for what has not happened."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Start with nothing noted but the arrivals."""
        size = len(requests)
        self.arrival_time = [request.arrival_time for request in requests]
        self.admission_time, self.first_token_time, self.finish_time = ([math.nan] * size for _ in range(3))
        self.output_len, self.num_evictions, self.num_recomputed_tokens = ([0] * size for _ in range(3))
        self.entries = array("d")
        """Of the timeline, the attributes of each one after the other."""

    def note_idle(self, now: float, duration: float, num_waiting: int) -> None:
        """Note time in which nothing ran while requests waited: a new entry where their number has changed."""
        last, entries = len(self.entries) - len(fields(Timeline)), self.entries
        if last >= 0 and not entries[last + 2] and entries[last + 3] == num_waiting:
            entries[last : last + 2] = array("d", (now, entries[last + 1] + duration))
        else:
            entries.extend((now, duration, 0, num_waiting, 0, 0, 0))

    def result(self) -> RunResult:
        """Return what has happened so far."""
        return RunResult(
            arrival_time=np.array(self.arrival_time, dtype=np.float64),
            admission_time=np.array(self.admission_time, dtype=np.float64),
            first_token_time=np.array(self.first_token_time, dtype=np.float64),
            finish_time=np.array(self.finish_time, dtype=np.float64),
            output_len=np.array(self.output_len, dtype=np.int64),
            num_evictions=np.array(self.num_evictions, dtype=np.int64),
            num_recomputed_tokens=np.array(self.num_recomputed_tokens, dtype=np.int64),
            timeline=Timeline.from_entries(self.entries),
        )


class Loop:
    """Runs a workload to its end: arrivals -> policy decides -> executor carries out -> outcomes are recorded."""

    def __init__(
        self,
        policy: Policy,
        executor: Executor,
        requests: Sequence[Request],
        *,
        arrivals: ArrivalSource | None = None,
        renewals: RenewalSource | None = None,
        look_ahead: LookAhead | None = None,
    ) -> None:
        """Check every request and start with nothing running.

        Args:
            policy: A new policy; it is used up by the run.
            executor: A new executor on the same worker that knows these requests by their index.
            requests: The workload; an index is a position in it.
            arrivals: Hands the requests over, with what was found out about them since they arrived; by default each
                at its arrival, as it is in `requests`.
            renewals: Forecasts that replace the first ones while requests run; by default none.
            look_ahead: Finds out about requests that wait; the executor has it too.

        Raises:
            InputError: A request can never fit, or two have one id.
        """
        assert policy.worker == executor.worker, "policy and executor are for different workers"
        self._policy, self._executor, self._requests, self._worker = policy, executor, requests, policy.worker
        check_requests(requests, executor)
        self._arrivals = arrivals or KnownArrivals(requests)
        self._renewals, self._look_ahead = renewals or NoRenewals(), look_ahead
        self._next_arrival = self._arrivals.next_time
        self._num_waiting = 0
        self._running = RunningBatch(self._worker.kv_cache)
        self._kept_tokens: dict[int, int] = {}
        self._cache: PrefixCache | None = None
        if self._worker.prefix_caching:
            self._cache = policy.waiting.cached = PrefixCache(self._worker.kv_cache, policy.waiting.prefixes)
        self._outcomes = Outcomes(requests)
        self._without_token: list[int] = []  # running requests that have never produced one

    def run(self, on_finish: Callable[[Sequence[int]], None] | None = None) -> RunResult:
        """Return the outcome of all requests; `on_finish` is told the indices that end, as they do."""
        self.advance(math.inf, on_finish)
        return self.result()

    def advance(self, until: float, on_finish: Callable[[Sequence[int]], None] | None = None) -> None:
        """Run until the clock has reached `until` or, before, there is nothing to do; `on_finish` as in `run`."""
        running, executor, schedule = self._running, self._executor, self._policy.schedule
        self._next_arrival = self._arrivals.next_time  # something may have been handed in since
        while (self._num_waiting or len(running) or self._next_arrival < until) and executor.now < until:
            if self._next_arrival <= executor.now:
                self._take_arrivals()
            if not self._num_waiting and not len(running):
                self._wait()
                continue
            for index, renewal in self._renewals.take(running):
                self._policy.renew(index, renewal)
            if self._look_ahead is not None:
                for index, renewal in self._look_ahead.take():
                    self._policy.renew(index, renewal)
            preempted, admitted, valid_for = schedule(running)
            if preempted:
                self._evict(preempted)
            if admitted:
                self._admit(admitted)
            if self._cache is not None:
                running.hold_common(self._policy.waiting.prefixes.num_held)
            finished = self._iterate(valid_for)
            if on_finish and finished:
                on_finish(finished)

    def result(self) -> RunResult:
        """Return what has happened so far; NaN for what has not."""
        return self._outcomes.result()

    def _wait(self) -> None:
        started = self._executor.now
        self._executor.wait_until(self._next_arrival)
        if self._arrivals.num_held:
            now = self._executor.now
            self._outcomes.note_idle(now, now - started, self._arrivals.num_held)

    def _take_arrivals(self) -> None:
        taken = self._arrivals.take(self._executor.now)
        for index, request in taken:
            self._policy.add(index, request)
            if self._look_ahead is not None:
                self._look_ahead.add(index, request.num_prompt_tokens)
        self._num_waiting += len(taken)
        self._next_arrival = self._arrivals.next_time

    def _evict(self, preempted: Sequence[int]) -> None:
        running = self._running
        if len(preempted) == len(running) == 1 and running.next_blocks > self._worker.kv_cache.num_blocks:
            request_id = self._requests[preempted[0]].request_id
            raise InputError(f"request {request_id!r} outgrew the KV cache while it ran alone: raise the budget")
        outcomes = self._outcomes
        for index in preempted:
            outcomes.num_evictions[index] += 1
            computed = running.num_tokens(index) - self._executor.evict(index)
            if self._cache is None:
                outcomes.num_recomputed_tokens[index] += computed
            else:
                self._cache.evict(index, computed + running.num_shared(index))
            if self._worker.resume:
                self._kept_tokens[index] = running.num_generated(index)
            running.remove(index)
            if index in self._without_token:
                self._without_token.remove(index)
        self._num_waiting += len(preempted)

    def _admit(self, admitted: Sequence[int]) -> None:
        now, outcomes = self._executor.now, self._outcomes
        self._num_waiting -= len(admitted)
        for index in admitted:
            num_prompt_tokens, kept = self._requests[index].num_prompt_tokens, self._kept_tokens.pop(index, 0)
            shared, found = (0, 0) if self._cache is None else self._find(self._cache, index, num_prompt_tokens + kept)
            self._running.append(index, num_prompt_tokens - shared, kept, shared)
            self._executor.admit(index, num_prompt_tokens + kept - found, kept)
            self._renewals.start(index, self._running)
            if self._look_ahead is not None:
                self._look_ahead.drop(index)
            if not outcomes.num_evictions[index]:
                outcomes.admission_time[index] = now
                self._without_token.append(index)
            elif math.isnan(outcomes.first_token_time[index]):
                self._without_token.append(index)

    def _find(self, cache: PrefixCache, index: int, num_tokens: int) -> tuple[int, int]:
        """Return how many tokens of a request that is admitted are in common blocks, and how many need no prefill."""
        kv_cache = self._worker.kv_cache
        cache.overwrite(max(0, kv_cache.num_blocks - self._running.next_blocks))
        found, lost = cache.admit(index, num_tokens)
        self._outcomes.num_recomputed_tokens[index] += lost
        return kv_cache.block_size * self._policy.waiting.prefixes.num_taken(index), found

    def _end(self, index: int) -> None:
        """Let go of a request with its last token."""
        running, output_len = self._running, self._running.num_generated(index)
        self._outcomes.finish_time[index] = self._executor.now
        self._outcomes.output_len[index] = output_len
        if self._cache is not None:
            self._cache.release(index, running.num_tokens(index) + running.num_shared(index))
        running.remove(index)
        self._policy.end(index, Status.ANSWERED, output_len)

    def _iterate(self, valid_for: float) -> Sequence[int]:
        running, executor, first_blocks = self._running, self._executor, self._running.next_blocks
        count, started = len(running), executor.now
        assert count > 0, "the policy left the worker idle"
        assert first_blocks <= self._worker.kv_cache.num_blocks, "the policy left a batch that does not fit"
        most = valid_for
        if valid_for > 1:
            most = min(valid_for, running.num_iterations_that_fit(), self._renewals.wait(running))
        first_end, finished, stalled, num_iterations = executor.iterate(running, most, self._next_arrival)
        now = executor.now
        last_blocks = running.advance(num_iterations, stalled)
        if self._without_token:
            self._note_first_tokens(first_end, stalled)
        if self._cache is not None:
            self._cache.overwrite(self._worker.kv_cache.num_blocks - last_blocks)
        for index in finished:
            self._end(index)
        if self._cache is not None and finished:
            running.hold_common(self._policy.waiting.prefixes.num_held)
        num_waiting = self._num_waiting + self._arrivals.num_held
        entry = (now, now - started, num_iterations, num_waiting, count, first_blocks, last_blocks)
        self._outcomes.entries.extend(entry)
        return finished

    def _note_first_tokens(self, time: float, stalled: Sequence[int]) -> None:
        first_token_time, left = self._outcomes.first_token_time, []
        for index in self._without_token:
            if index in stalled:
                left.append(index)
            else:
                first_token_time[index] = time
        self._without_token = left


def check_requests(requests: Sequence[Request], executor: Executor) -> None:
    """Raise InputError for an empty workload, a repeated id, or a request that can never fit."""
    if not requests:
        raise InputError("the workload has no request")
    seen, kv_cache = set[str](), executor.worker.kv_cache
    for index, request in enumerate(requests):
        if request.request_id in seen:
            raise InputError(f"request_id {request.request_id!r} appears twice")
        seen.add(request.request_id)
        check_fits(request, kv_cache)
        executor.check(index, request)


def check_fits(request: Request, kv_cache: KvCache) -> None:
    """Raise InputError for a request that can never fit, whatever its length."""
    if kv_cache.blocks(request.num_prompt_tokens + request.output_len_lower_bound) > kv_cache.num_blocks:
        raise InputError(
            f"request {request.request_id!r}: {request.num_prompt_tokens} prompt tokens and at least "
            f"{request.output_len_lower_bound} output tokens do not fit the KV budget of "
            f"{kv_cache.kv_budget} tokens"
        )
