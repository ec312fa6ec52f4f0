"""Forecasts that are renewed while a request runs, from what the served model has written so far."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from scheduler.batch import RunningBatch
from scheduler.forecast import Forecast
from scheduler.request import Request

UPPER_LEVEL = 0.95
"""Quantile that stands for an upper bound, as with the first predictions."""


@dataclass(frozen=True, slots=True, eq=False)
class Renewal:
    """What is known of a request once it has generated so many tokens.

    Attributes:
        num_generated: Tokens that are out; 0 of a request that waits.
        forecast: Distribution of the whole output length, which is read given that it exceeds `num_generated`.
        output_len_lower_bound: Bound of the whole length, in tokens, at the tau of the first bounds.
    """

    num_generated: int
    forecast: Forecast
    output_len_lower_bound: int

    def applied(self, request: Request) -> Request:
        """Return the request with what is known of it now in place of what was known at its arrival."""
        cap = request.max_new_tokens
        lower = max(1, min(self.output_len_lower_bound, cap))
        return replace(
            request,
            output_len_lower_bound=lower,
            output_len_upper_bound=max(lower, min(self._quantile(UPPER_LEVEL), cap)),
            output_len_prediction=max(1, min(self._quantile(0.5), cap)),
            forecast=self.forecast,
        )

    def _quantile(self, level: float) -> int:
        return int(self.forecast.conditional_quantile(self.num_generated, level))


class RenewalSource(ABC):
    """Hands renewals to the loop, which hands them to the policy before its next decision."""

    @abstractmethod
    def start(self, index: int, running: RunningBatch) -> None:
        """Take note that a request was admitted; it is the last of `running`."""

    @abstractmethod
    def wait(self, running: RunningBatch) -> float:
        """Return how many iterations may pass before the next renewal is due, at least 1; inf without one."""

    @abstractmethod
    def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        """Return what is due now, each once per admission, in order of request index."""


class NoRenewals(RenewalSource):
    """For predictors that read the prompt alone."""

    def start(self, index: int, running: RunningBatch) -> None:
        """Do nothing."""

    def wait(self, running: RunningBatch) -> float:
        """Return inf."""
        return math.inf

    def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        """Return nothing."""
        return ()


class PlannedRenewals(RenewalSource):
    """Renewals known beforehand, as a workload file has them. A request that restarts goes through them again."""

    def __init__(self, by_index: Mapping[int, Sequence[Renewal]]) -> None:
        """Start with nothing admitted. `by_index`: those of each request, ascending in generated tokens."""
        self._by_index = by_index
        self._due: list[tuple[int, int, int]] = []  # heap of (clock, index, place in its renewals)
        self._next: dict[int, int] = {}  # index -> place; an entry of the heap with another one is outdated

    def start(self, index: int, running: RunningBatch) -> None:
        """Queue the first renewal after what a request has generated."""
        plan, generated = self._by_index.get(index, ()), running.num_generated(index)
        place = next((k for k, renewal in enumerate(plan) if renewal.num_generated > generated), len(plan))
        self._queue(index, place, running)

    def _queue(self, index: int, place: int, running: RunningBatch) -> None:
        plan = self._by_index.get(index, ())
        if place < len(plan):
            self._next[index] = place
            ahead = plan[place].num_generated - running.num_generated(index)
            heappush(self._due, (running.clock + ahead, index, place))
        else:
            self._next.pop(index, None)

    def wait(self, running: RunningBatch) -> float:
        """Return the iterations until the first entry, which may be outdated: then nothing is due."""
        return max(1, self._due[0][0] - running.clock) if self._due else math.inf

    def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        """Return what is due; a request that got no token for a while is queued anew."""
        taken: list[tuple[int, Renewal]] = []
        while self._due and self._due[0][0] <= running.clock:
            _, index, place = heappop(self._due)
            if index not in running or self._next.get(index) != place:
                continue
            renewal = self._by_index[index][place]
            if running.num_generated(index) >= renewal.num_generated:
                taken.append((index, renewal))
                place += 1
            self._queue(index, place, running)
        return sorted(taken, key=lambda pair: pair[0])
