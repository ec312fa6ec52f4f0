"""The calibration of one served model, refitted on the answers of live traffic; numpy alone, for any kind of server."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from predictor.bounds.answers_seen import Entry, entry_of, length_table, place_of_change, score_table
from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import LEVEL_MARGIN, ConformalTable, PitCalibration
from predictor.bounds.distribution import FloatArray, quantile
from predictor.bounds.survival_table import SurvivalTable

Adaptation = Literal["off", "lower", "both"]

WINDOW = 1000
# Answers after which the shipped table counts no more. Its weight falls slowly at first, so that a few reports, chance
# or malice, move little.
_NUM_TRUSTED = 300
# Events between two refits.
_STALE_AFTER = 16
# A change of traffic: where so many of the newest answers reach the level, the misses among them are so many standard
# deviations from the wanted rate.
# Chance goes further up than down from so small a rate.
_NUM_NEWEST, _TOO_MANY_SDS, _TOO_FEW_SDS = 300, 5.0, 3.7
# Tokens per second of an unreported answer: so slow are only a tenth of the finished ones, which errs to the safe side.
_SLOW_SHARE = 0.1
_NUM_RATES = 200
_MAX_ENTRIES = 65_536
# Beyond this level a bound says nothing of the prompt any more: the predicted curve has ended.
_LARGEST_LEVEL = 1.0 - 1e-7


class OnlineCalibration:
    """Levels and bounds that hold on the traffic of now, from the last `window` answers in the order of issue.

    **What is refitted.** The tables of `PitCalibration`: the predicted CDF value of each answer's length, and the
    length itself. Finished answers enter exactly, running ones as longer than they are now, cut ones (a limit, a client
    that left) as longer than they were: the product-limit estimate (Kaplan and Meier 1958) of each table. Short answers
    finish first; finished ones alone look shorter than the traffic is, and after each burst pull the bounds down.

    **In the order of issue.** The window begins at an issue, not at an end. It holds all that was issued since,
    running or not. So it was chosen without looking at lengths. A request that reports nothing holds nothing back: it
    counts as running slowly until it is as old as the oldest finished one, then it leaves.

    **From the shipped table to the refitted one by weight**: with n answers that ended or reached the level the
    refitted one has min(1, n / 300)^2.

    **Changes.** Where misses among the newest answers are too many or too few for chance, those from before the change
    leave the window. It takes about 40 answers out of the blue, of 300.

    With "lower" bounds never rise above the shipped ones, whatever is reported; with "off" they stay. The finite-sample
    term of split conformal prediction is kept: a level allows tau (n + 1) - 1 of n. Not safe to share between threads.
    """

    def __init__(
        self,
        bins: LengthBins,
        calibration: PitCalibration,
        *,
        adapt: Adaptation = "both",
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at the shipped `calibration`; `clock` gives seconds."""
        if window < 1:
            raise ValueError(f"window: must be at least 1, not {window}")
        self.shipped, self._bins, self._adapt, self._window, self._clock = calibration, bins, adapt, window, clock
        self._edges = bins.as_array().astype(np.float64)
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._num_issued = self._num_ended = self._num_new = self._num_learnt = 0
        self._rates: deque[tuple[float, float]] = deque(maxlen=_NUM_RATES)  # tokens per second, seconds
        self._scores = SurvivalTable.of(calibration.pit)
        self._lengths = SurvivalTable.of(calibration.lengths)

    @property
    def num_answers(self) -> int:
        """Answers in the window that have ended."""
        return self._num_ended

    @property
    def num_running(self) -> int:
        """Requests in the window that have not ended."""
        return len(self._entries) - self._num_ended

    def issue(self, survival: FloatArray | None) -> int:
        """Return a ticket for a request that begins now, with its predicted survival [K+1] where there is one."""
        ticket = self._num_issued
        self._num_issued += 1
        self._entries[ticket] = Entry(self._clock(), survival, has_score=survival is not None)
        while len(self._entries) > _MAX_ENTRIES:
            self._pop_oldest()
        return ticket

    def progress(self, ticket: int, num_tokens: int) -> None:
        """State that a running request has generated so many tokens; of a ticket that has left, nothing happens."""
        entry = self._entries.get(ticket)
        if entry is not None and not entry.has_ended and num_tokens > entry.tokens:
            entry.tokens, entry.is_heard = num_tokens, True
            entry.score = self._score(entry, num_tokens)
            self._num_new += 1

    def end(self, ticket: int, num_tokens: int, *, is_cut: bool = False) -> None:
        """State the length of an answer that has ended; `is_cut` where it would have gone on (a limit, a client left).

        A cut answer of no tokens says nothing and leaves.
        """
        entry = self._entries.get(ticket)
        if entry is None or entry.has_ended:
            return
        if is_cut and num_tokens < 1:
            self.drop(ticket)
            return
        age = self._clock() - entry.issued
        if age > 0 and not is_cut:
            self._rates.append((num_tokens / age, age))
        entry.tokens, entry.is_heard, entry.has_ended, entry.is_cut = num_tokens, True, True, is_cut
        entry.score = self._score(entry, num_tokens)
        entry.survival = None
        self._count_end()

    def add_by_bound(self, bound: int, num_tokens: int, tau: float) -> None:
        """Take an answer of which its bound at `tau` is known, but not its prediction, as the newest one.

        One that reached its bound has a score beyond the level, one that missed it a score below, taken to be in
        proportion to its length.
        """
        level, has_missed = self.level(tau), num_tokens < bound
        score = level * (num_tokens + 1) / (bound + 1) if has_missed else level
        entry = Entry(self._clock(), None, num_tokens, score, True, True, has_score=True, has_missed=has_missed)
        self._entries[self._num_issued] = entry
        self._num_issued += 1
        self._count_end()

    def drop(self, ticket: int) -> None:
        """Forget a request of which nothing more will be heard."""
        entry = self._entries.get(ticket)
        if entry is not None and not entry.has_ended:
            del self._entries[ticket]

    def level(self, tau: float) -> float:
        """Return the CDF level at which to read a prediction now; 0, where every bound is 1, where answers are few."""
        self._refit_if_stale(tau)
        level = max(self._scores.threshold(tau) - LEVEL_MARGIN, 0.0)
        return min(level, self._shipped_level(tau)) if self._adapt == "lower" else level

    def marginal_bound(self, tau: float) -> int:
        """Return the bound in tokens that ignores the prompt."""
        self._refit_if_stale(tau)
        bound = max(1, int(self._lengths.threshold(tau)))
        return min(bound, self.shipped.marginal_bound(tau)) if self._adapt == "lower" else bound

    def marginal_median(self) -> int:
        """Return the median of the lengths, in tokens."""
        return max(1, int(self._lengths.quantile(0.5)))

    def bound(self, survival: FloatArray, tau: float) -> int:
        """Return the lower bound in tokens by a predicted survival [K+1]; the marginal one beyond the curve's end."""
        level = self.level(tau)
        if level > _LARGEST_LEVEL:
            return self.marginal_bound(tau)
        return max(1, int(quantile(self._bins, survival[None], level)[0]))

    def state(self) -> dict[str, Any]:
        """Return what has been learnt, for JSON: the answers that have ended, in the order of issue."""
        ended = [entry for entry in self._entries.values() if entry.has_ended]
        return {"answers": [[e.tokens, e.score if e.has_score else None, e.is_cut, e.has_missed] for e in ended]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, before anything was issued.

        Raises:
            ValueError: it is not what `state` returns.
        """
        if self._num_issued:
            raise ValueError("restore: requests have been issued already")
        answers = state.get("answers") if isinstance(state, Mapping) else None
        if not isinstance(answers, list):
            raise ValueError("answers: must be a list")
        for row in answers[-self._window :]:
            self._entries[self._num_issued] = entry_of(row)
            self._num_issued += 1
            self._num_ended += 1
        self._num_new = _STALE_AFTER

    def _score(self, entry: Entry, num_tokens: int) -> float:
        """Return P(length <= num_tokens + 1) as predicted: the bound at a level covers the answer if it is below."""
        if entry.survival is None:
            return 0.0
        if num_tokens + 1 > self._edges[-1]:
            return 1.0
        return float(1.0 - np.interp(num_tokens + 1, self._edges, entry.survival))

    def _count_end(self) -> None:
        self._num_ended += 1
        self._num_new += 1
        while self._num_ended > self._window:
            self._pop_oldest()

    def _shipped_level(self, tau: float) -> float:
        return self.shipped.level(tau) if tau * (self.shipped.pit.num_prompts + 1) >= 1.0 else 0.0

    def _pop_oldest(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self._num_ended -= entry.has_ended

    def _refit_if_stale(self, tau: float) -> None:
        if self._adapt == "off" or self._num_new < min(_STALE_AFTER, 1 + self._num_ended):
            return
        self._num_new = 0
        known, level = self._known(), self._scores.threshold(tau)
        self._num_learnt = max(self._num_learnt, sum(e.has_ended or e.score > level for e in known))
        if num_old := self._num_before_change(known, tau):
            known = known[num_old:]
            while next(iter(self._entries.values())) is not known[0]:
                self._pop_oldest()
        weight = min(1.0, self._num_learnt / _NUM_TRUSTED) ** 2
        scores = score_table([entry for entry in known if entry.has_score])
        self._scores = _blend(self.shipped.pit, scores, weight)
        self._lengths = _blend(self.shipped.lengths, length_table(known), weight)

    def _known(self) -> list[Entry]:
        """Return the entries that say something now; those not heard of count as running at a slow pace."""
        if not self._rates:
            return [entry for entry in self._entries.values() if entry.is_heard]
        rates, ages = np.asarray(self._rates).T
        rate, oldest, now = float(np.quantile(rates, _SLOW_SHARE)), float(ages.max()), self._clock()
        silent = [entry for entry in self._entries.values() if not entry.is_heard and now - entry.issued <= oldest]
        for entry in silent:
            entry.tokens = int(rate * (now - entry.issued))
            entry.score = self._score(entry, entry.tokens)
        left = {id(entry) for entry in silent}
        return [entry for entry in self._entries.values() if entry.is_heard or id(entry) in left]

    def _num_before_change(self, known: Sequence[Entry], tau: float) -> int:
        """Return how many of the first answers to leave out, the newest missing the level too often or too seldom."""
        level = max(self._scores.threshold(tau) - LEVEL_MARGIN, 0.0)
        newest_first = [entry for entry in reversed(known) if entry.has_score]
        is_beyond = np.asarray([entry.score > level for entry in newest_first], dtype=np.bool_)
        num_newest = int(np.searchsorted(np.cumsum(is_beyond), _NUM_NEWEST)) + 1
        if self._num_learnt < _NUM_TRUSTED or num_newest >= len(newest_first):
            return 0
        missed = score_table(newest_first[:num_newest]).mass_up_to(level)
        num_told = _NUM_NEWEST / max(1.0 - missed, 1e-3)  # those beyond the level, and those that missed it
        distance = (missed - tau) * np.sqrt(num_told / (tau * (1.0 - tau)))
        if -_TOO_FEW_SDS <= distance <= _TOO_MANY_SDS:
            return 0
        return known.index(newest_first[place_of_change(newest_first, is_beyond, tau, _NUM_NEWEST // 3)])


def _blend(shipped: ConformalTable, refitted: SurvivalTable, weight: float) -> SurvivalTable:
    """Return the shipped table and, with `weight`, the refitted one as one."""
    has_none = weight == 0.0 or not len(refitted.values)
    return SurvivalTable.of(shipped) if has_none else SurvivalTable.of(shipped).blend(refitted, weight)
