"""The model and every policy once more, written for reading, to compare the product with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from scheduler.cost_model import CostModel
from scheduler.renewals import Renewal

Case = Any
TAIL = 0.01
SlowPeak = Callable[[Sequence[tuple[int, int]], int], int]


class SlowLoop:
    """The model and its policies, written for reading: one plain iteration after the other, nothing kept up to date."""

    tail = TAIL

    def __init__(
        self,
        name: str,
        case: Case,
        slow_peak: SlowPeak,
        *,
        resume: bool = False,
        seed: int = 0,
        renewals: Mapping[int, Sequence[Renewal]] | None = None,
        max_overtakes: Mapping[str, int] | None = None,
        by_clock: Mapping[int, Sequence[tuple[int, Renewal]]] | None = None,
        look_ahead: int = 0,
    ) -> None:
        self.holds_back = name in ("fcfs", "fcfs-lcf", "sjf", "tie", "past-future", "sglang", "dla", "uniboost")
        self.name, self.case, self.slow_peak, self.resume = name, case, slow_peak, resume
        self.requests, self.output_lens, self.worker = list(case.requests), case.output_lens, case.worker
        self.kv_cache = self.worker.kv_cache
        self.rng = np.random.default_rng(seed)
        everyone = range(len(self.requests))
        self.generated = dict.fromkeys(everyone, 0)
        self.to_prefill = dict.fromkeys(everyone, 0)
        self.estimate = {i: self.first_estimate(i) for i in everyone}
        self.num_evictions = dict.fromkeys(everyone, 0)
        self.num_recomputed = dict.fromkeys(everyone, 0)
        self.admission_time: dict[int, Fraction | float] = {}
        self.first_token_time: dict[int, Fraction | float] = {}
        self.finish_time: dict[int, Fraction | float] = {}
        self.blocks_used: list[int] = []
        self.durations: list[Fraction] = []
        self.running: list[int] = []  # in order of admission
        self.overtaken = dict.fromkeys(everyone, 0)
        limits = max_overtakes or {}
        self.most = [limits.get(r.service_class, limits.get("", math.inf)) for r in self.requests]
        self.by_clock, self.came = by_clock or {}, dict[int, int]()
        self.left: list[int] = []  # the request of each block that nobody uses, first the next to be overwritten
        self.thrown = dict.fromkeys(everyone, 0)
        self.lost_share = (0, 0)  # tokens that were overwritten, of those that evictions left
        self.renewals = {i: list(renewals.get(i, ())) for i in everyone} if renewals else {}
        told = [i for i in everyone if any(r.num_generated == 0 for r in self.renewals.get(i, ()))]
        self.look_ahead, self.unread = look_ahead, {i: self.requests[i].num_prompt_tokens for i in told}
        self.read: list[int] = []

    def first_estimate(self, i: int) -> int:
        """Return the output length that request `i` is packed by, if its policy packs."""
        request = self.requests[i]
        upper = request.output_len_upper_bound or request.max_new_tokens
        middle = (request.output_len_lower_bound + upper) // 2
        estimate = {
            "amin": request.output_len_lower_bound,
            "amin-eviction": request.output_len_lower_bound,
            "amax": min(upper, request.max_new_tokens),
            "hindsight": self.output_lens[i],
            "hindsight-svf": self.output_lens[i],
            "svf": request.output_len_prediction or middle,
            "sjf": request.output_len_prediction or middle,
        }.get(self.name, 0)
        room = self.kv_cache.num_blocks * self.kv_cache.block_size - request.num_prompt_tokens
        return estimate if self.name == "sjf" else max(1, min(estimate, room))

    def renew_forecasts(self, got: Sequence[int]) -> None:
        """Take in the renewals of the requests that have just generated as many tokens as they are for."""
        for i in sorted(set(got) & set(self.running)):
            for renewal in self.renewals.get(i, ()):
                if renewal.num_generated == self.generated[i]:
                    self.take_renewal(i, renewal)

    def read_ahead(self, budget: int) -> int:
        """Read prompts of requests that have waited since they came, first come first; return how many tokens."""
        room = at_first = min(budget, self.look_ahead)
        for i in sorted(self.unread, key=lambda i: (self.requests[i].arrival_time, i)):
            if self.look_ahead and i not in self.admission_time and self.requests[i].arrival_time <= self.now:
                chunk = min(room, self.unread[i])
                room, self.unread[i] = room - chunk, self.unread[i] - chunk
                if self.unread[i]:
                    break
                del self.unread[i]
                self.read.append(i)
        return at_first - room

    def renew_by_clock(self, clock: int, now: Fraction) -> None:
        """Take in the renewals of an iteration, of requests that were there before it, running or not."""
        for i, renewal in self.by_clock.get(clock, ()):
            if i in self.came and i not in self.finish_time:
                generated = self.generated[i] if i in self.running else 0
                self.take_renewal(i, replace(renewal, num_generated=generated))
        for i, request in enumerate(self.requests):
            if request.arrival_time <= now:
                self.came.setdefault(i, clock)

    def take_renewal(self, i: int, renewal: Renewal) -> None:
        """Estimate again; a bound of Amin never falls."""
        before = self.estimate[i]
        self.requests[i] = renewal.applied(self.requests[i])
        self.estimate[i] = self.first_estimate(i)
        if self.name in ("amin", "amin-eviction"):
            self.estimate[i] = max(before, self.estimate[i])

    def key(self, i: int) -> float:
        """Return what waiting requests are sorted by."""
        if self.name in ("fcfs", "fcfs-lcf", "fcfs-reserve", "past-future", "dla"):
            return 0
        if self.name.endswith("svf"):
            return sum(self.requests[i].num_prompt_tokens + j for j in range(1, self.estimate[i] + 1))
        return self.estimate[i]

    def start_iteration(self) -> None:
        """Do what a policy does before it is asked."""

    def start(self, i: int, now: Fraction) -> None:
        """Admit a request, and count it for those that came before and wait."""
        for j in self.waiting(now):
            came = [(self.requests[k].arrival_time, k) for k in (i, j)]
            self.overtaken[j] += came[1] < came[0] and self.requests[i].priority == self.requests[j].priority
        self.running.append(i)
        self.start_prefill(i)
        self.admission_time.setdefault(i, now)

    def is_overdue(self, i: int) -> bool:
        """Return whether a request has been overtaken as often as it may be."""
        return self.overtaken[i] >= self.most[i]

    def blocks(self, tokens: int) -> int:
        """Return the blocks of `tokens` tokens."""
        return math.ceil(tokens / self.kv_cache.block_size)

    def held(self, i: int) -> int:
        """Return the tokens of request `i`."""
        return self.requests[i].num_prompt_tokens + self.generated[i]

    def next_blocks(self, requests: Sequence[int]) -> int:
        """Return the blocks of requests during the next iteration."""
        return sum(self.blocks(self.held(i) + 1) for i in requests)

    def victim(self) -> int:
        """Return the running request that is evicted next."""
        if self.name == "fcfs-lcf":
            return min(reversed(self.running), key=self.held)
        if self.name == "dla":
            return max(reversed(self.running), key=lambda i: self.requests[i].predicted_len() - self.generated[i])
        if not self.name.startswith("amin"):
            return self.running[-1]
        current = {i: self.estimate[i] for i in self.running}
        if self.name == "amin":  # a running request that outlives its bound raises it
            current = {i: max(self.estimate[i], self.generated[i]) for i in self.running}
        tied = [i for i in self.running if current[i] == min(current.values())]
        tied.sort(key=lambda i: (current[i] == self.estimate[i], -self.generated[i], i))
        return tied[int(self.rng.random() * len(tied))] if len(tied) > 1 else tied[0]

    def evict(self) -> bool:
        """Evict until the next iteration fits; return whether anything was evicted."""
        count = 0
        while self.name != "fcfs-reserve" and self.next_blocks(self.running) > self.kv_cache.num_blocks:
            victim = self.victim()
            count += 1
            self.running.remove(victim)
            self.num_evictions[victim] += 1
            self.throw_away(victim)
            if self.name in ("amin", "amin-eviction"):
                self.estimate[victim] = max(self.estimate[victim], self.generated[victim])
            if not self.resume:
                self.generated[victim] = 0
        return count > 0

    def start_prefill(self, i: int) -> None:
        """Note what a request that has just been admitted computes: what it does not find."""
        self.to_prefill[i] = self.held(i)
        if self.worker.prefix_caching:
            self.overwrite(self.next_blocks([j for j in self.running if j != i]))
            found = self.left.count(i) * self.kv_cache.block_size
            self.left = [j for j in self.left if j != i]
            lost = max(0, self.thrown[i] - min(found, self.held(i)))
            self.num_recomputed[i] += lost
            self.lost_share = (self.lost_share[0] + lost, self.lost_share[1] + self.thrown[i])
            self.thrown[i] = 0
            while found > 0 and found >= self.held(i):  # the last token is always computed, and with it its block
                found -= self.kv_cache.block_size
            self.to_prefill[i] -= max(0, found)

    def throw_away(self, victim: int) -> None:
        """Note what an eviction costs; with prefix caching, that is known when the request comes back."""
        computed = self.held(victim) - self.to_prefill[victim]
        if self.worker.prefix_caching:
            self.thrown[victim] = computed
            self.left += [victim] * (computed // self.kv_cache.block_size)
        else:
            self.num_recomputed[victim] += computed

    def overwrite(self, num_used: int) -> None:
        """Lose the oldest of the blocks that are left, as many as do not fit beside those in use."""
        while len(self.left) > max(0, self.kv_cache.num_blocks - num_used):
            del self.left[0]

    def fits(self, candidate: int) -> bool:
        """Return whether the running requests and the candidate fit together, as the policy sees it."""
        together = [*self.running, candidate]
        worker = self.worker
        if worker.max_running is not None and len(together) > worker.max_running:
            return False
        available = self.kv_cache.num_blocks - worker.watermark_blocks
        if self.name == "fcfs-reserve":
            reserved = [self.requests[i].num_prompt_tokens + self.requests[i].max_new_tokens for i in together]
            return sum(self.blocks(tokens) for tokens in reserved) <= available
        if self.name == "dla":
            left = {i: max(1, self.requests[i].predicted_len() - self.generated[i]) for i in together}
            return sum(self.blocks(self.held(i) + left[i]) for i in together) <= available
        if self.next_blocks(together) > available or self.name in ("fcfs", "fcfs-lcf", "sjf", "tie", "uniboost"):
            return self.next_blocks(together) <= available
        remaining = [max(1, self.estimate[i] - self.generated[i]) for i in together]
        if (
            self.renewals or self.by_clock
        ):  # raised bounds may overfill an iteration in which the candidate does not run
            remaining = [min(left, remaining[-1]) for left in remaining]
        items = list(zip((self.held(i) for i in together), remaining, strict=True))
        return self.slow_peak(items, self.kv_cache.block_size) <= self.kv_cache.num_blocks

    def waiting(self, now: Fraction) -> list[int]:
        """Return those that have arrived, do not run and are not done, first to be admitted first."""
        there = [i for i, request in enumerate(self.requests) if request.arrival_time <= now]
        queue = [i for i in there if i not in self.running and i not in self.finish_time]
        keys = {i: -math.inf if self.is_overdue(i) else self.key(i) for i in queue}
        return sorted(queue, key=lambda i: (keys[i], self.requests[i].arrival_time, i))

    def admit(self, now: Fraction) -> None:
        """Admit in order until one does not fit."""
        while queue := self.waiting(now):
            if not self.fits(queue[0]) and self.running:
                break
            self.start(queue[0], now)

    def finished(self, i: int) -> None:
        """Do what a policy does when a request ends."""

    def compute(self) -> tuple[list[int], Fraction]:
        """Return which requests get a token in one iteration, and its duration."""
        budget = self.worker.max_batch_tokens or 10**9
        decoding = [i for i in self.running if not self.in_prefill(i)][:budget]
        budget -= len(decoding)
        got, prefilled = list(decoding), 0
        for i in self.running:
            if self.in_prefill(i) and i not in got:
                chunk = min(budget, max(1, self.to_prefill[i]))  # an empty prompt takes a token's place
                budget -= chunk
                prefilled += min(chunk, self.to_prefill[i])
                if chunk == max(1, self.to_prefill[i]):
                    got.append(i)
                    self.started.add(i)
                self.to_prefill[i] = max(0, self.to_prefill[i] - chunk)
        prefilled += self.read_ahead(budget)
        cost = self.worker.cost_model
        if cost is None:
            return got, Fraction(1)
        tokens = sum(self.held(i) for i in self.running) + len(got)
        seconds = (
            exactly(cost.seconds_per_iteration)
            + exactly(cost.seconds_per_prefill_token) * prefilled
            + exactly(cost.seconds_per_decoding_request) * len(decoding)
            + exactly(cost.seconds_per_kv_token) * tokens
            + (exactly(cost.seconds_per_prefill) if prefilled else 0)
        )
        return got, seconds

    def in_prefill(self, i: int) -> bool:
        """Return whether a running request has prompt tokens to be computed."""
        return i not in self.started

    def run(self) -> None:
        """Run to the end."""
        now = Fraction(0)
        self.started: set[int] = set()
        while len(self.finish_time) < len(self.requests):
            if not self.running and not self.waiting(now):
                arrivals = [r.arrival_time for r in self.requests if r.arrival_time > now]
                now = tick_after(min(arrivals), self.worker.cost_model)
                continue
            before, self.now = set(self.running), now
            self.renew_by_clock(len(self.durations), now)
            for i in self.read:
                self.take_renewal(i, self.renewals[i][0])
            self.read = []
            self.start_iteration()
            evicted = self.evict()
            self.started -= before - set(self.running)
            if not (evicted and self.holds_back):
                self.admit(now)
            self.blocks_used.append(self.next_blocks(self.running))
            self.num_admitted = len(set(self.running) - before)
            got, duration = self.compute()
            self.durations.append(duration)
            now += duration
            self.overwrite(self.blocks_used[-1])
            for i in sorted(got):
                self.generated[i] += 1
                self.first_token_time.setdefault(i, now)
                if self.generated[i] == self.output_lens[i]:
                    self.finish_time[i] = now
                    self.running.remove(i)
                    self.left += [i] * (self.held(i) // self.kv_cache.block_size)
                    self.finished(i)
            self.renew_forecasts(got)


def exactly(seconds: float) -> Fraction:
    """Return seconds rounded to the simulator's tick of a femtosecond."""
    return Fraction(round(seconds * 10**15), 10**15)


def tick_after(time: float, cost_model: CostModel | None) -> Fraction:
    """Return the first tick at or after `time`: an iteration or a femtosecond."""
    ticks = 1 if cost_model is None else 10**15
    return Fraction(math.ceil(Fraction(time) * ticks), ticks)


class SlowTie(SlowLoop):
    """Shortest first by expectation and tail mean, summed token by token."""

    def waiting(self, now: Fraction) -> list[int]:
        """Score new arrivals one after the other, then sort."""
        self.scores: dict[int, float] = getattr(self, "scores", {})
        seen = [i for i, request in enumerate(self.requests) if request.arrival_time <= now]
        new = sorted(set(seen) - set(self.scores), key=lambda i: (self.requests[i].arrival_time, i))
        for i in new:
            queue = [j for j in self.scores if j not in self.running and j not in self.finish_time]
            beta = min(0.5, max(0.1, 0.1 * len(queue) / (self.worker.max_running or 32)))
            forecast, cap = self.requests[i].forecast_or_bounds(), self.requests[i].max_new_tokens
            self.scores[i] = forecast.mean(cap) + beta * forecast.tail_mean(0.9, cap)
        return super().waiting(now)

    def key(self, i: int) -> float:
        """Return the score at arrival."""
        return self.scores[i]


class SlowSglang(SlowLoop):
    """The adaptive ratio, counted iteration by iteration."""

    num_decays, base, is_full, ran, num_queued, num_admitted = 0, 0.7, False, False, 0, 0

    def ratio(self) -> float:
        """Return the share of the unborn tokens that is reserved."""
        return max(self.base - (0.7 - 0.098) / 600 * self.num_decays, min(self.base, 0.7 * 0.14))

    def start_iteration(self) -> None:
        """Let the ratio fall after an iteration that neither admitted nor retracted."""
        if self.ran and not self.num_admitted and not self.retracted:
            self.num_decays += 1
        if not self.running:
            self.base, self.num_decays = 0.7, 0
        self.ran, self.retracted = True, False

    def waiting(self, now: Fraction) -> list[int]:
        """Return the queue in the order in which requests joined it."""
        queue = super().waiting(now)
        self.place: dict[int, int] = getattr(self, "place", {})
        for i in sorted(queue, key=lambda i: (self.requests[i].arrival_time, i)):
            if i not in self.place:
                self.num_queued += 1
                self.place[i] = self.num_queued
        return sorted(queue, key=lambda i: self.place[i])

    def admit(self, now: Fraction) -> None:
        """Admit while what newcomers may need is less than what is free and not reserved."""
        size = self.kv_cache.block_size
        caps = [request.max_new_tokens for request in self.requests]
        queue = self.waiting(now)
        free = (self.kv_cache.num_blocks - sum(self.blocks(self.held(i)) for i in self.running)) * size
        reserved = self.ratio() * sum(min(caps[i] - self.generated[i], 4096) for i in self.running)
        for i in queue:
            if self.is_full:
                return
            need = self.held(i) + min(caps[i] - self.generated[i], 4096)
            together = [*self.running, i]
            worker = self.worker
            full = worker.max_running is not None and len(together) > worker.max_running
            full |= self.next_blocks(together) > self.kv_cache.num_blocks - worker.watermark_blocks
            if (full or need >= free - reserved) and self.running:
                self.is_full = True
                return
            free -= self.blocks(self.held(i)) * size + min(caps[i], 4096)
            self.running.append(i)
            self.start_prefill(i)
            self.admission_time.setdefault(i, now)

    def evict(self) -> bool:
        """Retract the least generated until the rest has room for 20 tokens each."""
        if self.next_blocks(self.running) <= self.kv_cache.num_blocks:
            return False
        size = self.kv_cache.block_size
        caps = [request.max_new_tokens for request in self.requests]
        while True:
            free = (self.kv_cache.num_blocks - sum(self.blocks(self.held(i)) for i in self.running)) * size
            fits = self.next_blocks(self.running) <= self.kv_cache.num_blocks
            if fits and (len(self.running) <= 1 or free >= 20 * len(self.running)):
                break
            victim = min(self.running, key=lambda i: (self.generated[i], -self.requests[i].num_prompt_tokens, i))
            self.running.remove(victim)
            self.num_evictions[victim] += 1
            self.throw_away(victim)
            if not self.resume:
                self.generated[victim] = 0
            self.num_queued += 1
            self.place[victim] = self.num_queued
        generated = sum(self.generated[i] for i in self.running)
        allowed = sum(caps[i] for i in self.running)
        self.base = min(1.0, (generated + 20 * len(self.running)) / (allowed + 1))
        self.num_decays, self.is_full, self.retracted = 0, False, True
        return True

    def finished(self, i: int) -> None:
        """Let admission be tried again."""
        self.is_full = False


class SlowPastFuture(SlowLoop):
    """Lengths drawn from history, one request after the other."""

    def admit(self, now: Fraction) -> None:
        """Draw lengths for all that run, then admit while the largest peak stays below the reserve."""
        queue = self.waiting(now)
        self.history: list[int] = getattr(self, "history", None) or [self.first_cap()] * 100
        if not queue:
            return
        history, count = sorted(self.history), len(self.running)
        num_samples = min(5, 200 // count + 1) if count else 1
        uniform = self.rng.random((num_samples, count))
        samples = [
            [self.drawn(i, history, float(u)) for i, u in zip(self.running, row, strict=True)] for row in uniform
        ]
        items = [[(self.held(i), left) for i, left in zip(self.running, row, strict=True)] for row in samples]
        for i in queue:
            for row, place in zip(items, self.rng.integers(len(history), size=num_samples).tolist(), strict=True):
                length = min(history[place], self.requests[i].max_new_tokens)
                row.append((self.held(i), max(1, length - self.generated[i])))
            peak = max(self.slow_peak(row, 1) for row in items)
            worker = self.worker
            full = worker.max_running is not None and len(self.running) >= worker.max_running
            full |= self.next_blocks([*self.running, i]) > self.kv_cache.num_blocks - worker.watermark_blocks
            budget = self.kv_cache.num_blocks * self.kv_cache.block_size
            if (full or peak >= (1 - 0.05) * budget) and self.running:
                break
            self.running.append(i)
            self.start_prefill(i)
            self.admission_time.setdefault(i, now)

    def first_cap(self) -> int:
        """Return the limit of the request that arrived first."""
        first = min(range(len(self.requests)), key=lambda i: (self.requests[i].arrival_time, i))
        return self.requests[first].max_new_tokens

    def drawn(self, i: int, history: list[int], uniform: float) -> int:
        """Return the tokens that request `i` has left in a sample."""
        cap, generated = self.requests[i].max_new_tokens, self.generated[i]
        knots = [generated, *(length for length in history if length > generated), cap]
        place = uniform * (len(knots) - 1)
        left = int(place)
        length = round(knots[left] + (place - left) * (knots[left + 1] - knots[left]))
        return max(1, min(cap, length) - generated)

    def finished(self, i: int) -> None:
        """Remember the length."""
        self.history = [*self.history, self.output_lens[i]][-200:]


class SlowSurvival(SlowLoop):
    """Bounds renewed, order by boosted expected work, least progress evicted; walks along the curve."""

    level, gamma = 0.25, math.inf

    def quantile(self, i: int, level: float, beyond: float = 0.0) -> float:
        """Return the quantile of the length of request `i` given that it exceeds `beyond`."""
        forecast = self.requests[i].forecast_or_bounds()
        points = list(zip(forecast.edges.tolist(), forecast.survival.tolist(), strict=True))
        target = 1 - level
        if beyond > 0:
            alive = next((self.between(p, q, beyond) for p, q in pairwise(points) if p[0] <= beyond < q[0]), 0.0)
            if alive <= 0:
                return beyond / (1 - level)
            target *= alive
        for (x, s), (y, t) in pairwise(points):
            if t < target:
                return x + (s - target) / (s - t) * (y - x)
        return points[-1][0]

    def between(self, p: tuple[int, float], q: tuple[int, float], x: float) -> float:
        """Return the survival at `x` between two points."""
        return p[1] + (x - p[0]) / (q[0] - p[0]) * (q[1] - p[1])

    def renew(self, i: int) -> None:
        """Raise the bound until it exceeds what was generated."""
        cap = self.requests[i].max_new_tokens
        while self.estimate[i] <= self.generated[i] < cap:
            self.estimate[i] = max(self.estimate[i] + 1, int(self.quantile(i, 0.25, self.estimate[i])))
        room = self.kv_cache.num_blocks * self.kv_cache.block_size - self.requests[i].num_prompt_tokens
        self.estimate[i] = min(self.estimate[i], cap, room)

    def start_iteration(self) -> None:
        """Note who has come, and renew the bounds of the running requests."""
        self.note_arrivals(self.now)
        for i in self.running:
            self.renew(i)

    def take_renewal(self, i: int, renewal: Renewal) -> None:
        """Replace the forecast, and pack by its quantile given what was generated; one that waits is ordered anew."""
        self.requests[i] = renewal.applied(self.requests[i])
        known = self.generated[i]
        if i not in self.running:
            known = max(known, self.known.get(i, 0))
            self.work[i] = self.iterations(self.demand(i, self.generated[i] if self.resume else 0))
        self.estimate[i] = max(known + 1, int(self.quantile(i, 0.25, known)))
        room = self.kv_cache.num_blocks * self.kv_cache.block_size - self.requests[i].num_prompt_tokens
        self.estimate[i] = min(self.estimate[i], self.requests[i].max_new_tokens, room)

    def note_arrivals(self, now: Fraction) -> None:
        """Note when requests are first seen, and what they wait by."""
        self.seen: dict[int, int] = getattr(self, "seen", {})
        self.first_bounds: dict[int, int] = getattr(self, "first_bounds", {})
        self.known: dict[int, int] = getattr(self, "known", {})
        self.work: dict[int, float] = getattr(self, "work", {})
        self.backlogs: list[float] = getattr(self, "backlogs", [])
        self.demands: dict[int, tuple[float, float, float]] = getattr(self, "demands", {})
        new = [i for i, request in enumerate(self.requests) if request.arrival_time <= now and i not in self.seen]
        new.sort(key=lambda i: (self.requests[i].arrival_time, i))
        waiting = [i for i in self.seen if i not in self.running and i not in self.finish_time]
        backlog = sum(round(self.work[i] * 2**20) for i in waiting) / 2**20
        for i in new:
            self.seen[i], self.demands[i] = len(self.durations), self.demand(i, 0)
        for i in new:
            self.work[i] = self.iterations(self.demands[i])
            if backlog > 0:
                self.backlogs.append(backlog)
            backlog += self.work[i]
        if self.backlogs:
            gamma = self.tail * len(self.backlogs) / sum(self.backlogs)
            if not 0.8 < gamma / self.gamma < 1.25:  # the keys of all that wait are made anew
                self.gamma = gamma

    def demand(self, i: int, kept: int) -> tuple[float, float, float]:
        """Return token-iterations, tokens and prefill tokens of the rest of a life."""
        tokens, memory = self.to_come(i, kept)
        prefill: float = self.requests[i].num_prompt_tokens + kept
        if self.worker.prefix_caching and self.known.get(i):
            prefill = prefill * (1 + self.lost_share[0]) / (1 + self.lost_share[1])
        return memory, tokens, prefill

    def shares(self, demand: tuple[float, float, float]) -> list[float]:
        """Return iterations of the whole worker on memory, slots and tokens, then what its own tokens add to them."""
        memory, tokens, prefill = demand
        cost, budget = self.worker.cost_model or CostModel(1.0), self.kv_cache.num_blocks * self.kv_cache.block_size
        own = memory * cost.seconds_per_kv_token + tokens * cost.seconds_per_decoding_request
        own += prefill * cost.seconds_per_prefill_token
        return [
            memory / budget,
            tokens / (self.worker.max_running or math.inf),
            (prefill + tokens) / (self.worker.max_batch_tokens or math.inf),
            own / cost.seconds_per_iteration,
        ]

    def iterations(self, demand: tuple[float, float, float]) -> float:
        """Return the work in iterations, on what all that are there ask most of."""
        there = [self.shares(self.demands[i]) for i in self.seen if i not in self.finish_time]
        *totals, own = (sum(round(share * 2**20) for share in column) for column in zip(*there, strict=True))
        most = max(totals)
        mine = self.shares(demand)
        return (mine[totals.index(most)] + mine[3]) * (most / (most + own) if most else 1.0)

    def waiting(self, now: Fraction) -> list[int]:
        """Take the first bounds of those that were never admitted by the level of now."""
        self.note_arrivals(now)
        queue = super().waiting(now)
        for i in queue:
            if i not in self.first_bounds:  # not admitted yet: by the level of now
                self.estimate[i] = max(1, int(self.quantile(i, self.level)))
                self.renew(i)
        return queue

    def admit(self, now: Fraction) -> None:
        """Admit, and keep the bounds that requests were first admitted with."""
        super().admit(now)
        for i in self.running:
            self.first_bounds.setdefault(i, self.estimate[i])

    def fits(self, candidate: int) -> bool:
        """Return whether no iteration in which the candidate runs is too full; renewed bounds may fill a later one."""
        together = [*self.running, candidate]
        worker = self.worker
        if worker.max_running is not None and len(together) > worker.max_running:
            return False
        requests = [self.requests[i] for i in together]
        variance = sum(round(r.forecast_or_bounds().variance(r.max_new_tokens)) for r in requests)
        deviation = 0.6 * math.sqrt(variance) / self.kv_cache.block_size
        kept_free = max(worker.watermark_blocks, min(math.ceil(deviation), int(0.075 * self.kv_cache.num_blocks)))
        if self.next_blocks(together) > self.kv_cache.num_blocks - kept_free:
            return False
        left = {i: max(1, self.estimate[i] - self.generated[i]) for i in together}
        return all(
            sum(self.blocks(self.held(i) + time) for i in together if left[i] >= time) <= self.kv_cache.num_blocks
            for time in range(1, left[candidate] + 1)
        )

    def finished(self, i: int) -> None:
        """Learn from whether the answer ended below its first bound."""
        self.level = min(0.98, max(0.02, self.level + 0.01 * (0.25 - (self.output_lens[i] < self.first_bounds[i]))))

    def to_come(self, i: int, generated: int) -> tuple[float, float]:
        """Return tokens and volume that are left, token by token as far as known and then along the curve."""
        prompt, cap = self.requests[i].num_prompt_tokens, self.requests[i].max_new_tokens
        known = max(generated, self.known.get(i, 0))
        certain = sum(prompt + j for j in range(generated + 1, known + 1))
        forecast = self.requests[i].forecast_or_bounds()
        points = list(zip(forecast.edges.tolist(), forecast.survival.tolist(), strict=True))
        knots = [p for p in points if p[0] < cap] + [
            (cap, self.between(p, q, cap)) for p, q in pairwise(points) if p[0] < cap <= q[0]
        ]
        alive = next((self.between(p, q, known) for p, q in pairwise(knots) if p[0] <= known < q[0]), 0.0)
        if alive <= 0:
            again = max(1, known)
            return known - generated + again, certain + sum(prompt + known + j for j in range(1, again + 1))
        left, tokens, expected = (known, alive), 0.0, 0.0
        for right in (knot for knot in knots if knot[0] > known):
            middle = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
            values = [(prompt + 0.5 + x) * s for x, s in (left, middle, right)]
            expected += (right[0] - left[0]) * (values[0] + 4 * values[1] + values[2]) / 6  # Simpson: exact for squares
            tokens += (right[0] - left[0]) * middle[1]
            left = right
        return known - generated + tokens / alive, certain + expected / alive

    def key(self, i: int) -> float:
        """Return arrival less boost."""
        if self.gamma == math.inf:
            return self.seen[i]
        return self.seen[i] + math.log(1 - math.exp(-max(1e-12, self.gamma * self.work[i]))) / self.gamma

    def victim(self) -> int:
        """Return the least of memory to be spent again over memory to come; of equal ones the last admitted."""

        def progress(i: int) -> float:
            kept = self.generated[i] if self.resume else 0
            spent = sum(self.requests[i].num_prompt_tokens + j for j in range(kept + 1, self.generated[i] + 2))
            return spent / self.to_come(i, self.generated[i])[1]

        index = min(reversed(self.running), key=progress)
        self.known[index] = max(self.generated[index], self.known.get(index, 0))
        self.work[index] = self.iterations(self.demand(index, self.generated[index] if self.resume else 0))
        return index


class SlowLongest(SlowSurvival):
    """The same in the other order."""

    def key(self, i: int) -> float:
        """Return the work, most first."""
        return -round(self.work[i] * 2**20)


class SlowPreemptive(SlowLoop):
    """The least rank runs: true remaining tokens, or the level of a feedback queue."""

    def rank(self, i: int) -> float:
        """Return what the least of is served."""
        self.lost: dict[int, int] = getattr(self, "lost", {})
        if self.is_overdue(i):
            return -math.inf
        if self.name == "srpt":
            return self.output_lens[i] - self.generated[i]
        tokens, level, quantum = self.generated[i] + self.lost.get(i, 0), 0, 32
        while tokens >= quantum:
            tokens, level, quantum = tokens - quantum, level + 1, 2 * quantum
        return level

    def key(self, i: int) -> float:
        """Return the rank."""
        return self.rank(i)

    def drop(self, victim: int) -> None:
        """Evict a request."""
        self.running.remove(victim)
        self.started.discard(victim)
        self.num_evictions[victim] += 1
        self.throw_away(victim)
        if not self.resume:
            self.lost[victim] = self.lost.get(victim, 0) + self.generated[victim]
            self.generated[victim] = 0

    def evict(self) -> bool:
        """Evict the highest rank, the last admitted of equal ones, until the next iteration fits."""
        while self.next_blocks(self.running) > self.kv_cache.num_blocks:
            self.drop(max(reversed(self.running), key=self.rank))
        self.may_go = list(self.running)
        return False

    def fits(self, candidate: int) -> bool:
        """Return whether the next iteration has room."""
        together, slots = [*self.running, candidate], self.worker.max_running or math.inf
        return len(together) <= slots and self.next_blocks(together) <= (
            self.kv_cache.num_blocks - self.worker.watermark_blocks
        )

    def admit(self, now: Fraction) -> None:
        """Admit the least rank, without those of a higher one if it fits only so; what starts now stays."""
        while queue := self.waiting(now):
            first, everyone = queue[0], list(self.running)
            while self.running and not self.fits(first):
                higher = [i for i in self.running if i in self.may_go and self.rank(i) > self.rank(first)]
                if not higher:
                    self.running = everyone
                    return
                self.running.remove(max(reversed(higher), key=self.rank))
            gone = [i for i in everyone if i not in self.running]
            self.running = everyone
            for victim in gone:
                self.drop(victim)
                self.may_go.remove(victim)
            self.start(first, now)


class SlowUniBoost(SlowSurvival):
    """Boosted by the prompt and the mean answer so far, memory as in fcfs."""

    def start_iteration(self) -> None:
        """Note who has come."""
        self.note_arrivals(self.now)

    def demand(self, i: int, kept: int) -> tuple[float, float, float]:
        """Return what the prompt and an answer of the mean length ask for."""
        prompt, ended = self.requests[i].num_prompt_tokens, [self.output_lens[j] for j in self.finish_time]
        mean = sum(ended) / len(ended) if ended else 1.0
        return prompt * mean + mean * (mean + 1) / 2, mean, prompt

    def waiting(self, now: Fraction) -> list[int]:
        """Note who has come, then sort."""
        self.note_arrivals(now)
        return SlowLoop.waiting(self, now)

    def admit(self, now: Fraction) -> None:
        """Admit as fcfs does."""
        SlowLoop.admit(self, now)

    def fits(self, candidate: int) -> bool:
        """Return whether current tokens fit."""
        return SlowLoop.fits(self, candidate)

    def victim(self) -> int:
        """Return the last admitted."""
        return self.running[-1]

    def finished(self, i: int) -> None:
        """Learn nothing but the length."""


def slow_loop(name: str, case: Case, slow_peak: SlowPeak, **options: Any) -> SlowLoop:
    """Return the outcome of the plain loop under a policy."""
    kind = {
        "tie": SlowTie,
        "sglang": SlowSglang,
        "past-future": SlowPastFuture,
        "amin-survival": SlowSurvival,
        "longest-first": SlowLongest,
        "mlfq": SlowPreemptive,
        "srpt": SlowPreemptive,
        "uniboost": SlowUniBoost,
    }.get(name, SlowLoop)
    tail = options.pop("tail", 1.0 if name == "uniboost" else TAIL)
    loop = kind(name, case, slow_peak, **options)
    loop.tail = tail
    loop.run()
    for times in (loop.admission_time, loop.first_token_time, loop.finish_time):
        times.update({i: reached(Fraction(time)) for i, time in times.items()})
    return loop


def reached(time: Fraction) -> float:
    """Return the largest float at or before a time: the clock as it is shown."""
    nearest = float(time)
    return math.nextafter(nearest, 0) if Fraction(nearest) > time else nearest
