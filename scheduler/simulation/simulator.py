"""Simulated iterations: the paper's clock, or a cost model; with chunked prefill where tokens are limited."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush

from scheduler.batch import RunningBatch
from scheduler.cost_model import Clock
from scheduler.errors import InputError
from scheduler.executor import Executor, Progress
from scheduler.look_ahead import LookAhead
from scheduler.request import Request
from scheduler.worker import Worker


class SimulatedExecutor(Executor):
    """Gives every running request a token per iteration and skips from event to event.

    Without a cost model an iteration takes 1 and prefill is free: the model of arXiv 2508.14544. A request that
    arrives while an iteration runs is seen at its end.
    """

    now = 0.0
    """Iterations since the start, or seconds with a cost model: the largest float that the exact clock has reached."""

    def __init__(self, worker: Worker, output_lens: Sequence[int], look_ahead: LookAhead | None = None) -> None:
        """Start at time 0.

        Args:
            worker: What it plays.
            output_lens: True output length by request index, each at least 1.
            look_ahead: Reads prompts of waiting requests in each iteration, after all that runs; the loop has it too.
        """
        self.worker, self._output_lens = worker, output_lens
        self._clock, self._max_batch_tokens = Clock.of(worker.cost_model), worker.max_batch_tokens
        self._look_ahead = look_ahead
        self._spare_tokens = math.inf  # of an iteration, after all that runs
        self._ticks = 0
        self._prefill: dict[int, tuple[int, int]] = {}  # tokens still to be prefilled, and to be generated then
        self._ends: list[tuple[int, int]] = []  # heap of (iteration, request); outdated entries stay
        self._end_of: dict[int, int] = {}

    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a request whose true peak exceeds the cache."""
        peak = request.num_prompt_tokens + self._output_lens[index]
        kv_cache = self.worker.kv_cache
        if kv_cache.blocks(peak) > kv_cache.num_blocks:
            raise InputError(
                f"request {request.request_id!r}: prompt and output take {peak} tokens, more than the KV budget of "
                f"{kv_cache.kv_budget}"
            )

    def wait_until(self, time: float) -> None:
        """Jump to the first tick at or after `time`."""
        self._ticks = max(self._ticks, self._ticks_at(time))
        self.now = self._read_clock()

    def evict(self, index: int) -> int:
        """Forget when the request would have ended; return how many tokens were still to be prefilled."""
        self._end_of.pop(index, None)
        return self._prefill.pop(index, (0, 0))[0]

    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Take in a request for prefill."""
        self._prefill[index] = (num_prefill_tokens, self._output_lens[index] - num_generated)

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run until something ends, for `most` iterations, or up to the first that ends at or after `next_arrival`."""
        clock, count = running.clock, len(running)
        prefill_tokens, num_decoding = 0, count
        stalled: Sequence[int] = ()
        if self._max_batch_tokens is not None:
            prefill_tokens, num_decoding, stalled = self._fill(running, self._max_batch_tokens)
        elif self._prefill:
            num_decoding -= len(self._prefill)
            for index, (tokens, remaining) in self._prefill.items():
                prefill_tokens += tokens
                self._end_at(index, clock + remaining)
            self._prefill.clear()
        is_alone = self._look_ahead is None or not self._look_ahead.is_reading
        if self._look_ahead is not None:
            prefill_tokens += self._look_ahead.read(self._spare_tokens)
        held = 0
        if not self._clock.is_constant:
            held = running.total_tokens + running.shared_tokens + count - len(stalled)
        self._ticks += self._clock.first(prefill_tokens, num_decoding, held)
        self.now = first_end = self._read_clock()
        num_iterations = 1
        next_end = self._next_end()
        if most > 1 and is_alone and not stalled and count <= (self._max_batch_tokens or count):
            more = int(min(most, next_end - clock)) - 1
            if more and next_arrival < math.inf:
                more = self._before(next_arrival, more, count, held)
            if more:
                self._ticks += self._clock.decode(more, count, held)
                self.now = self._read_clock()
                num_iterations += more
        finished = self._pop_ended(next_end) if clock + num_iterations == next_end else ()
        return Progress(first_end, finished, stalled, num_iterations)

    def _fill(self, running: RunningBatch, budget: int) -> tuple[int, int, Sequence[int]]:
        """Return prefill tokens, decoding requests and those that get no token, of an iteration of `budget` tokens."""
        clock, stalled, prefill_tokens, num_decoding = running.clock, [], 0, 0
        for index in running:
            if index not in self._prefill:
                if num_decoding < budget:
                    num_decoding += 1
                else:
                    stalled.append(index)
                    self._end_at(index, self._end_of[index] + 1)
        budget -= num_decoding
        for index, (tokens, remaining) in list(self._prefill.items()):
            chunk = min(max(1, tokens), budget)  # an empty prompt takes a token's place
            budget -= chunk
            prefill_tokens += min(tokens, chunk)
            if chunk >= max(1, tokens):
                del self._prefill[index]
                self._end_at(index, clock + remaining)
            else:
                self._prefill[index] = (tokens - chunk, remaining)
                stalled.append(index)
        self._spare_tokens = budget
        return prefill_tokens, num_decoding, stalled

    def _end_at(self, index: int, iteration: int) -> None:
        self._end_of[index] = iteration
        heappush(self._ends, (iteration, index))

    def _next_end(self) -> float:
        """Return the iteration in which the next request ends, as far as known."""
        ends, end_of = self._ends, self._end_of
        while ends:
            end, index = ends[0]
            if end_of.get(index) == end:
                return end
            heappop(ends)
        return math.inf

    def _pop_ended(self, iteration: float) -> list[int]:
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
        left = self._ticks_at(time) - self._ticks
        if left <= 0:
            return 0
        decode = self._clock.decode
        if decode(most, count, held) < left:
            return most
        return bisect_left(range(most), left, key=lambda n: decode(n, count, held))

    def _read_clock(self) -> float:
        """Return the largest float at or before the clock: the nearest may be an arrival that is yet to come."""
        unit = self._clock.ticks_per_unit
        now = self._ticks / unit
        numerator, denominator = now.as_integer_ratio()
        return math.nextafter(now, 0.0) if numerator * unit > self._ticks * denominator else now

    def _ticks_at(self, time: float) -> int:
        """Return the first tick at or after `time`, exactly."""
        numerator, denominator = time.as_integer_ratio()
        return -(-numerator * self._clock.ticks_per_unit // denominator)
