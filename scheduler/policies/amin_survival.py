"""Amin on the whole survival curve: renewed bounds, order by boosted expected work, least progress evicted."""

from collections.abc import Sequence
from functools import partial
from math import ceil, sqrt

import numpy as np

from scheduler.admission import admit_while_peak_fits, evict_while_full
from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.policies.boost import BindingResource, Boost, Demand, LongestFirst
from scheduler.policies.due import DueRequests
from scheduler.policies.survival_parts import (
    DEFAULT,
    Entry,
    Levels,
    NextBound,
    Worth,
    next_quantile,
    predicted,
    progress,
)
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker

RECENT = 16
"""Iterations for which it is cheap to undo an admission: a prefill and a few tokens are lost."""


class AminSurvival(Policy):
    """Amin with four changes, read from the forecast that a request arrives with; no other model call.

    1. Packing: the bound is the `pack_level` quantile of the length. A request that outlives it gets a new one, the
       same quantile of the length given that it exceeds what it has generated, instead of "ends with the next token".
       The level of first bounds follows the answers: it moves by `adaptation` times the difference between `pack_level`
       and the share that ends below (adaptive conformal inference, arXiv 2106.00170), so that forecasts that are too
       long do not leave the cache empty, nor too short ones fill it with evictions.
    2. Reserve: an admission leaves free, in the next iteration, `reserve_sd` standard deviations of the sum of the
       lengths that run. The requests grow into it until one ends; without it they would evict those just let in. The
       more of them run, and the surer their lengths, the smaller a share of the cache it is. It is never more than
       `max_reserve` of the cache, since a forecast that knows little has wide deviations.
    3. Order: ascending expected work over the rest of a life on the resource that binds (`BindingResource`), boosted
       for the sake of the tail (`Boost`). An evicted request is ordered by what it is known to exceed.
    4. Eviction: the least progress first, memory spent over memory expected to come, where spent is what would have to
       be done again (with `resume` a prefill). A request that turns out longer than predicted makes way for shorter
       ones. So does one that was let in a moment ago, when others that had arrived with it had no prediction yet.
    """

    def __init__(
        self,
        worker: Worker,
        rng: np.random.Generator,
        levels: Levels = DEFAULT,
        *,
        next_bound: NextBound = next_quantile,
        worth: Worth = progress,
        resource: BindingResource | None = None,
        order: Boost | LongestFirst | None = None,
    ) -> None:
        """Start with nothing waiting.

        Args:
            worker: As in `Policy`.
            rng: As in `Policy`.
            levels: By default those of the class.
            next_bound: How a bound that is outlived is raised.
            worth: Who is evicted.
            resource: What work is measured on; by default what binds on the worker.
            order: Who is admitted first; by default little work, boosted by `levels.tail`.
        """
        super().__init__(worker, rng)
        self._levels = levels
        self._next_bound, self._worth = next_bound, worth
        self._max_reserve = int(levels.max_reserve * worker.kv_cache.num_blocks)
        self._level = levels.pack_level
        self._resource, self._boost = resource or BindingResource.of(worker), order or Boost(levels.tail)
        self._entries: dict[int, Entry] = {}
        self._new: list[int] = []
        self._renewed: list[int] = []
        self._recent: dict[int, int] = {}  # when those were let in that may have been a moment ago
        self._variance = 0  # of the sum of the running lengths
        self._admitted_variance = 0  # of those admitted in the decision being made
        self._due = DueRequests()  # the running, when they reach their bounds
        self._peak = FuturePeak(worker.kv_cache)

    def add(self, index: int, request: Request) -> None:
        """Take in a request; it is queued by the next `schedule`."""
        limit = min(request.max_new_tokens, self.worker.kv_cache.kv_budget - request.num_prompt_tokens)
        self._entries[index] = entry = Entry(request, limit, *predicted(request, request.forecast_or_bounds()))
        self.waiting.remember(index, request)
        self._resource.add(index, self._demand(index, entry))
        self._new.append(index)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Take a request's new forecast in place of the old; its bound or its place in the queue follows."""
        entry = self._entries[index]
        if entry.start is None:
            self._renew_waiting(index, entry, renewal)
            return
        self._variance -= entry.variance
        entry.work, entry.variance = predicted(entry.request, renewal.forecast)
        self._variance += entry.variance
        self._renewed.append(index)

    def _renew_waiting(self, index: int, entry: Entry, renewal: Renewal) -> None:
        entry.work, entry.variance = predicted(entry.request, renewal.forecast)
        if entry.bound:
            bound = int(entry.work.quantile(self._levels.pack_level, entry.known))
            entry.bound = min(entry.limit, max(entry.known + 1, bound))
        if entry.arrival is None:  # nobody has seen it yet
            self._resource.remove(index)
            self._resource.add(index, self._demand(index, entry))
            return
        self._boost.leave(index)
        work = self._resource.iterations(self._demand(index, entry))
        self.waiting.move(index, self._boost.queue(index, entry.arrival, work))

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the evictions that the next iteration needs, then the admissions that still fit."""
        newcomers = self._queue_new(running.clock) if self._new else ()
        self._follow(running)
        preempted: list[int] = []
        if running.next_blocks > self.worker.kv_cache.num_blocks:
            preempted = evict_while_full(running, self.worker.kv_cache.num_blocks, self._victims(running))
        elif newcomers and self._recent:
            preempted = self._outranked(newcomers, running)
        for index in preempted:
            self._evict(index, running)
        renew = partial(self._renew_outlived, running.clock)
        decision = admit_while_peak_fits(self, running, preempted, self._peak, self._estimate, self._reserve, renew)
        for index in decision.admit:
            self._start(index, running.clock)
        return decision

    def _outranked(self, newcomers: Sequence[int], running: RunningBatch) -> list[int]:
        """Return who was let in only because newcomers that had arrived by then were not predicted yet."""
        recent, entries = self._recent, self._entries
        while recent and next(iter(recent.values())) < running.clock - RECENT:
            del recent[next(iter(recent))]
        young = [index for index in reversed(recent) if not entries[index].known]
        early = [i for i in newcomers if young and self._arrived(i) <= self._arrived(young[0])]
        if not early:  # nearly always: nothing is renewed for it
            return []
        work = {index: self._work(index) for index in (*young, *early)}
        young.sort(key=work.__getitem__, reverse=True)
        refused = self._without_room(sorted(early, key=work.__getitem__), running.clock)
        needed, outranked = sum(map(self._most_blocks, refused)), []
        for old, new in zip(young[: len(running) - 1], refused, strict=False):
            if needed <= 0 or not self._goes_first(new, old) or not self._boost.is_far_ahead(work[new], work[old]):
                break
            outranked.append(old)
            needed -= self._most_blocks(old)
        return outranked

    def _without_room(self, indices: Sequence[int], clock: int) -> Sequence[int]:
        """Return those of `indices`, from some one on, that the cache has no room for next to what runs."""
        self._renew_outlived(clock)
        room = 0
        for index in indices:
            if self._peak.try_add(index, clock, self._entries[index].request.num_prompt_tokens, self._estimate(index)):
                break
            room += 1
        for index in indices[:room]:
            self._peak.remove(index, clock)
        return indices[room:]

    def _most_blocks(self, index: int) -> int:
        """Return the blocks of a request when it reaches its bound."""
        return self.worker.kv_cache.blocks(self._entries[index].request.num_prompt_tokens + self._estimate(index))

    def _goes_first(self, new: int, old: int) -> bool:
        """Return whether nothing but work decides who of the two is let in first."""
        return (
            self._arrived(new) <= self._arrived(old)
            and self._entries[new].request.priority <= self._entries[old].request.priority
            and not self.waiting.is_overdue(old)
        )

    def _arrived(self, index: int) -> float:
        return self._entries[index].request.arrival_time

    def _work(self, index: int) -> float:
        return self._resource.iterations(self._demand(index, self._entries[index]))

    def _queue_new(self, clock: int) -> list[int]:
        new = [index for index in self._new if index in self._entries]
        works = [self._work(index) for index in new]
        if self._boost.arrive(works):
            self.waiting.reorder(self._boost.key)
        for index, work in zip(new, works, strict=True):
            self._entries[index].arrival = clock
            self.waiting.requeue(index, 0, self._boost.queue(index, clock, work))
        self._new.clear()
        return new

    def _demand(self, index: int, entry: Entry) -> Demand:
        """Return what a request that waits asks for over the rest of its life, less what it finds in the cache."""
        tokens, memory = entry.to_come(entry.kept)
        prefill: float = entry.request.num_prompt_tokens + entry.kept
        if self.waiting.cached is not None:
            memory -= tokens * self.worker.kv_cache.block_size * self.waiting.prefixes.num_common(index)
            held, was_evicted = entry.request.num_prompt_tokens + entry.kept, entry.known > 0
            prefill = self.waiting.cached.expected_prefill(index, held, was_evicted=was_evicted)
        return Demand(memory, tokens, prefill)

    def _follow(self, running: RunningBatch) -> None:
        """Take note of stalls, of renewed forecasts and of bounds that are outlived."""
        self._peak.follow(running)
        entries = self._entries
        for index in running.stalled:
            entry = entries[index]
            assert entry.start is not None
            entry.start += 1
            self._due.put(index, entry.start + entry.bound)
        for index in self._renewed:
            if index in running:
                entry, generated = entries[index], running.num_generated(index)
                bound = max(generated + 1, int(entry.work.quantile(self._levels.pack_level, generated)))
                self._repack(index, entry, min(bound, entry.limit), running)
        self._renewed.clear()
        self._peak.outlive(self._due.pop(running.clock))

    def _renew_outlived(self, clock: int) -> None:
        """Renew the bounds that have been outlived since the last time; one follows from the other, whenever it is."""
        entries, level, next_bound, ends = self._entries, self._levels.pack_level, self._next_bound, dict[int, int]()
        for index in self._peak.outlived:
            entry = entries[index]
            start, bound = entry.start, entry.bound
            assert start is not None
            if bound <= clock - start:
                bound = entry.bound = min(entry.limit, next_bound(entry, clock - start, level))
            ends[index] = max(start + bound, clock + 1)
        self._peak.extend(clock, ends)
        self._due.put_all(ends)

    def _repack(self, index: int, entry: Entry, bound: int, running: RunningBatch) -> None:
        assert entry.start is not None
        entry.bound = bound
        end = max(entry.start + bound, running.clock + 1)
        self._peak.move(index, running.clock, running.num_tokens(index), end)
        self._due.put(index, end)

    def _victims(self, running: RunningBatch) -> list[int]:
        """Return the running requests, the first to evict first; of equal ones the last admitted."""
        order, entries, resume = list(reversed(running)), self._entries, self.worker.resume
        order.sort(key=lambda index: self._worth(entries[index], running.num_generated(index), resume))
        if self.waiting.has_priorities:
            order.sort(key=lambda index: -entries[index].request.priority)
        return order

    def _start(self, index: int, clock: int) -> None:
        entry = self._entries[index]
        self._boost.leave(index)
        self._variance += entry.variance
        entry.bound = entry.bound or entry.estimate
        entry.first_bound = entry.first_bound or entry.bound
        self._recent[index] = clock
        entry.start, entry.kept = clock - entry.kept, 0
        entry.shared = self.worker.kv_cache.block_size * self.waiting.prefixes.num_taken(index)
        self._due.put(index, entry.start + entry.bound)

    def _evict(self, index: int, running: RunningBatch) -> None:
        entry, generated = self._entries[index], running.num_generated(index)
        self._peak.remove(index, running.clock)
        self._due.drop(index)
        self._recent.pop(index, None)
        self._variance -= entry.variance
        entry.start, entry.bound = None, self._bound(entry, generated)
        entry.kept = generated if self.worker.resume else 0
        entry.known = max(generated, entry.known)
        assert entry.arrival is not None
        work = self._resource.iterations(self._demand(index, entry))
        self.waiting.requeue(index, entry.kept, self._boost.queue(index, entry.arrival, work))

    def _estimate(self, index: int) -> int:
        """Return the output length that a waiting request is packed by."""
        entry = self._entries[index]
        if not entry.bound:
            entry.estimate = min(entry.limit, max(1, int(entry.work.quantile(self._level))))
        return entry.bound or entry.estimate

    def _bound(self, entry: Entry, generated: int) -> int:
        """Return the bound renewed until it exceeds what was generated; one that does so already stays."""
        if entry.bound > generated:
            return entry.bound
        return min(entry.limit, self._next_bound(entry, generated, self._levels.pack_level))

    def _reserve(self, index: int, admitted: Sequence[int]) -> int:
        """Return the blocks that the admission of a request, after `admitted`, leaves free."""
        if len(admitted) <= 1:
            self._admitted_variance = 0
        if admitted:
            self._admitted_variance += self._entries[admitted[-1]].variance  # one more each time: no sum over all
        variance = self._variance + self._admitted_variance + self._entries[index].variance
        deviations = ceil(self._levels.reserve_sd * sqrt(variance) / self.worker.kv_cache.block_size)
        return max(self.worker.watermark_blocks, min(deviations, self._max_reserve))

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; learn from an answer whether it ended below its first bound."""
        entry = self._entries.pop(index)
        if status is Status.ANSWERED:
            error = self._levels.pack_level - (num_generated < entry.first_bound)
            self._level = min(0.98, max(0.02, self._level + self._levels.adaptation * error))
        self._resource.remove(index)
        is_queued = entry.arrival is not None and not is_running  # or it came since the last decision
        self.waiting.remove(index, is_queued=is_queued)
        if is_running:
            self._peak.finish(index)
            self._due.drop(index)
            self._recent.pop(index, None)
            self._variance -= entry.variance
        else:
            self._boost.leave(index)


def with_levels(
    worker: Worker,
    rng: np.random.Generator,
    *,
    pack_level: float = DEFAULT.pack_level,
    reserve_sd: float = DEFAULT.reserve_sd,
    max_reserve: float = DEFAULT.max_reserve,
    tail: float = DEFAULT.tail,
    adaptation: float = DEFAULT.adaptation,
) -> Policy:
    """Return `AminSurvival` with these levels."""
    return AminSurvival(worker, rng, Levels(pack_level, reserve_sd, max_reserve, tail, adaptation))
