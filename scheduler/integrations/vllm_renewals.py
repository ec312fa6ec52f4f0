"""Renewed forecasts in vLLM's scheduler: it says which requests are due, and its worker reports what a probe read.

Both ways go along with what vLLM sends anyway, as an attribute of its `SchedulerOutput` and `ModelRunnerOutput`: that
works where the worker is in the scheduler's process and where it is in another one.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.batch import RunningBatch
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.renewals import Renewal, RenewalSource
from scheduler.request import Request

DUE, REPORT = "amin_due", "amin_report"
"""Attributes of vLLM's `SchedulerOutput` (a dict from a request's name to its index) and of its `ModelRunnerOutput`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StatesReport:
    """What a worker read of the requests that were due.

    Attributes:
        indices: Of the requests in the policy, [N].
        generated: Tokens that were out at their newest states, [N].
        logits: Of the probe, [N, K].
        seconds: Time that states took in the worker since the last report.
        failure: Why there are no states from now on; "" while there are.
    """

    indices: tuple[int, ...]
    generated: tuple[int, ...]
    logits: NDArray[np.float32]
    seconds: float
    failure: str = ""


class Renewer(Protocol):
    """Makes renewals of what a worker reported."""

    @property
    def num_failed(self) -> int:
        """Reported states that were no numbers: such a request keeps the forecast that it had."""

    def start(self, index: int) -> None:
        """Take note that a request was admitted."""

    def end(self, index: int) -> None:
        """Let go of a request."""

    def renew(
        self, indices: Sequence[int], generated: Sequence[int], logits: NDArray[np.float32], requests: Sequence[Request]
    ) -> Sequence[tuple[int, Renewal]]:
        """Return the renewals of requests, which are given as their prompts alone were predicted."""


class ReportedRenewals(RenewalSource):
    """Renews each request after its prefill and all of them every so many iterations, as the worker reports.

    An exception in here is logged once; from then on there are no renewals, and the policy goes by what it has.
    """

    def __init__(self, renewer: Renewer, every: int, metrics: Metrics) -> None:
        """Start with nothing admitted; `every`: iterations from one renewal of all to the next."""
        self._renewer, self._every, self._metrics = renewer, every, metrics
        self._new: set[int] = set()
        self._never: set[int] = set()
        self._reported: list[StatesReport] = []
        self._runner: PolicyRunner | None = None

    def attach(self, runner: PolicyRunner) -> None:
        """Renew the requests of a policy."""
        self._runner = runner
        runner.renewals = self

    def start(self, index: int, running: RunningBatch) -> None:
        """Have a request renewed as soon as its prompt is read."""
        if self._runner is not None:
            self._new.add(index)
            if not running.num_generated(index):
                self._never.add(index)
            self._renewer.start(index)

    def wait(self, running: RunningBatch) -> float:
        """Return 1: whether a prompt has been read shows after each iteration."""
        return 1

    def ask(self, output: Any, requests: Mapping[str, Any]) -> None:
        """Write into vLLM's output whose states are due after this iteration; `requests` are vLLM's, by name."""
        if self._runner is None:
            return
        with self._guard("asking"):
            due = dict(self._due(self._runner, output.num_scheduled_tokens, requests))
            self._new.difference_update(due.values())
            if due:
                setattr(output, DUE, due)

    def _due(
        self, runner: PolicyRunner, scheduled: Collection[str], requests: Mapping[str, Any]
    ) -> Iterator[tuple[str, int]]:
        self._new.intersection_update(runner.running)
        for index in runner.running if runner.running.clock % self._every == 0 else self._new:
            name = runner.request(index).request_id
            if name in scheduled and not requests[name].is_prefill_chunk:
                yield name, index

    def take_in(self, output: Any) -> None:
        """Keep what came with the worker's output until the policy is asked next."""
        report: StatesReport | None = getattr(output, REPORT, None)
        if report is None or self._runner is None:
            return
        self._metrics.renewal_seconds += report.seconds
        if report.failure:
            self._stop(f"the worker has no states any more: {report.failure}")
        else:
            self._reported.append(report)

    def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        """Return the renewals of what runs, in order of request index."""
        started = time.perf_counter()
        reported, self._reported = self._reported, []
        newest: dict[int, Renewal] = {}
        with self._guard("renewing"):
            for report in reported:
                newest.update(self._renewed(report, running))
            self._never.difference_update(newest)
            self._metrics.renewals += len(newest)
            self._metrics.states_failed = self._renewer.num_failed
            self._metrics.renewal_seconds += time.perf_counter() - started
            return sorted(newest.items())
        return ()

    def _renewed(self, report: StatesReport, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        rows = [row for row, index in enumerate(report.indices) if index in running]
        if not rows or self._runner is None:
            return ()
        indices = [report.indices[row] for row in rows]
        requests = [self._runner.request(index) for index in indices]
        return self._renewer.renew(indices, [report.generated[row] for row in rows], report.logits[rows], requests)

    def end(self, index: int, *, is_answered: bool) -> None:
        """Let go of a request; an answer that was never renewed is counted."""
        self._renewer.end(index)
        if index in self._never:
            self._never.remove(index)
            self._metrics.unrenewed += is_answered

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            logger.exception("amin: %s failed", what)
            self._stop(f"{what} failed")

    def _stop(self, reason: str) -> None:
        """Renew no more."""
        logger.error("amin: %s; from now on forecasts are those of the prompt", reason)
        self._metrics.failures += 1
        self._runner = None
        self._reported.clear()
        self._new.clear()
        self._never.clear()
