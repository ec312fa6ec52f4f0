"""SGLang's scheduler: reserve a share of max_new_tokens that adapts to how often memory runs out."""

import math

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.policy import Decision, Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

INITIAL_RATIO, LEAST_RATIO, DECAY_STEPS = 0.7, 0.7 * 0.14, 600
RETRACT_STEPS = 20
CLIP = 4096


class SglangRatio(Policy):
    """Adaptive `new_token_ratio` with retraction (SGLang's `PrefillAdder` and `ScheduleBatch.retract_decode`).

    Admission, in order of the queue: prompt + min(max_new_tokens, 4096) of the newcomer must be less than the free
    tokens minus the reservation of what runs, ratio * sum min(max_new_tokens - generated, 4096). After a refusal
    nothing is tried until a request ends or is retracted. The ratio starts at 0.7 and falls to 0.098 over 600
    iterations that neither admit nor retract.

    When the next iteration does not fit, requests with the fewest generated tokens are retracted, of those the longest
    prompt first, until there is room for 20 more tokens each; they wait at the end of the queue, and the ratio becomes
    (sum of generated + 20 n) / (sum of max_new_tokens + 1) of the n that stay.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator) -> None:
        """Start with nothing waiting; arguments as in `Policy`."""
        super().__init__(worker, rng)
        self._num_queued = 0
        self._is_full = False
        self._max_new_sum, self._prompt_sum, self._num_clipped = 0, 0, 0  # of the running requests
        self._ratio_at_reset, self._num_decays, self._clock, self._decays = INITIAL_RATIO, 0, 0, False

    @property
    def _ratio(self) -> float:
        decay = (INITIAL_RATIO - LEAST_RATIO) / DECAY_STEPS * self._num_decays
        return max(self._ratio_at_reset - decay, min(self._ratio_at_reset, LEAST_RATIO))

    def add(self, index: int, request: Request) -> None:
        """Queue a request at the end."""
        self._num_queued += 1
        self.waiting.add(self._num_queued, index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the retractions that the next iteration needs, or else the admissions within the reservation."""
        if self._decays:
            self._num_decays += running.clock - self._clock
        elif running.clock > self._clock:
            self._num_decays += running.clock - self._clock - 1
        if not len(running):
            self._ratio_at_reset, self._num_decays = INITIAL_RATIO, 0
        self._clock = running.clock
        preempted = self._retract(running) if running.next_blocks > self.worker.kv_cache.num_blocks else []
        admitted = [] if preempted or self._is_full else self._admit(running)
        self._decays = not (preempted or admitted)
        return Decision(preempted, admitted, 1 if preempted else math.inf)

    def _admit(self, running: RunningBatch) -> list[int]:
        kv_cache, requests = self.worker.kv_cache, self.waiting.request
        size, blocks = kv_cache.block_size, kv_cache.blocks
        free = kv_cache.kv_budget - size * running.current_blocks
        generated = running.total_tokens + running.shared_tokens - self._prompt_sum
        unborn = self._max_new_sum - generated
        if self._num_clipped:
            unborn = sum(min(requests(index).max_new_tokens - running.num_generated(index), CLIP) for index in running)
        reserved = self._ratio * unborn
        spare = kv_cache.num_blocks - running.next_blocks - self.worker.watermark_blocks
        slots = self.worker.free_slots(len(running))
        admitted: list[int] = []
        while self.waiting:
            index, held, num_generated = self.waiting.head()
            max_new_tokens = requests(index).max_new_tokens
            common = self.waiting.head_common_blocks()
            need = held + size * common + min(max_new_tokens - num_generated, CLIP)
            spare -= blocks(held + 1) + common
            if (need >= free - reserved or spare < 0 or slots <= len(admitted)) and (len(running) or admitted):
                self._is_full = True
                break
            free -= size * (blocks(held) + common) + min(max_new_tokens, CLIP)
            admitted.append(self.waiting.pop())
            self._count(index, 1)
        return admitted

    def _count(self, index: int, sign: int) -> None:
        request = self.waiting.request(index)
        self._max_new_sum += sign * request.max_new_tokens
        self._prompt_sum += sign * request.num_prompt_tokens
        self._num_clipped += sign * (request.max_new_tokens > CLIP)

    def _retract(self, running: RunningBatch) -> list[int]:
        kept = sorted(
            running,
            key=lambda i: (running.num_generated(i), -self.waiting.request(i).num_prompt_tokens, i),
            reverse=True,
        )
        kv_cache = self.worker.kv_cache
        held = {index: kv_cache.blocks(running.num_tokens(index)) for index in kept}
        free, needed = kv_cache.num_blocks - sum(held.values()), running.next_blocks
        retracted: list[int] = []
        while needed > kv_cache.num_blocks or (
            len(kept) > 1 and free * kv_cache.block_size < RETRACT_STEPS * len(kept)
        ):
            index = kept.pop()
            free, needed = free + held[index], needed - running.blocks(index)
            retracted.append(index)
            self._count(index, -1)
            self._num_queued += 1
            self.waiting.requeue(index, running.num_generated(index) if self.worker.resume else 0, self._num_queued)
        generated = sum(running.num_generated(index) for index in kept)
        allowed = sum(self.waiting.request(index).max_new_tokens for index in kept)
        self._ratio_at_reset, self._num_decays = min(1.0, (generated + RETRACT_STEPS * len(kept)) / (allowed + 1)), 0
        self._is_full = False
        return retracted

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; there is room to try again."""
        if is_running:
            self._count(index, -1)
        super().end(index, status, num_generated, is_running=is_running)
        self._is_full = False
