"""Executors carry out iterations; they alone know the true output lengths."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from scheduler.batch import RunningBatch
from scheduler.request import Request
from scheduler.worker import Worker


class Progress(NamedTuple):
    """What an executor did.

    Attributes:
        first_end: When the first of the iterations ended.
        finished: Requests whose last token came out in the last of them.
        stalled: Requests that got no token (one iteration then).
        num_iterations: How many; an engine runs one at a time.
    """

    first_end: float
    finished: Sequence[int]
    stalled: Sequence[int] = ()
    num_iterations: int = 1


class Executor(ABC):
    """Carries out the iterations of one run.

    Attributes:
        worker: What it runs on, the same that the policy has.
    """

    worker: Worker

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
    def evict(self, index: int) -> int:
        """Free the memory of a running request; return how many of its tokens were still to be prefilled."""

    @abstractmethod
    def admit(self, index: int, num_prefill_tokens: int, num_generated: int) -> None:
        """Start a request in the next iteration.

        Args:
            index: The request.
            num_prefill_tokens: Its prompt and the generated tokens that it kept through an eviction.
            num_generated: The latter.
        """

    @abstractmethod
    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run `running` for one iteration or more.

        Args:
            running: The batch; the caller advances it.
            most: Iterations for which the batch may stay as it is.
            next_arrival: No iteration may start at or after this time but the first.
        """
