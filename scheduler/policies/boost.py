"""Order by arrival minus a boost for little work: one knob between the mean and the tail."""

from collections.abc import Sequence
from math import expm1, inf, log
from typing import NamedTuple

from scheduler.cost_model import CostModel
from scheduler.worker import Worker

MEMORY = 1000
"""Arrivals that an average reaches back over."""
STEP = 1.25
FAR = 1.5
"""How much more work an admission has that is undone: it costs a prefill and a few tokens."""
TICKS = 1 << 20
"""Work is summed up in whole parts of an iteration: a sum that is taken back exactly does not drift."""


class Demand(NamedTuple):
    """What a request asks for over the rest of its life.

    Attributes:
        memory: Token-iterations of KV cache.
        tokens: Tokens to generate, so iterations in a slot.
        prefill: Tokens to prefill.
    """

    memory: float
    tokens: float
    prefill: float


class BindingResource:
    """Work in iterations of the whole worker, on the resource that binds: memory, slots, or tokens of an iteration.

    The one that binds is the one that all requests that are there ask most of. A request takes its share of it, and the
    time that its own tokens add to iterations, as far as the worker's cost model says: prefill, decoding, reading the
    cache. The sum is scaled so that the work of all is the iterations that they take.
    """

    def __init__(self, capacities: Demand, cost_model: CostModel | None = None) -> None:
        """Start with no request.

        Args:
            capacities: What the worker offers in an iteration; inf for what does not bind. Of `prefill` the tokens of
                an iteration, generated ones included.
            cost_model: What an iteration takes; None where it is the same whatever it does.
        """
        self._capacities = capacities
        base = cost_model.seconds_per_iteration if cost_model else 1.0
        self._costs = Demand(
            memory=cost_model.seconds_per_kv_token / base if cost_model else 0.0,
            tokens=cost_model.seconds_per_decoding_request / base if cost_model else 0.0,
            prefill=cost_model.seconds_per_prefill_token / base if cost_model else 0.0,
        )
        self._ticks: dict[int, Sequence[int]] = {}
        self._sums = [0, 0, 0, 0]
        self._binding, self._scale = 0, 1.0

    @classmethod
    def of(cls, worker: Worker) -> "BindingResource":
        """Return what binds on a worker."""
        capacities = Demand(worker.kv_cache.kv_budget, worker.max_running or inf, worker.max_batch_tokens or inf)
        return cls(capacities, worker.cost_model)

    def add(self, index: int, demand: Demand) -> None:
        """Count a request that asks for `demand` over its whole life."""
        memory, slots, tokens, own = (round(TICKS * amount) for amount in (*self._shares(demand), self._own(demand)))
        self._ticks[index] = ticks = (memory, slots, tokens, own)
        self._change(ticks, 1)

    def remove(self, index: int) -> None:
        """Let go of a request."""
        self._change(self._ticks.pop(index), -1)

    def iterations(self, demand: Demand) -> float:
        """Return the work of `demand` in iterations of the whole worker."""
        return (self._shares(demand)[self._binding] + self._own(demand)) * self._scale

    def _shares(self, demand: Demand) -> tuple[float, float, float]:
        memory, slots, tokens = self._capacities
        return demand.memory / memory, demand.tokens / slots, (demand.prefill + demand.tokens) / tokens

    def _own(self, demand: Demand) -> float:
        """Return the time that its own tokens add to iterations, in units of an empty one."""
        costs = self._costs
        return demand.memory * costs.memory + demand.tokens * costs.tokens + demand.prefill * costs.prefill

    def _change(self, ticks: Sequence[int], sign: int) -> None:
        self._sums = [total + sign * each for total, each in zip(self._sums, ticks, strict=True)]
        *shares, own = self._sums
        most = max(shares)
        self._binding = shares.index(most)
        self._scale = most / (most + own) if most else 1.0


class Boost:
    """Keys of gamma-Boost (Yu, Scully 2024; UniBoost 2026): arrival - b(w), w the work, all in iterations.

    b(w) = (1 / gamma) ln(1 / (1 - exp(-gamma w))). As gamma goes to 0 the order is the least work first, as it goes to
    infinity first come first served; at the decay rate of the tail of fcfs the order is tail-optimal in the
    light-tailed M/G/1. The work that an arrival finds waiting is what it would wait for under fcfs, whatever the order;
    where its tail is exponential, the rate is one over its mean. So gamma = `tail` / that mean, over the arrivals that
    find work waiting. All keys are of one gamma: when the mean has moved by `STEP`, all are made anew.
    """

    def __init__(self, tail: float) -> None:
        """Start with nothing waiting; `tail` at least 0."""
        self._tail, self._gamma = tail, inf if tail else 0.0
        self._waiting: dict[int, tuple[int, int]] = {}  # arrival, and work in ticks
        self._total = 0
        self._backlog, self._num_backlogs = 0.0, 0

    def arrive(self, works: Sequence[float]) -> bool:
        """Learn from requests that arrive together; return whether the keys of all that wait have changed."""
        backlog = self._total / TICKS
        for work in works:
            if backlog > 0:
                self._num_backlogs = min(MEMORY, self._num_backlogs + 1)
                self._backlog += (backlog - self._backlog) / self._num_backlogs
            backlog += work
        gamma = self._tail / self._backlog if self._backlog else self._gamma
        if not self._tail or 1 / STEP < gamma / self._gamma < STEP or gamma == self._gamma:
            return False
        self._gamma = gamma
        return True

    def queue(self, index: int, arrival: int, work: float) -> float:
        """Count the work of a request as waiting, and return its key."""
        ticks = round(TICKS * work)
        self._waiting[index] = arrival, ticks
        self._total += ticks
        return self.key(index)

    def leave(self, index: int) -> None:
        """Take a request out of those that wait, if it is among them."""
        self._total -= self._waiting.pop(index, (0, 0))[1]

    def is_far_ahead(self, work: float, other: float) -> bool:
        """Return whether work that came at the same time goes first by so much that it is worth an eviction."""
        return FAR * work < other

    def key(self, index: int) -> float:
        """Return what a waiting request is ordered by."""
        arrival, ticks = self._waiting[index]
        if not self._tail:
            return ticks
        if self._gamma == inf:
            return arrival
        load = max(1e-12, self._gamma * ticks / TICKS)  # no work at all has a boost that is finite, too
        return arrival + log(-expm1(-load)) / self._gamma


class LongestFirst:
    """The other end: the most work first, for a batch whose last answer is what counts. In place of a `Boost`."""

    def arrive(self, works: Sequence[float]) -> bool:
        """Learn nothing."""
        return False

    def queue(self, index: int, arrival: int, work: float) -> float:
        """Return the key of a request that waits."""
        return -round(TICKS * work)

    def leave(self, index: int) -> None:
        """Keep nothing."""

    def is_far_ahead(self, work: float, other: float) -> bool:
        """Return whether work goes first by so much that it is worth an eviction."""
        return work > FAR * other

    def key(self, index: int) -> float:
        """Never asked for: keys do not change together."""
        raise AssertionError("the keys of LongestFirst do not change")
