"""The calibration of one served model, refitted on the answers of live traffic; numpy alone, for any kind of server."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from predictor.bounds.answers_seen import (
    MOST_TOKENS,
    AnswersSeen,
    Rows,
    length_table,
    place_of_change,
    row_of,
    score_table,
    stored_rows,
)
from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.calibration import LEVEL_MARGIN, PitCalibration
from predictor.bounds.distribution import FloatArray, cdf, quantile
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
_MAX_ANSWERS = 65_536
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
        self._answers = AnswersSeen(len(self._edges))
        self._num_new = self._num_learnt = 0
        self._rates: deque[tuple[float, float]] = deque(maxlen=_NUM_RATES)  # tokens per second, seconds
        self._shipped_scores = self._scores = SurvivalTable.of(calibration.pit)
        self._shipped_lengths = self._lengths = SurvivalTable.of(calibration.lengths)
        self._median = _median_of(self._lengths)

    @property
    def num_answers(self) -> int:
        """Answers in the window that have ended."""
        return self._answers.num_ended

    @property
    def num_running(self) -> int:
        """Requests in the window that have not ended."""
        return self._answers.num_there - self._answers.num_ended

    def issue(self, survival: FloatArray | None) -> int:
        """Return a ticket for a request that begins now, with its predicted survival [K+1] where there is one."""
        answers, has_score = self._answers, survival is not None
        ticket = answers.add((self._clock(), 0, 0.0, True, False, False, False, has_score, -1), survival)
        if len(answers.rows) > _MAX_ANSWERS:
            answers.drop_before(len(answers.rows) - _MAX_ANSWERS)
        return ticket

    def progress(self, ticket: int, num_tokens: int) -> None:
        """State that a running request has generated so many tokens; of a ticket that has left, nothing happens."""
        place, num_tokens = self._answers.running(ticket), min(num_tokens, MOST_TOKENS)
        if place is not None and num_tokens > self._answers.rows["tokens"][place]:
            row = self._answers.rows[place]
            row["tokens"], row["score"], row["is_heard"] = num_tokens, self._score(place, num_tokens), True
            self._num_new += 1

    def end(self, ticket: int, num_tokens: int, *, is_cut: bool = False) -> None:
        """State the length of an answer that has ended; `is_cut` where it would have gone on (a limit, a client left).

        A cut answer of no tokens says nothing and leaves.
        """
        place, num_tokens = self._answers.running(ticket), min(num_tokens, MOST_TOKENS)
        if place is None:
            return
        if is_cut and num_tokens < 1:
            self._answers.drop(place)
            return
        row = self._answers.rows[place]
        age = self._clock() - float(row["issued"])
        if age > 0 and not is_cut:
            self._rates.append((num_tokens / age, age))
        row["tokens"], row["score"], row["is_heard"] = num_tokens, self._score(place, num_tokens), True
        row["has_ended"], row["is_cut"] = True, is_cut
        self._answers.num_ended += 1
        self._count_end()

    def add_by_bound(self, bound: int, num_tokens: int, tau: float) -> None:
        """Take an answer of which its bound at `tau` is known, but not its prediction, as the newest one.

        One that reached its bound has a score beyond the level, one that missed it a score below, taken to be in
        proportion to its length.
        """
        bound, num_tokens = min(bound, MOST_TOKENS), min(num_tokens, MOST_TOKENS)
        level, has_missed = self.level(tau), num_tokens < bound
        score = level * (num_tokens + 1) / (bound + 1) if has_missed else level
        self._answers.add((self._clock(), num_tokens, score, True, True, True, False, True, int(has_missed)))
        self._count_end()

    def drop(self, ticket: int) -> None:
        """Forget a request of which nothing more will be heard."""
        if (place := self._answers.running(ticket)) is not None:
            self._answers.drop(place)

    def level(self, tau: float) -> float:
        """Return the CDF level at which to read a prediction now; 0, where every bound is 1, where answers are few."""
        self.refit_if_stale(tau)
        level = max(self._scores.threshold(tau) - LEVEL_MARGIN, 0.0)
        return min(level, self._shipped_level(tau)) if self._adapt == "lower" else level

    def marginal_bound(self, tau: float) -> int:
        """Return the bound in tokens that ignores the prompt."""
        self.refit_if_stale(tau)
        bound = max(1, int(self._lengths.threshold(tau)))
        return min(bound, self.shipped.marginal_bound(tau)) if self._adapt == "lower" else bound

    def marginal_median(self) -> int:
        """Return the median of the lengths, in tokens."""
        return self._median

    def bound(self, survival: FloatArray, tau: float) -> int:
        """Return the lower bound in tokens by a predicted survival [K+1]; the marginal one beyond the curve's end."""
        level = self.level(tau)
        if level > _LARGEST_LEVEL:
            return self.marginal_bound(tau)
        return max(1, int(quantile(self._bins, survival[None], level)[0]))

    def state(self) -> dict[str, Any]:
        """Return what has been learnt, for JSON: the answers that have ended, in the order of issue."""
        return {"answers": stored_rows(self._answers.rows)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, before anything was issued.

        Raises:
            ValueError: it is not what `state` returns.
        """
        if self._answers.num_issued:
            raise ValueError("restore: requests have been issued already")
        answers = state.get("answers") if isinstance(state, Mapping) else None
        if not isinstance(answers, list):
            raise ValueError("answers: must be a list")
        for row in answers[-self._window :]:
            self._answers.add(row_of(row))
        self._num_new = _STALE_AFTER

    def _score(self, place: int, num_tokens: int) -> float:
        """Return P(length <= num_tokens + 1) as predicted: the bound at a level covers the answer if it is below."""
        if not self._answers.rows["has_score"][place]:
            return 0.0
        if num_tokens + 1 > self._edges[-1]:
            return 1.0
        return float(1.0 - np.interp(num_tokens + 1, self._edges, self._answers.survivals[place]))

    def _count_end(self) -> None:
        self._num_new += 1
        if (num_beyond := self._answers.num_ended - self._window) > 0:
            rows = self._answers.rows
            ended = np.flatnonzero(rows["is_there"] & rows["has_ended"])
            self._answers.drop_before(int(ended[num_beyond - 1]) + 1)

    def _shipped_level(self, tau: float) -> float:
        return self.shipped.level(tau) if tau * (self.shipped.pit.num_prompts + 1) >= 1.0 else 0.0

    def refit_if_stale(self, tau: float) -> None:
        """Take in what was stated lately, where it is enough; else the next one who asks for a bound waits for that."""
        if self._adapt == "off" or self._num_new < min(_STALE_AFTER, 1 + self._answers.num_ended):
            return
        self._num_new = 0
        places, level = self._known(), self._scores.threshold(tau)
        known = self._answers.rows[places]
        self._num_learnt = max(self._num_learnt, int(np.count_nonzero(known["has_ended"] | (known["score"] > level))))
        if num_old := self._num_before_change(known, tau):
            known = known[num_old:]
            self._answers.drop_before(int(places[num_old]))
        weight = min(1.0, self._num_learnt / _NUM_TRUSTED) ** 2
        self._scores = _blend(self._shipped_scores, score_table(known[known["has_score"]]), weight)
        self._lengths = _blend(self._shipped_lengths, length_table(known), weight)
        self._median = _median_of(self._lengths)

    def _known(self) -> IntArray:
        """Return the places of answers that say something now; those not heard of count as running at a slow pace."""
        rows = self._answers.rows
        is_known = rows["is_there"] & rows["is_heard"]
        if self._rates:
            rates, ages = np.asarray(self._rates).T
            rate, oldest, now = float(np.quantile(rates, _SLOW_SHARE)), float(ages.max()), self._clock()
            silent = np.flatnonzero(rows["is_there"] & ~rows["is_heard"] & (now - rows["issued"] <= oldest))
            tokens = np.minimum(rate * (now - rows["issued"][silent]), MOST_TOKENS).astype(np.int64)
            scores = cdf(self._bins, self._answers.survivals[silent], tokens + 1)
            rows["tokens"][silent], rows["score"][silent] = tokens, np.where(rows["has_score"][silent], scores, 0.0)
            is_known[silent] = True
        return np.flatnonzero(is_known)

    def _num_before_change(self, known: Rows, tau: float) -> int:
        """Return how many of the first answers to leave out, the newest missing the level too often or too seldom."""
        level = max(self._scores.threshold(tau) - LEVEL_MARGIN, 0.0)
        places = np.flatnonzero(known["has_score"])[::-1]
        newest_first = known[places]
        is_beyond = newest_first["score"] > level
        num_newest = int(np.searchsorted(np.cumsum(is_beyond), _NUM_NEWEST)) + 1
        if self._num_learnt < _NUM_TRUSTED or num_newest >= len(newest_first):
            return 0
        missed = score_table(newest_first[:num_newest]).mass_up_to(level)
        num_told = _NUM_NEWEST / max(1.0 - missed, 1e-3)  # those beyond the level, and those that missed it
        distance = (missed - tau) * np.sqrt(num_told / (tau * (1.0 - tau)))
        if -_TOO_FEW_SDS <= distance <= _TOO_MANY_SDS:
            return 0
        return int(places[place_of_change(newest_first, is_beyond, tau, _NUM_NEWEST // 3)])


def _median_of(lengths: SurvivalTable) -> int:
    return max(1, int(lengths.quantile(0.5)))


def _blend(shipped: SurvivalTable, refitted: SurvivalTable, weight: float) -> SurvivalTable:
    """Return the shipped table and, with `weight`, the refitted one as one."""
    has_none = weight == 0.0 or not len(refitted.values)
    return shipped if has_none else shipped.blend(refitted, weight)
