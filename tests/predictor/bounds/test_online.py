"""The online correction by simulation: population coverage after a drift, with few and many requests in flight."""

import heapq
from collections.abc import Callable
from math import erf

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.bounds.distribution import quantile
from predictor.bounds.online import OnlineCalibration
from predictor.bounds.survival_table import SurvivalTable, product_limit

TAU, SIGMA = 0.1, 0.7
BINS = LengthBins.log_spaced(4096, 48)
LOCATIONS = np.linspace(3.0, 6.0, 7)  # log medians of the kinds of prompts

Drift = Callable[[np.ndarray], np.ndarray]


def log_normal_survival(location: float) -> np.ndarray:
    """P(length > edge) of a log-normal length, shape [K+1]."""
    with np.errstate(divide="ignore"):
        scores = (np.log(BINS.as_array()) - location) / (SIGMA * 2**0.5)
    return np.array([0.5 * (1.0 - erf(score)) for score in scores])


SURVIVALS = {location: log_normal_survival(location) for location in LOCATIONS}


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of prompts and lengths as the predictor expects them."""
    locations = rng.choice(LOCATIONS, size)
    return locations, np.maximum(np.exp(rng.normal(locations, SIGMA)), 1)


def shipped() -> PitCalibration:
    """The calibration of 1,500 prompts."""
    locations, lengths = draw(np.random.default_rng(0), 1500)
    survival = np.array([SURVIVALS[location] for location in locations])
    return PitCalibration.fit(BINS, survival, [np.array([int(length)]) for length in lengths])


SHIPPED = shipped()
POPULATION = draw(np.random.default_rng(1), 4000)


def drifted(lengths: np.ndarray, drift: Drift) -> np.ndarray:
    """Lengths that came instead, whole and at least 1."""
    return np.maximum(drift(lengths), 1).astype(int)


class Traffic:
    """Requests that each decode a token a second, `slots` at a time, and the correction that hears of them."""

    def __init__(self, slots: int, seed: int, *, report_every: int | None, **options: object) -> None:
        self.now = 0.0
        self.online = OnlineCalibration(BINS, SHIPPED, clock=lambda: self.now, **options)  # type: ignore[arg-type]
        self._slots, self._rng, self._every = slots, np.random.default_rng(seed), report_every
        self._next_report = float(report_every or np.inf)
        self._running: list[tuple[float, int, int, float]] = []  # end, ticket, length, start

    def run(self, drift: Drift, num_answers: int) -> list[float]:
        """Return the coverage of the population after every 20 answers."""
        truth, coverages = drifted(POPULATION[1], drift), []
        for number in range(num_answers):
            while len(self._running) < self._slots:
                self._start(drift)
            self._report_until(self._running[0][0])
            self.now, ticket, length, _ = heapq.heappop(self._running)
            self.online.end(ticket, length)
            if number % 20 == 19:
                coverages.append(float(np.mean(truth >= self._bounds())))
        return coverages

    def _start(self, drift: Drift) -> None:
        locations, lengths = draw(self._rng, 1)
        ticket, length = self.online.issue(SURVIVALS[locations[0]]), int(drifted(lengths, drift)[0])
        heapq.heappush(self._running, (self.now + length, ticket, length, self.now))

    def _report_until(self, end: float) -> None:
        while self._next_report <= end:
            self.now = self._next_report
            for _, ticket, _, start in self._running:
                self.online.progress(ticket, int(self.now - start))
            self._next_report = max(self.now + (self._every or np.inf), end)

    def _bounds(self) -> np.ndarray:
        of_location = {location: self.online.bound(SURVIVALS[location], TAU) for location in LOCATIONS}
        return np.array([of_location[location] for location in POPULATION[0]])


DRIFTS: dict[str, Drift] = {
    "none": lambda lengths: lengths,
    "quarter": lambda lengths: lengths / 4,
    "double": lambda lengths: lengths * 2,
    "a hundredfold": lambda lengths: lengths * 100,
}


@pytest.mark.parametrize("slots", [1, 64, 1000])
@pytest.mark.parametrize("name", list(DRIFTS))
def test_coverage_is_held_after_500_answers(name: str, slots: int) -> None:
    """Within 0.03 of 0.90 for 97 % of the time, which a walk along the shipped table reached in 0 to 60 %."""
    every = {1: None, 64: 64, 1000: 512 if name == "a hundredfold" else 32}[slots]
    coverages = Traffic(slots, 3, report_every=every).run(DRIFTS[name], 1600)
    late = np.array(coverages[25:])
    assert np.mean(np.abs(late - 0.9) <= 0.03) >= 0.97


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (1.0, 2.0), (2.0, 0.5)])
def test_a_change_in_the_midst_of_traffic_is_followed(before: float, after: float) -> None:
    """With a full window of other answers: as good again 500 answers later."""
    traffic = Traffic(16, 5, report_every=64)
    traffic.run(lambda lengths: lengths * before, 1500)
    coverages = np.array(traffic.run(lambda lengths: lengths * after, 1500))
    assert np.mean(np.abs(coverages[25:] - 0.9) <= 0.03) >= 0.97


@pytest.mark.parametrize("every", [None, 32])
def test_short_answers_finishing_first_do_not_pull_the_bounds_down(every: int | None) -> None:
    """1,000 requests start at once, and nothing is wrong: reported as they run or at their end alone."""
    coverages = Traffic(1000, 7, report_every=every).run(DRIFTS["none"], 600)
    assert max(coverages) <= 0.95
    assert min(coverages) >= 0.85


def test_lower_never_rises_and_off_never_moves() -> None:
    """Whatever is reported."""
    tops = {"off": SHIPPED.level(TAU), "lower": SHIPPED.level(TAU)}
    for adapt, top in tops.items():
        for drift in (DRIFTS["quarter"], DRIFTS["double"]):
            traffic = Traffic(8, 1, report_every=None, adapt=adapt)
            traffic.run(drift, 600)
            assert traffic.online.level(TAU) <= top
            assert (traffic.online.level(TAU) == top) == (adapt == "off" or drift is DRIFTS["double"])


def test_the_marginal_bound_follows_too() -> None:
    """The tau quantile of the lengths of now, whether they were predicted or not."""
    rng = np.random.default_rng(2)
    online = OnlineCalibration(BINS, SHIPPED)
    lengths = rng.geometric(0.01, 1000)
    for length in lengths:
        online.end(online.issue(None), int(length))
    assert online.marginal_bound(TAU) == pytest.approx(np.quantile(lengths, TAU), abs=2)
    assert online.marginal_median() == pytest.approx(np.quantile(lengths, 0.5), abs=6)
    assert online.level(TAU) == SHIPPED.level(TAU), "no prediction was judged"


def test_the_bound_of_answers_of_one_length_is_that_length() -> None:
    """No rounding puts it above."""
    for length in (2, 3, 17, 250):
        online = OnlineCalibration(BINS, SHIPPED)
        survival = SURVIVALS[LOCATIONS[2]]
        for _ in range(400):
            online.end(online.issue(survival), length)
        assert length - 1 <= online.bound(survival, TAU) <= length


def test_memory_is_bounded_and_the_window_is_of_the_last_answers() -> None:
    """Tickets that never end leave with those around them."""
    online = OnlineCalibration(BINS, SHIPPED, window=50)
    for number in range(500):
        ticket = online.issue(None)
        if number % 5:
            online.end(ticket, number)
    assert online.num_answers == 50
    assert online.num_running <= 15
    assert [row[0] for row in online.state()["answers"]] == [n for n in range(500) if n % 5][-50:]


def test_answers_are_found_by_ticket_whatever_has_left() -> None:
    """Issued, dropped and ended at random, beyond the room at first: as many of each as in plain lists."""
    rng = np.random.default_rng(4)
    online, running, ended = OnlineCalibration(BINS, SHIPPED, window=10_000), dict[int, int](), list[int]()
    for number in range(6000):
        ticket = online.issue(SURVIVALS[LOCATIONS[number % 7]])
        running[ticket] = number
        assert ticket == number
        while len(running) > 40:
            ticket = int(rng.choice(list(running)))
            length = running.pop(ticket) + 1
            if rng.random() < 0.3:
                online.drop(ticket)
                online.end(ticket, length)  # it has left
            else:
                online.end(ticket, length)
                online.end(ticket, length + 1)  # once is enough
                ended.append(length)
    assert (online.num_running, online.num_answers) == (40, len(ended))
    assert sorted(row[0] for row in online.state()["answers"]) == sorted(ended)


def test_requests_of_which_nothing_is_heard_count_until_they_are_older_than_any_that_ended() -> None:
    """400 at 5 of 10 tokens a second's work: of 200 answers of 4 tokens and 200 of 10 the short ones are a quarter."""
    now = [0.0]
    online = OnlineCalibration(BINS, SHIPPED, clock=lambda: now[0])
    tickets = [online.issue(None) for _ in range(400)]
    for age, length, half in ((0.4, 4, tickets[::2]), (1.0, 10, tickets[1::2])):
        now[0] = age
        for ticket in half:
            online.end(ticket, length)
    for _ in range(400):
        online.issue(None)
    now[0] += 0.5
    assert online.marginal_bound(0.4) == 10
    now[0] += 0.6
    for _ in range(16):
        online.end(online.issue(None), 4)
    assert online.marginal_bound(0.4) == 4


def test_a_length_that_no_number_holds_is_only_long() -> None:
    """What a server states is anyone's."""
    online = OnlineCalibration(BINS, SHIPPED)
    for _ in range(400):
        ticket = online.issue(SURVIVALS[LOCATIONS[0]])
        online.progress(ticket, 10**25)
        online.end(ticket, 10**30)
        online.add_by_bound(10**30, 10**25, TAU)
    assert online.marginal_bound(TAU) == 1 << 53
    again = OnlineCalibration(BINS, SHIPPED)
    again.restore(online.state())
    assert again.num_answers == online.num_answers >= 700


def test_the_pace_of_a_server_that_lies_gives_silent_requests_a_length_still() -> None:
    """10^30 tokens in a microsecond: whoever is not heard of for 900 s counts as long, not as below 0."""
    now = [0.0]
    online = OnlineCalibration(BINS, SHIPPED, clock=lambda: now[0])
    first = online.issue(SURVIVALS[LOCATIONS[0]])
    now[0] = 1000.0
    online.end(first, 10)
    online.issue(SURVIVALS[LOCATIONS[0]])
    for _ in range(40):
        ticket = online.issue(SURVIVALS[LOCATIONS[0]])
        now[0] += 1e-6
        online.end(ticket, 10**30)
    now[0] += 900.0
    assert online.marginal_bound(0.999) == 1 << 53
    assert 0.0 <= online.level(TAU) <= 1.0


def test_product_limit_of_complete_values_is_their_distribution() -> None:
    """Without censoring each value has the mass 1 / N; a censored one hands its mass to those beyond it."""
    values = np.array([3.0, 1.0, 2.0, 4.0])
    complete = product_limit(values, np.ones(4, dtype=np.bool_))
    np.testing.assert_allclose(complete.values, [1, 2, 3, 4])
    np.testing.assert_allclose(complete.cumulated, [0.25, 0.5, 0.75, 1.0])
    cut = product_limit(values, np.array([True, True, False, True]))
    np.testing.assert_allclose(cut.values, [1, 3, 4])
    np.testing.assert_allclose(cut.cumulated, [0.25, 0.25 + 0.375, 1.0])
    assert product_limit(np.empty(0), np.empty(0, dtype=np.bool_)).threshold(TAU) == 0.0


def test_thresholds_are_those_of_split_conformal_prediction() -> None:
    """The floor(tau (n + 1))-th smallest, as the shipped table has it."""
    table = SurvivalTable.of(SHIPPED.pit)
    for tau in (0.01, 0.1, 0.25, 0.5, 0.9):
        assert table.threshold(tau) == SHIPPED.pit.threshold(tau)
    assert table.threshold(1e-6) == 0.0
    own = product_limit(np.arange(1.0, 100.0), np.ones(99, dtype=np.bool_))
    assert own.threshold(0.1) == 10.0
    assert table.blend(own, 1.0).threshold(0.1) == 10.0
    assert table.blend(own, 0.0).threshold(0.1) == table.threshold(0.1)


def test_a_level_beyond_the_curve_gives_the_marginal_bound() -> None:
    """A thinking model: answers all longer than predicted were bounded at a hundredth of their length."""
    traffic = Traffic(1, 3, report_every=None)
    traffic.run(lambda lengths: lengths * 0 + 20_000, 600)
    shortest = SURVIVALS[LOCATIONS[0]]
    assert traffic.online.bound(shortest, TAU) >= 19_000
    assert quantile(BINS, shortest[None], SHIPPED.level(TAU))[0] < 30


def test_bad_options_and_states_are_refused() -> None:
    """By name."""
    with pytest.raises(ValueError, match="window"):
        OnlineCalibration(BINS, SHIPPED, window=0)
    with pytest.raises(ValueError, match="answers"):
        OnlineCalibration(BINS, SHIPPED).restore({})
    online = OnlineCalibration(BINS, SHIPPED)
    online.issue(None)
    with pytest.raises(ValueError, match="issued already"):
        online.restore({"answers": []})
