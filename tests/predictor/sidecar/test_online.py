from collections.abc import Iterator

import numpy as np
import pytest

from predictor.bounds.calibration import PitCalibration
from predictor.sidecar.feedback import FeedbackLedger, TrackKey, judge
from predictor.sidecar.online import MAX_LOOP_GAIN, OnlineTau, level_at, marginal_bound_at

TAU, STEP = 0.1, 0.005
KEY = TrackKey(TAU, "served", "model")
CALIBRATION = np.sort(np.random.default_rng(99).lognormal(4.0, 0.7, 4000).astype(int) + 1)


def bound_at(tau: float) -> int:
    """The marginal bound of calibration lengths at an online tau, in tokens."""
    return int(CALIBRATION[min(int(tau * len(CALIBRATION)), len(CALIBRATION) - 1)]) if tau > 0 else 1


def lengths(rng: np.random.Generator, factor: float = 1.0) -> Iterator[int]:
    """Fresh lengths of the same distribution, times `factor`."""
    while True:
        yield from np.maximum(factor * (rng.lognormal(4.0, 0.7, 1000).astype(int) + 1), 1).astype(int).tolist()


def run_at_once(track: OnlineTau, output_lens: Iterator[int], num_requests: int) -> np.ndarray:
    """Whether each request missed its bound, with feedback after each."""
    missed = np.zeros(num_requests, dtype=bool)
    for i in range(num_requests):
        bound = bound_at(track.value)
        missed[i] = next(output_lens) < bound
        track.resolve(track.issue(), "missed" if missed[i] else "covered")
    return missed


def run_in_flight(
    ledger: FeedbackLedger, output_lens: Iterator[int], num_steps: int, slots: int, *, heard: str = "all"
) -> tuple[list[tuple[bool, int]], list[float]]:
    """(missed, bound) by issue and the value after each step of `slots` requests decoding a token a step.

    `heard`: "all" reports what runs too, every 8 tokens; "finished" only what ended; "known" each outcome as soon as it
    is known, running requests included, but in the order of knowing.
    """
    track = ledger.track(KEY)
    running: list[tuple[int, int, int]] = []  # index, start, length
    issued: list[tuple[bool, int]] = []
    values = []
    for step in range(num_steps):
        while len(running) < slots:
            bound, output_len = bound_at(track.value), next(output_lens)
            if heard == "all":
                ledger.remember(str(len(issued)), KEY, bound)
            running.append((len(issued), step, output_len))
            issued.append((output_len < bound, bound))
        going = []
        for index, start, output_len in running:
            done, bound = step - start + 1, issued[index][1]
            if heard == "known" and done == min(output_len, bound):
                ledger.report_unremembered(KEY, bound, done)
            if done >= output_len:
                if heard == "all":
                    ledger.report(str(index), output_len, "finished")
                elif heard == "finished":
                    ledger.report_unremembered(KEY, bound, output_len)
            else:
                if heard == "all" and done % 8 == 0:
                    ledger.report(str(index), done, "running")
                going.append((index, start, output_len))
        running = going
        values.append(track.value)
    return issued, values


@pytest.mark.parametrize("seed", range(3))
def test_on_steady_traffic_both_ways_misses_approach_tau(seed: int) -> None:
    """|misses / T - tau| <= (1 - tau + step) / (step T), the sum of the updates: .018 at T = 10,000."""
    track = OnlineTau(TAU, step=STEP, may_raise=True)
    missed = run_at_once(track, lengths(np.random.default_rng(seed)), 10_000)
    assert abs(missed.mean() - TAU) <= (1 - TAU + STEP) / (STEP * len(missed))


@pytest.mark.parametrize("seed", range(3))
def test_on_steady_traffic_the_default_covers_and_gives_little_away(seed: int) -> None:
    """Held at tau from above, the value lies on average sd * .8 below it, sd = sqrt(step tau (1 - tau) / 2) = .015.

    That many fewer misses: .012. The rate of misses of T requests scatters with sqrt(tau (1 - tau) / T) = .003, and the
    calibration table of 4,000 with .005: three of both together are .017.
    """
    track = OnlineTau(TAU, step=STEP)
    missed = run_at_once(track, lengths(np.random.default_rng(seed)), 10_000)
    assert TAU - 0.012 - 0.017 <= missed.mean() <= TAU + 0.017
    assert track.value <= TAU


def test_misses_are_bounded_on_any_traffic() -> None:
    """Misses <= tau T + (tau + step) / step at every T, also where an adversary misses whenever it can."""
    track = OnlineTau(TAU, step=STEP)
    misses = 0
    for count in range(1, 5001):
        can_miss = track.value > 0  # a bound of 1 cannot be missed
        misses += can_miss
        track.resolve(track.issue(), "missed" if can_miss else "covered")
        assert misses <= TAU * count + (TAU + STEP) / STEP + 1e-6
    assert misses > 0.9 * TAU * count


@pytest.mark.parametrize("may_raise", [False, True])
def test_coverage_recovers_when_lengths_halve(may_raise: bool) -> None:
    """Static bounds then miss about three times as often; 1,000 requests later the rate is back.

    Sd of the rate over 4,000 requests .005, and the value moves by its own sd: tolerance .02.
    """
    rng = np.random.default_rng(5)
    track = OnlineTau(TAU, step=STEP, may_raise=may_raise)
    run_at_once(track, lengths(rng), 2000)
    halved = lengths(rng, 0.5)
    run_at_once(track, halved, 1000)
    missed = run_at_once(track, halved, 4000)
    static = np.mean([next(halved) < bound_at(TAU) for _ in range(4000)])
    assert static > 2.5 * TAU
    assert missed.mean() <= TAU + 0.02
    run_at_once(track, lengths(rng), 3000)
    assert track.value > 0.5 * TAU, "bounds return when the lengths do"


def test_only_when_asked_do_bounds_rise_above_static() -> None:
    """Lengths double: the default keeps the static bounds, `may_raise` finds the tighter ones."""
    held, raised = OnlineTau(TAU, step=STEP), OnlineTau(TAU, step=STEP, may_raise=True)
    run_at_once(held, lengths(np.random.default_rng(1), 2.0), 3000)
    missed = run_at_once(raised, lengths(np.random.default_rng(1), 2.0), 6000)
    assert bound_at(held.value) <= bound_at(TAU) < bound_at(raised.value)
    assert missed[3000:].mean() == pytest.approx(TAU, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_short_answers_finishing_first_do_not_pull_the_bounds_down(seed: int) -> None:
    """256 requests start at once, nothing is wrong: finished ones alone take the value to 0, ours stays in place.

    The first to finish are the 26 that miss. Running ones help only if outcomes wait for the order of issue, as ours
    do, at a step of at most .25 / 256: the value strays by a few sd = sqrt(step tau (1 - tau) / 2) = .007 below tau.
    """
    num_steps = 400
    for heard in ("finished", "known"):
        naive = FeedbackLedger(step=STEP, may_raise=True)
        _, naive_values = run_in_flight(naive, lengths(np.random.default_rng(seed)), num_steps, 256, heard=heard)
        assert min(naive_values) < 0.02
    ours = FeedbackLedger(step=STEP, may_raise=True)
    issued, values = run_in_flight(ours, lengths(np.random.default_rng(seed)), num_steps, 256)
    assert min(naive_values) < 0.02
    assert min(values) > TAU - 5 * 0.007
    known = issued[: len(issued) - 256]
    assert np.mean([missed for missed, _ in known]) == pytest.approx(TAU, abs=0.03)
    assert len(known) > 1000


def test_the_bias_of_finished_only_costs_tightness_at_every_burst() -> None:
    """Over the first 60 steps naive bounds lose more than a quarter of their length; ours less than a tenth."""
    mean = {}
    for heard in ("all", "finished"):
        ledger = FeedbackLedger(step=STEP)
        issued, _ = run_in_flight(ledger, lengths(np.random.default_rng(3)), 60, 256, heard=heard)
        mean[heard] = np.mean([bound for _, bound in issued[256:]])
    assert mean["finished"] < 0.75 * bound_at(TAU)
    assert mean["all"] > 0.9 * bound_at(TAU)


def test_with_requests_in_flight_coverage_recovers_after_a_shift() -> None:
    """128 slots, lengths halve; a reporter of running and finished requests brings the misses back to tau."""
    ledger, rng = FeedbackLedger(step=STEP), np.random.default_rng(8)
    issued, _ = run_in_flight(ledger, lengths(rng, 0.5), 1000, 128)
    late = [missed for missed, _ in issued[2000:-128]]
    assert np.mean([missed for missed, _ in issued[:128]]) > 2 * TAU
    assert np.mean(late) <= TAU + 0.025
    assert len(late) > 500


def test_outcomes_apply_in_the_order_of_issue() -> None:
    """A miss that shows early waits for the earlier request; a lost one holds nothing back."""
    track = OnlineTau(TAU, step=STEP)
    first, second, third = track.issue(), track.issue(), track.issue()
    track.resolve(second, "missed")
    assert (track.value, track.num_pending) == (TAU, 3)
    track.resolve(first, "lost")
    assert track.num_pending == 1
    assert track.value == pytest.approx(TAU - STEP * (1 - TAU))
    assert track.coverage == 0.0
    track.resolve(third, "covered")
    assert track.value == pytest.approx(TAU - STEP * (1 - TAU) + STEP * TAU)


def test_the_step_shrinks_with_requests_in_flight() -> None:
    """1,000 pending: a step of at most .25 / 1,000."""
    track = OnlineTau(TAU, step=STEP)
    tickets = [track.issue() for _ in range(1000)]
    track.resolve(tickets[0], "missed")
    assert track.value == pytest.approx(TAU - MAX_LOOP_GAIN / 1000 * (1 - TAU))


def test_censored_requests_are_neither_covered_nor_missed() -> None:
    """A running request counts from the moment it reaches its bound."""
    assert judge(10, 10, "running") == "covered"
    assert judge(10, 9, "running") == "pending"
    assert judge(10, 9, "finished") == "missed"
    assert judge(10, 9, "aborted") == "lost"
    assert judge(10, 12, "aborted") == "covered"


def test_the_ledger_remembers_until_the_end() -> None:
    """Reports of one request count once; then it is forgotten, and its length enters the tightness."""
    ledger = FeedbackLedger()
    ledger.remember("a", KEY, 10)
    verdicts = [ledger.report("a", n, "running") for n in (4, 11, 12)]
    assert verdicts == ["pending", "covered", "covered"]
    assert ledger.report("a", 40, "finished") == "covered"
    assert ledger.report("a", 40, "finished") == "unknown"
    track = ledger.track(KEY)
    assert (track.coverage, track.tightness, track.num_pending) == (1.0, 0.25, 0)


def test_the_ledger_is_bounded_and_gives_up_the_silent() -> None:
    """The least recently heard goes first, as lost; so does one not heard of for `patience` seconds."""
    now = 0.0
    ledger = FeedbackLedger(max_remembered=3, patience=100.0, clock=lambda: now)
    for name in "abc":
        ledger.remember(name, KEY, 10)
    ledger.report("a", 1, "running")
    ledger.remember("d", KEY, 10)
    assert ledger.report("b", 20, "finished") == "unknown"
    assert len(ledger) == 3
    now = 101.0
    ledger.remember("e", KEY, 10)
    assert len(ledger) == 1
    assert ledger.track(KEY).num_pending == 1
    ledger.remember("e", KEY, 12)
    assert (len(ledger), ledger.track(KEY).num_pending) == (1, 1)


@pytest.mark.parametrize("by_bound", [True, False])
def test_a_silent_request_holds_back_no_reports_of_others(by_bound: bool) -> None:
    """Whether these come by bound or by id; nor does one that runs on and on hold back without limit."""
    now = 0.0
    ledger = FeedbackLedger(max_remembered=50, patience=100.0, clock=lambda: now)
    ledger.remember("other", KEY, 10)
    ledger.remember("silent", KEY, 10)
    now = 101.0
    if by_bound:
        ledger.report_unremembered(KEY, 10, 1)
    else:
        ledger.report("other", 5, "finished")
    assert len(ledger) == 0
    assert ledger.track(KEY).num_pending == 0
    assert ledger.track(KEY).value < TAU
    ledger.remember("endless", KEY, 10_000)
    for _ in range(200):
        ledger.report_unremembered(KEY, 10, 20)
        assert ledger.report("endless", 1, "running") == "pending"
        assert ledger.track(KEY).num_pending <= 50
    assert ledger.report("endless", 20_000, "finished") == "covered"
    assert ledger.track(KEY).num_pending == 0


def test_tracks_are_bounded() -> None:
    """A client that asks a new tau each time fills nothing; further ones stay static, but for the server's own."""
    ledger = FeedbackLedger(own_tau=0.85)
    for i in range(200):
        ledger.report_unremembered(TrackKey((i + 1) / 1000, "served", "model"), 10, 1)
    assert len(list(ledger.tracks)) == 64
    assert ledger.track(TrackKey(0.9, "served", "model")).value == 0.9
    own = TrackKey(0.85, "served", "model")
    ledger.report_unremembered(own, 10, 1)
    assert ledger.track(own).value < 0.85


def test_a_value_finer_than_the_calibration_means_a_bound_of_one() -> None:
    """Nine calibration prompts support tau = .1; below, and at or below 0, nothing can be promised but 1 token."""
    calibration = PitCalibration.marginal([np.array([length]) for length in range(10, 100, 10)])
    assert [marginal_bound_at(calibration, tau) for tau in (-0.005, 0.0, 0.05, 0.1, 1.2)] == [1, 1, 1, 10, 90]
    assert level_at(calibration, 0.05) == 0.0


def test_bad_options_are_refused() -> None:
    """A step above the loop gain could swing at once."""
    with pytest.raises(ValueError, match="step"):
        OnlineTau(TAU, step=0.3)
    with pytest.raises(ValueError, match="tau"):
        OnlineTau(1.0)
    with pytest.raises(ValueError, match="max_remembered"):
        FeedbackLedger(max_remembered=0)
