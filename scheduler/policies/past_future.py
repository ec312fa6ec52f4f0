"""LightLLM's Past-Future scheduler: future peak of lengths drawn from recent history."""

import math
from collections import deque

import numpy as np

from scheduler.admission import admit_or_evict
from scheduler.batch import RunningBatch
from scheduler.kv_cache import Ints
from scheduler.policy import Decision, Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

WINDOW, NUM_INITIAL = 200, 100
RESERVE = 0.05


class PastFuture(Policy):
    """Admit in order of arrival while the peak of sampled lengths fits (arXiv 2507.10150; LightLLM `PastFutureQueue`).

    Before every iteration with a request waiting, the length of each running one is drawn anew from the last 200 output
    lengths above what it has generated, and that of each waiting one from all of them, in up to five samples; the
    largest future peak must stay below 95 % of the cache. History starts as 100 times the first max_new_tokens. When
    memory runs out the last admitted is paused.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator) -> None:
        """Start with nothing waiting and no history; arguments as in `Policy`."""
        super().__init__(worker, rng)
        self._history: deque[int] = deque(maxlen=WINDOW)
        self._max_new_tokens: dict[int, int] = {}

    def add(self, index: int, request: Request) -> None:
        """Queue a request by its arrival."""
        if not self._history:
            self._history.extend([request.max_new_tokens] * NUM_INITIAL)
        self._max_new_tokens[index] = request.max_new_tokens
        self.waiting.add(0.0, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the preemptions that the next iteration needs, or else the admissions whose sampled peak fits."""
        if not self.waiting or running.next_blocks > self.worker.kv_cache.num_blocks:
            return admit_or_evict(self, running, reversed)
        return Decision((), self._admit(running), 1 if self.waiting else math.inf)

    def _admit(self, running: RunningBatch) -> list[int]:
        indices, held, generated = running.columns()
        history = np.sort(np.array(self._history))
        num_samples = min(5, WINDOW // len(running) + 1) if len(running) else 1
        limits = np.array([self._max_new_tokens[index] for index in indices.tolist()], dtype=np.int64)
        lengths = self._running_lens(history, generated, limits, num_samples)
        remaining = np.maximum(1, np.minimum(limits, lengths) - generated)
        free = self.worker.kv_cache.num_blocks - running.next_blocks - self.worker.watermark_blocks
        slots = self.worker.free_slots(len(running))
        budget = self.worker.kv_cache.kv_budget - self.worker.kv_cache.block_size * running.common_blocks
        admitted: list[int] = []
        while self.waiting:
            index, tokens, kept = self.waiting.head()
            drawn = np.minimum(history[self.rng.integers(len(history), size=num_samples)], self._max_new_tokens[index])
            free -= self.worker.kv_cache.blocks(tokens + 1) + self.waiting.head_common_blocks()
            held = np.append(held, tokens)
            remaining = np.column_stack([remaining, np.maximum(1, drawn - kept)])
            peak = future_peak_tokens(held, remaining)
            full = peak >= (1 - RESERVE) * budget or free < 0 or slots <= len(admitted)
            if full and (admitted or len(running)):
                break
            admitted.append(self.waiting.pop())
        return admitted

    def _running_lens(self, history: Ints, generated: Ints, limits: Ints, num_samples: int) -> Ints:
        """Return sampled lengths of the running requests, shape [num_samples, n].

        Linear between the knots generated, the longer past lengths in order, and max_new_tokens.
        """
        first = np.searchsorted(history, generated, side="right")
        place = self.rng.random((num_samples, len(generated))) * (len(history) - first + 1)
        left = place.astype(np.int64)
        knots = np.concatenate([[0], history, [0]])
        low = np.where(left == 0, generated, knots[first + left])
        high = np.where(left == len(history) - first, limits, knots[first + left + 1])
        lengths: Ints = np.rint(low + (place - left) * (high - low)).astype(np.int64)
        return lengths

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; remember how long an answer was."""
        super().end(index, status, num_generated, is_running=is_running)
        if status is Status.ANSWERED:
            self._history.append(num_generated)
        del self._max_new_tokens[index]


def future_peak_tokens(held: Ints, remaining: Ints) -> int:
    """Return the largest peak, in tokens, of requests that hold `held` [n] and generate `remaining` [samples, n]."""
    order = np.argsort(-remaining, axis=1, kind="stable")
    counts = np.arange(1, len(held) + 1)
    peaks = np.cumsum(held[order], axis=1) + counts * np.take_along_axis(remaining, order, axis=1)
    return int(peaks.max())
