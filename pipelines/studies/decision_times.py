"""How long policies take to decide, while many requests run and many more wait."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.executor import Progress
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import make_policy
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker
from scheduler.workload import Workload

NUM_DECISIONS = 1000
RESERVING = frozenset({"fcfs-reserve", "sglang"})
"""Policies that hold memory back for max_new_tokens, so that fewer requests run."""


class OneByOne(SimulatedExecutor):
    """Runs one iteration at a time, as an engine does, once `policy` is timed."""

    def __init__(self, policy: "Timed", worker: Worker, output_lens: Sequence[int]) -> None:
        super().__init__(worker, output_lens)
        self._policy = policy

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Run one iteration, or up to the next event."""
        return super().iterate(running, 1 if self._policy.is_timed else most, next_arrival)


class EnoughError(Exception):
    """The decisions asked for have been timed."""


class Timed(Policy):
    """Times the decisions of a policy from when no more than `num_waiting` requests wait."""

    def __init__(self, policy: Policy, num_waiting: int) -> None:
        super().__init__(policy.worker, policy.rng)
        self._policy, self._num_waiting = policy, num_waiting
        self.waiting = policy.waiting
        self.is_timed = False
        self.num_running: list[int] = []
        self.seconds: list[float] = []
        self.acted: list[bool] = []

    def add(self, index: int, request: Request) -> None:
        """Pass it on."""
        self._policy.add(index, request)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Pass it on."""
        self._policy.renew(index, renewal)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Pass it on."""
        self._policy.end(index, status, num_generated, is_running=is_running)

    def schedule(self, running: RunningBatch) -> Decision:
        """Pass it on and take the time."""
        self.is_timed = self.is_timed or 0 < len(self._policy.waiting) <= self._num_waiting
        started = time.thread_time()  # other work on the machine takes none of it
        decision = self._policy.schedule(running)
        if self.is_timed:
            self.num_running.append(len(running))
            self.seconds.append(time.thread_time() - started)
            self.acted.append(bool(decision.preempt or decision.admit))
            if len(self.seconds) == NUM_DECISIONS:
                raise EnoughError
        return decision


def decision_times(
    names: Iterable[str], workload: Workload, num_running: int, num_waiting: int
) -> list[dict[str, Any]]:
    """Return the processor time of a decision per policy, in us: over all, and over those that change something.

    Times are taken once no more than `num_waiting` requests wait. The others have been served before, the shortest
    first where a policy likes those. What is left is the queue of a server that has been overloaded for a while.
    """
    largest = max(request.num_prompt_tokens + request.max_new_tokens for request in workload.requests)
    rows = []
    for name in names:
        tokens_each = 600 if name in RESERVING else 250  # about what each of that many takes
        num_blocks = max(num_running * tokens_each // 16, largest // 16 + 1)  # a small scale still serves every request
        worker = Worker(KvCache(num_blocks, 16), resume=True)
        policy = make_policy(name, worker, np.random.default_rng(0), output_lens=workload.output_lens)
        timed = Timed(policy, num_waiting)
        executor = OneByOne(timed, worker, workload.output_lens)
        with suppress(EnoughError):
            Loop(timed, executor, workload.requests).run()
        micros = np.array(timed.seconds) * 1e6
        acted = micros[np.array(timed.acted)]
        rows.append({
            "policy": name,
            "decisions": len(micros),
            "mean_running": float(np.mean(timed.num_running)),
            "median_us": float(np.median(micros)),
            "p99_us": float(np.quantile(micros, 0.99)),
            "median_us_when_it_acts": float(np.median(acted)) if len(acted) else None,
        })  # fmt: skip
    return rows
