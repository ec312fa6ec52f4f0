"""Online recalibration: a running tau that follows the answers of live traffic."""

from collections import OrderedDict, deque
from typing import Literal

from predictor.bounds.calibration import PitCalibration

Outcome = Literal["covered", "missed", "lost"]

# Step times requests in flight stays below this. With calibrated levels a correction that is heard n requests late
# swings beyond its aim above 1/e and diverges above pi/2; after a shift the errors answer several times as strongly.
MAX_LOOP_GAIN = 0.25
WINDOW = 1000
MAX_PENDING = 65_536
_LARGEST_TAU = 1.0 - 1e-6


class OnlineTau:
    """The tau at which to read the calibration now, so that bounds are missed at the rate `tau` on this traffic.

    Adaptive conformal inference (Gibbs and Candes 2021, arXiv 2106.00170): after each request whose outcome is known

        value <- value + step (tau - missed),   missed = [output_len < its bound].

    **What is known when.** A finished request was covered or missed. A running one that has reached its bound is
    covered. One still below its bound is pending: neither. A miss shows when the answer ends, before the bound; a cover
    only once the bound is reached. So counted in the order of knowing, misses come first: after a start, a burst or a
    growth of traffic the value falls although nothing is wrong. (Counting finished requests alone delays covers even
    more.) Outcomes are therefore applied in the order of issue: a known one waits until all issued before it are known
    or lost. What is applied is then a prefix of the requests issued, chosen without looking at outcomes, and the update
    above runs on it exactly as in the paper, only later. The wait ends when the slowest earlier request reaches its
    bound, not its end. A lost request (no word of it any more) is left out; that errs to the safe side, since misses
    show early and so are seldom lost.

    **Late feedback.** Each update sees bounds issued `num_pending` requests ago. The step is cut to
    `MAX_LOOP_GAIN / num_pending` so that the loop does not swing.

    **Never above the static bound, unless asked.** By default `value` stays at or below `tau`: live traffic may lower
    bounds and let them return, not lift them above what the export's calibration gives. So the static guarantee
    (missed with probability at most tau on traffic like the calibration split) holds whatever the feedback says, a
    broken or hostile reporter included, and a bound is only ever traded for coverage. `may_raise` lifts the cap: the
    rate of misses then approaches `tau` from both sides, with tighter bounds where answers have grown longer.

    **What is guaranteed on any traffic**, with feedback after each request: each update adds at most
    step (tau - missed), and the value never falls below -step (at 0 or below every bound is 1 and cannot be missed).
    Summed over T requests: misses <= tau T + (tau + step) / step. With `may_raise` also
    misses >= tau T - (1 - tau + step) / step, as far as a bound at value 1 is missed.
    """

    def __init__(
        self, tau: float, *, step: float = 0.005, may_raise: bool = False, max_pending: int = MAX_PENDING
    ) -> None:
        """Start at `tau`; beyond `max_pending` outcomes that wait, the request that they wait for counts as lost."""
        if not 0.0 < tau < 1.0:
            raise ValueError(f"tau: must lie between 0 and 1, not {tau}")
        if not 0.0 <= step <= MAX_LOOP_GAIN:
            raise ValueError(f"step: must lie between 0 and {MAX_LOOP_GAIN}, not {step}")
        self.tau = tau
        self.value = tau
        self._step = step
        self._highest = 1.0 + step if may_raise else tau
        self._max_pending = max_pending
        self._issued: OrderedDict[int, Outcome | None] = OrderedDict()
        self._num_issued = 0
        self._covered: deque[bool] = deque(maxlen=WINDOW)
        self._finished: deque[tuple[int, int]] = deque(maxlen=WINDOW)

    @property
    def num_pending(self) -> int:
        """Requests issued whose outcome is not applied yet."""
        return len(self._issued)

    @property
    def coverage(self) -> float:
        """Share of the last `WINDOW` applied requests that reached their bound; nan before the first."""
        return sum(self._covered) / len(self._covered) if self._covered else float("nan")

    @property
    def tightness(self) -> float:
        """Mean bound / mean length of the last `WINDOW` finished requests; nan before the first.

        In the order of finishing: for a while after traffic grows, short answers are over-represented.
        """
        lengths = sum(length for _, length in self._finished)
        return sum(bound for bound, _ in self._finished) / lengths if lengths else float("nan")

    def issue(self) -> int:
        """Return a ticket for a bound given out now, to be passed to `resolve` once."""
        if len(self._issued) >= self._max_pending:
            self.resolve(next(iter(self._issued)), "lost")
        ticket = self._num_issued
        self._num_issued += 1
        self._issued[ticket] = None
        return ticket

    def resolve(self, ticket: int, outcome: Outcome) -> None:
        """State the outcome of a ticket, and apply every outcome that no earlier ticket holds back.

        A ticket that has been given up as lost is over.
        """
        if ticket not in self._issued:
            return
        self._issued[ticket] = outcome
        while self._issued and (first := next(iter(self._issued.values()))) is not None:
            step = min(self._step, MAX_LOOP_GAIN / len(self._issued))
            self._issued.popitem(last=False)
            if first != "lost":
                self._apply(step, missed=first == "missed")

    def add_finished(self, bound: int, output_len: int) -> None:
        """Take a finished answer into `tightness`, both in tokens."""
        self._finished.append((bound, output_len))

    def _apply(self, step: float, *, missed: bool) -> None:
        self._covered.append(not missed)
        value = self.value + step * (self.tau - missed)
        self.value = min(max(value, -self._step), self._highest)


def level_at(calibration: PitCalibration, tau: float) -> float:
    """Return the calibration's level at an online tau; 0, where every bound is 1, if that is finer than it supports."""
    return calibration.level(min(tau, _LARGEST_TAU)) if _is_supported(calibration.pit.num_prompts, tau) else 0.0


def marginal_bound_at(calibration: PitCalibration, tau: float) -> int:
    """Return the bound in tokens that ignores the prompt at an online tau; 1 if that is finer than supported."""
    return (
        calibration.marginal_bound(min(tau, _LARGEST_TAU)) if _is_supported(calibration.lengths.num_prompts, tau) else 1
    )


def _is_supported(num_prompts: int, tau: float) -> bool:
    return tau * (num_prompts + 1) >= 1.0
