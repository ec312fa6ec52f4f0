"""Executors carry out iterations; they alone know the true output lengths."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.kv_cache import Ints, KvCache
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration did.

    Attributes:
        produced: New tokens of each running row (0 for one still in prefill), shape [n].
        finished: Rows whose last token is out.
    """

    produced: Ints
    finished: Ints


class Executor(ABC):
    """Carries out the iterations of one run."""

    @property
    @abstractmethod
    def now(self) -> float:
        """The clock, in the executor's unit (iterations or seconds)."""

    @abstractmethod
    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a request that could never be finished."""

    @abstractmethod
    def wait_until(self, time: float) -> None:
        """Let the clock reach `time`; nothing runs meanwhile."""

    @abstractmethod
    def evict(self, index: int) -> None:
        """Free the memory of a running request."""

    @abstractmethod
    def admit(self, index: int) -> None:
        """Start or restart a request in the next iteration."""

    @abstractmethod
    def iterate(self, running: RunningBatch) -> Iteration:
        """Run one iteration of `running`."""


class SimulatedExecutor(Executor):
    """The iteration clock of the paper: each iteration takes 1 and gives every running request one token."""

    def __init__(self, kv_cache: KvCache, output_lens: Sequence[int]) -> None:
        """Start at time 0.

        Args:
            kv_cache: The memory, for rejecting what can never fit.
            output_lens: True output length by request index, each at least 1.
        """
        self._kv_cache = kv_cache
        self._output_lens = np.asarray(output_lens, dtype=np.int64)
        self._now = 0

    @property
    def now(self) -> float:
        """Iterations since the start."""
        return self._now

    def check(self, index: int, request: Request) -> None:
        """Raise InputError for a request whose true peak exceeds the cache."""
        peak = request.num_prompt_tokens + int(self._output_lens[index])
        if self._kv_cache.blocks(peak) > self._kv_cache.num_blocks:
            raise InputError(
                f"request {request.request_id!r}: prompt and output take {peak} tokens, more than the KV budget of "
                f"{self._kv_cache.num_blocks * self._kv_cache.block_size}"
            )

    def wait_until(self, time: float) -> None:
        """Jump to the first iteration at or after `time`."""
        self._now = max(self._now, math.ceil(time))

    def evict(self, index: int) -> None:
        """Do nothing: memory is accounted in the loop."""

    def admit(self, index: int) -> None:
        """Do nothing: prefill is free in the paper's model."""

    def iterate(self, running: RunningBatch) -> Iteration:
        """Give every running request one token."""
        self._now += 1
        finished = np.flatnonzero(running.num_generated + 1 >= self._output_lens[running.indices])
        return Iteration(np.ones(len(running), dtype=np.int64), finished)
