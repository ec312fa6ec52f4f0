"""What a policy is asked and told."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.waiting.queue import WaitingQueue
from scheduler.worker import Worker


class Decision(NamedTuple):  # made by the million: a frozen dataclass takes three times as long to build
    """What to do before the next iteration.

    Attributes:
        preempt: Running requests to evict, in order; they free their memory first.
        admit: Waiting requests to start, in order. A request preempted now may be among them.
        valid_for: Iterations for which the policy would decide nothing more, unless a request arrives or ends or the
            cache runs full before. A simulator need not ask again until then; 1 is always right.
    """

    preempt: Sequence[int] = ()
    admit: Sequence[int] = ()
    valid_for: float = 1


class Status(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    """With its last token: a policy may learn from the length."""
    CANCELLED = "cancelled"
    """Without an answer: the client left, or the engine refused or failed."""


class Policy(ABC):
    """Decides which requests run. It keeps its own waiting queue and never touches an engine.

    The caller tells it of every arrival (`add`), every renewed forecast (`renew`) and every end (`end`), asks it before
    an iteration (`schedule`) and carries the decision out in full. A decision must leave a batch whose next iteration
    fits, and an idle worker must admit something. A request is named by its index, a small integer given at submission;
    ties that are not random go by arrival, then index.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator) -> None:
        """Start with nothing waiting.

        Args:
            worker: What the requests run on.
            rng: For what is random, ties above all.
        """
        self.worker, self.rng = worker, rng
        self.waiting = WaitingQueue(worker.kv_cache.block_size, shares_prefixes=worker.prefix_caching)

    @abstractmethod
    def add(self, index: int, request: Request) -> None:
        """Take in a request that has arrived."""

    @abstractmethod
    def schedule(self, running: RunningBatch) -> Decision:
        """Return the decision for the next iteration. The policy counts it as carried out."""

    def renew(self, index: int, renewal: Renewal) -> None:  # noqa: B027  (most policies read the first forecast alone)
        """Take in a renewed forecast of a request, running or waiting."""

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request.

        Args:
            index: The request.
            status: How it ended. Only an answer is learnt from.
            num_generated: Tokens that it generated; of an answer, its length.
            is_running: Whether it ran, or else waited.
        """
        self.waiting.remove(index, is_queued=not is_running)
