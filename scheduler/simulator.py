"""Simulated iterations: the paper's clock, or a cost model; with chunked prefill where tokens are limited."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush

from scheduler.batch import RunningBatch
from scheduler.cost_model import Clock, CostModel
from scheduler.errors import InputError
from scheduler.executor import Executor, Progress
from scheduler.kv_cache import KvCache
from scheduler.request import Request


class SimulatedExecutor(Executor):
    """Gives every running request a token per iteration and skips from event to event.

    Without a cost model an iteration takes 1 and prefill is free: the model of arXiv 2508.14544. A request that
    arrives while an iteration runs is seen at its end.
    """

    def __init__(
        self,
        kv_cache: KvCache,
        output_lens: Sequence[int],
        *,
        cost_model: CostModel | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        """Start at time 0.

        Args:
            kv_cache: The memory, for rejecting what can never fit.
            output_lens: True output length by request index, each at least 1.
            cost_model: What an iteration takes; None for the iteration clock.
            max_batch_tokens: Most tokens of one iteration, or None: requests in decode come first with one each, then
                prefills in order of admission, split where they do not fit (chunked prefill).
        """
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens is {max_batch_tokens}, must be >= 1")
        self._kv_cache, self._output_lens = kv_cache, output_lens
        self._clock, self._max_batch_tokens = Clock.of(cost_model), max_batch_tokens
        self._ticks = 0
        self._prefill: dict[int, int] = {}  # tokens still to be prefilled
        self._generated: dict[int, int] = {}  # of requests in prefill
        self._ends: list[tuple[int, int]] = []  # heap of (iteration, request); outdated entries stay
        self._end_of: dict[int, int] = {}

    @property
    def now(self) -> float:
        """Iterations since the start, or seconds with a cost model."""
        return self._ticks / self._clock.ticks_per_unit

    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a request whose true peak exceeds the cache."""
        peak = request.num_prompt_tokens + self._output_lens[index]
        if self._kv_cache.blocks(peak) > self._kv_cache.num_blocks:
            raise InputError(
                f"request {request.request_id!r}: prompt and output take {peak} tokens, more than the KV budget of "
                f"{self._kv_cache.kv_budget}"
            )

    def wait_until(self, time: float) -> None:
        """Jump to the first tick at or after `time`."""
        self._ticks = max(self._ticks, self._ticks_at(time))

    def evict(self, index: int) -> None:
        """Forget when the request would have ended."""
        self._prefill.pop(index, None)
        self._generated.pop(index, None)
        self._end_of.pop(index, None)

    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Take in a request for prefill."""
        self._prefill[index] = num_prefill_tokens
        self._generated[index] = num_generated

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run until something ends, for `most` iterations, or up to the first that ends at or after `next_arrival`."""
        clock, count = running.clock, len(running)
        prefill_tokens, num_decoding = 0, count
        stalled: Sequence[int] = ()
        if self._prefill or (self._max_batch_tokens or count) < count:
            prefill_tokens, num_decoding, stalled = self._fill(running)
        held = running.total_tokens + count - len(stalled)
        self._ticks += self._clock.first(prefill_tokens, num_decoding, held)
        first_end = self.now
        num_iterations = 1
        if most > 1 and not stalled and count <= (self._max_batch_tokens or count):
            more = min(most, self._next_end() - clock) - 1
            if more:
                more = self._before(next_arrival, int(more), count, held)
                self._ticks += self._clock.decode(more, count, held)
                num_iterations += more
        return Progress(first_end, self._pop_ended(clock + num_iterations), stalled, num_iterations)

    def _fill(self, running: RunningBatch) -> tuple[int, int, Sequence[int]]:
        """Return prefill tokens, decoding requests and those that get no token, of one iteration with prefill."""
        budget = math.inf if self._max_batch_tokens is None else self._max_batch_tokens
        clock, stalled, prefill_tokens, num_decoding = running.clock, [], 0, len(running) - len(self._prefill)
        if budget < math.inf:
            for index in running:
                if index not in self._prefill:
                    if budget:
                        budget -= 1
                    else:
                        num_decoding -= 1
                        stalled.append(index)
                        self._end_at(index, self._end_of[index] + 1)
        for index, tokens in list(self._prefill.items()):
            chunk = min(max(1, tokens), budget)
            budget -= chunk
            prefill_tokens += min(tokens, int(chunk))
            if chunk >= max(1, tokens):
                del self._prefill[index]
                self._end_at(index, clock + self._output_lens[index] - self._generated.pop(index))
            else:
                self._prefill[index] = tokens - int(chunk)
                stalled.append(index)
        return prefill_tokens, num_decoding, stalled

    def _end_at(self, index: int, iteration: int) -> None:
        self._end_of[index] = iteration
        heappush(self._ends, (iteration, index))

    def _next_end(self) -> int:
        """Return the iteration in which the next request ends."""
        ends, end_of = self._ends, self._end_of
        while end_of.get(ends[0][1]) != ends[0][0]:
            heappop(ends)
        return ends[0][0]

    def _pop_ended(self, iteration: int) -> list[int]:
        """Return the requests that end in this iteration, in order of index."""
        ends, ended = self._ends, []
        while ends and ends[0][0] <= iteration:
            end, index = heappop(ends)
            if self._end_of.get(index) == end:
                del self._end_of[index]
                ended.append(index)
        return ended

    def _before(self, time: float, most: int, count: int, held: int) -> int:
        """Return how many iterations, at most `most`, run up to the first that ends at or after `time`."""
        if time == math.inf:
            return most
        left = self._ticks_at(time) - self._ticks
        if left <= 0:
            return 0
        decode = self._clock.decode
        if decode(most, count, held) < left:
            return most
        return bisect_left(range(most), left, key=lambda n: decode(n, count, held))

    def _ticks_at(self, time: float) -> int:
        """Return the first tick at or after `time`, exactly."""
        numerator, denominator = time.as_integer_ratio()
        return -(-numerator * self._clock.ticks_per_unit // denominator)
