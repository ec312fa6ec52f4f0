"""Amin on the whole survival curve: renewed bounds, order by expected volume, least progress evicted."""

from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil, inf, sqrt
from typing import Literal, get_args

import numpy as np

from scheduler.admission import admit_while_peak_fits, evict_while_full
from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.future_peak import FuturePeak
from scheduler.policies.expected_volume import ExpectedVolume
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker

Victim = Literal["least-progress", "least-work", "least-bound"]


class AminSurvival(Policy):
    """Amin with four changes, read from the forecast that a request arrives with; no other model call.

    1. Packing: the bound is the `pack_level` quantile of the length. A request that outlives it gets a new one, the
       same quantile of the length given that it exceeds what it has generated, instead of "ends with the next token".
       The level of first bounds follows the answers: it moves by `adaptation` times the difference between `pack_level`
       and the share that ends below (adaptive conformal inference, arXiv 2106.00170), so that forecasts that are too
       long do not leave the cache empty, nor too short ones fill it with evictions.
    2. Reserve: an admission leaves free, in the next iteration, `reserve_sd` standard deviations of the sum of the
       lengths that run. The requests grow into it until one ends, where they would else have to evict whom they have
       just let in; the more of them run, and the surer their lengths, the smaller a share of the cache it is. It is
       never more than `max_reserve` of the cache, since a forecast that knows little has wide deviations.
    3. Order: ascending expected memory over the rest of a life, since short is not what makes room (Smallest Volume
       First, arXiv 2606.22327). A request ages: each iteration since its arrival counts like `ageing` iterations of
       the whole cache. An evicted request is ordered by what it is known to exceed.
    4. Eviction: the least progress first, memory spent over memory expected to come, where spent is what would have to
       be done again (with `resume` a prefill). The least work is lost for the most that is put off, so a request that
       turns out longer than predicted makes way for those that are shorter.
    """

    def __init__(
        self,
        worker: Worker,
        rng: np.random.Generator,
        *,
        pack_level: float = 0.25,
        reserve_sd: float = 0.6,
        max_reserve: float = 0.075,
        ageing: float = 0.005,
        adaptation: float = 0.01,
        renew: bool = True,
        by_volume: bool = True,
        victim: Victim = "least-progress",
    ) -> None:
        """Start with nothing waiting; arguments as in `Policy`, and each change by itself.

        Args:
            worker: As in `Policy`.
            rng: As in `Policy`.
            pack_level: Quantile to pack by, in (0, 1).
            reserve_sd: Standard deviations of the sum of the running lengths that an admission leaves free, at least 0.
            max_reserve: Share of the cache that an admission leaves free at most, in [0, 1).
            ageing: What an iteration of waiting counts, in iterations of the whole cache, at least 0.
            adaptation: Step by which the level of first bounds follows how many answers end below them; 0 keeps it.
            renew: Whether a bound that is outlived is renewed; else the request is taken to end with the next token.
            by_volume: Whether expected memory over a life orders, or else the median length.
            victim: Who is evicted: the least progress, the least generated, or as in `Amin` the least bound.

        Raises:
            InputError: One of these is out of its range.
        """
        super().__init__(worker, rng)
        _check("pack_level", pack_level, 1.0)
        _check("reserve_sd", reserve_sd, inf)
        _check("max_reserve", max_reserve, 1.0)
        _check("ageing", ageing, inf)
        _check("adaptation", adaptation, 1.0)
        if not pack_level:
            raise InputError("pack_level is 0, must be above 0")
        if victim not in get_args(Victim):
            raise InputError(f"victim is {victim!r}, must be one of {', '.join(get_args(Victim))}")
        self._pack_level, self._ageing = pack_level, ageing
        self._reserve_sd, self._max_reserve = reserve_sd, int(max_reserve * worker.kv_cache.num_blocks)
        self._renew, self._by_volume, self._victim = renew, by_volume, victim
        self._adaptation, self._level = adaptation, pack_level
        self._new: list[int] = []
        self._renewed: list[int] = []
        self._forecasts: dict[int, Forecast] = {}
        self._volumes: dict[int, ExpectedVolume] = {}
        self._variances: dict[int, int] = {}
        self._variance = 0  # of the sum of the running lengths
        self._arrivals: dict[int, int] = {}
        self._bounds: dict[int, int] = {}  # of those that have been admitted
        self._first_bounds: dict[int, int] = {}
        self._starts: dict[int, int] = {}  # clock minus generated tokens, of the running
        self._known: dict[int, int] = {}  # tokens before the eviction, the most of several
        self._kept_tokens: dict[int, int] = {}
        self._ends: list[tuple[int, int, int]] = []  # heap of (start + bound, index, start); outdated entries stay
        self._peak = FuturePeak(worker.kv_cache)

    def add(self, index: int, request: Request) -> None:
        """Take in a request; it is queued by the next `schedule`."""
        self.waiting.remember(index, request)
        self._predict(index, request, request.forecast_or_bounds())
        self._new.append(index)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Take a running request's new forecast in place of the old; its bound follows, up or down."""
        self._variance -= self._variances[index]
        self._predict(index, self.waiting.request(index), renewal.forecast)
        self._variance += self._variances[index]
        self._renewed.append(index)

    def _predict(self, index: int, request: Request, forecast: Forecast) -> None:
        self._forecasts[index] = forecast
        self._volumes[index] = ExpectedVolume(forecast, request.num_prompt_tokens, request.max_new_tokens)
        self._variances[index] = round(forecast.variance(request.max_new_tokens))

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the evictions that the next iteration needs, then the admissions that still fit."""
        for index in self._new:
            if index in self._forecasts:
                self._arrivals[index] = running.clock
                self.waiting.requeue(index, 0, self._key(index, 0))
        self._new.clear()
        self._follow(running)
        preempted: list[int] = []
        if running.next_blocks > self.worker.kv_cache.num_blocks:
            order = list(reversed(running))
            order.sort(key=lambda index: self._worth(index, running.num_generated(index)))
            if self.waiting.has_priorities:
                order.sort(key=lambda index: -self.waiting.request(index).priority)
            preempted = evict_while_full(running, self.worker.kv_cache.num_blocks, order)
            for index in preempted:
                self._requeue(index, running)
        decision = admit_while_peak_fits(self, running, preempted, self._peak, self._estimate, self._reserve)
        for index in decision.admit:
            self._start(index, running.clock - self._kept_tokens.pop(index, 0))
        return decision

    def _follow(self, running: RunningBatch) -> None:
        """Take note of stalls, and renew the bounds that have been outlived."""
        self._peak.follow(running)
        for index in running.stalled:
            self._starts[index] += 1
            heappush(self._ends, (self._starts[index] + self._bounds[index], index, self._starts[index]))
        while self._renew and self._ends and self._ends[0][0] <= running.clock:
            _, index, start = heappop(self._ends)
            if self._starts.get(index) == start:
                self._repack(index, self._bound(index, running.clock - start), running)
        for index in self._renewed:
            if index in running:
                forecast, generated = self._forecasts[index], running.num_generated(index)
                bound = max(generated + 1, int(forecast.conditional_quantile(generated, self._pack_level)))
                self._repack(index, min(bound, self._limit(index)), running)
        self._renewed.clear()

    def _repack(self, index: int, bound: int, running: RunningBatch) -> None:
        self._bounds[index] = bound
        start, clock = self._starts[index], running.clock
        self._peak.remove(index, clock)
        self._peak.add(index, clock, running.num_tokens(index), max(1, start + bound - clock))
        heappush(self._ends, (max(start + bound, clock + 1), index, start))

    def _worth(self, index: int, generated: int) -> float:
        """Return what evicting a running request costs; of equal ones the last admitted goes."""
        if self._victim == "least-work":
            return generated
        if self._victim == "least-bound":
            return max(self._bounds[index], generated)
        volume, kept = self._volumes[index], generated if self.worker.resume else 0
        return (volume.spent(generated + 1) - volume.spent(kept)) / self._to_come(index, generated)

    def _to_come(self, index: int, generated: int) -> float:
        """Return the expected token-iterations after `generated` tokens; once it had more, it will have them again."""
        volume, known = self._volumes[index], max(generated, self._known.get(index, 0))
        return volume.spent(known) - volume.spent(generated) + volume.remaining(known)

    def _start(self, index: int, start: int) -> None:
        self._starts[index] = start
        self._variance += self._variances[index]
        self._bounds[index] = bound = self._estimate(index)
        self._first_bounds.setdefault(index, bound)
        heappush(self._ends, (start + bound, index, start))

    def _requeue(self, index: int, running: RunningBatch) -> None:
        self._peak.remove(index, running.clock)
        del self._starts[index]
        self._variance -= self._variances[index]
        generated = running.num_generated(index)
        self._bounds[index] = self._bound(index, generated)
        kept = generated if self.worker.resume else 0
        if kept:
            self._kept_tokens[index] = kept
        self._known[index] = max(generated, self._known.get(index, 0))
        self.waiting.requeue(index, kept, self._key(index, kept))

    def _estimate(self, index: int) -> int:
        """Return the output length that a waiting request is packed by."""
        return self._bounds.get(index) or self._bound(index, 0)

    def _reserve(self, index: int, admitted: Sequence[int]) -> int:
        """Return the blocks that the admission of a request, after `admitted`, leaves free."""
        variance = self._variance + sum(self._variances[i] for i in admitted) + self._variances[index]
        deviations = ceil(self._reserve_sd * sqrt(variance) / self.worker.kv_cache.block_size)
        return max(self.worker.watermark_blocks, min(deviations, self._max_reserve))

    def _bound(self, index: int, generated: int) -> int:
        """Return the bound renewed until it exceeds what was generated; one that does so already stays."""
        forecast, limit = self._forecasts[index], self._limit(index)
        bound = self._bounds.get(index) or max(1, int(forecast.quantile(self._level)))
        if not self._renew:
            return min(max(bound, generated), limit)
        while bound <= generated < limit:
            bound = max(bound + 1, int(forecast.conditional_quantile(bound, self._pack_level)))
        return min(bound, limit)

    def _limit(self, index: int) -> int:
        """Return the most tokens that a request can generate."""
        request = self.waiting.request(index)
        return min(request.max_new_tokens, self.worker.kv_cache.kv_budget - request.num_prompt_tokens)

    def _key(self, index: int, kept: int) -> float:
        """Return what the request waits by: what it takes until its end, and its age."""
        if not self._by_volume:
            return self._forecasts[index].conditional_quantile(self._known.get(index, 0), 0.5) - kept
        return self._to_come(index, kept) + self._ageing * self.worker.kv_cache.kv_budget * self._arrivals[index]

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; learn from an answer whether it ended below its first bound."""
        if status is Status.ANSWERED:
            error = self._pack_level - (num_generated < self._first_bounds[index])
            self._level = min(0.98, max(0.02, self._level + self._adaptation * error))
        is_queued = index in self._arrivals and not is_running  # else it came since the last decision
        self.waiting.remove(index, is_queued=is_queued)
        if is_running:
            self._peak.finish(index)
            self._variance -= self._variances[index]
        for column in (self._forecasts, self._volumes, self._variances):
            del column[index]
        of_some = (self._arrivals, self._bounds, self._first_bounds, self._starts, self._known, self._kept_tokens)
        for optional in of_some:
            optional.pop(index, None)


def _check(name: str, value: float, below: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise InputError(f"{name} is {value!r}, must be a number from 0 to below {below:g}")
