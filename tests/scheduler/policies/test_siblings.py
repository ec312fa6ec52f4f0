"""Forecasts that move when siblings end, or last."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policies.siblings import with_siblings as module
from scheduler.policies.siblings.shared_factor import (
    FACTORS,
    ended,
    given_factors,
    outlived,
    score,
    survival_at,
    weights,
)
from scheduler.policies.siblings.shared_factor import moved as moved_by_table
from scheduler.policies.siblings.with_siblings import WithSiblings
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import log_normal_survival
from scheduler.worker import Worker
from scheduler.workload import Workload

EDGES = np.unique(np.concatenate([[0], np.geomspace(1, 20_000, 300).astype(int)]))
NORMAL = NormalDist()
READING = ("amin", "amin-eviction", "amin-survival", "amax", "svf", "sjf", "longest-first", "dla", "hindsight")


def forecast_of(median: float, sigma: float = 0.8) -> Forecast:
    """A log-normal forecast."""
    return Forecast(EDGES, log_normal_survival([median], sigma, EDGES)[0])


def moved(forecast: Forecast, probabilities: np.ndarray, correlation: float) -> Forecast:
    """The forecast given the probabilities of what its group shares."""
    return moved_by_table(forecast, probabilities, given_factors(forecast, correlation))


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.95])
def test_without_evidence_a_forecast_stays(correlation: float) -> None:
    """The mixture over what a group shares is the forecast itself."""
    forecast = forecast_of(300)
    same = moved(forecast, weights(np.zeros_like(FACTORS)), correlation)
    assert same.survival == pytest.approx(forecast.survival, abs=2e-5)


@pytest.mark.parametrize("correlation", [0.3, 0.7, 0.9])
def test_ends_give_the_posterior_of_a_random_effects_model(correlation: float) -> None:
    """Scores z of k siblings: a is normal with precision 1 + k r / (1 - r); the forecast is normal in its score."""
    scores, forecast = [0.4, 1.3, 0.9, 1.1, 0.2], forecast_of(300)
    told = moved(forecast, weights(np.sum([ended(z, correlation) for z in scores], axis=0)), correlation)
    precision = 1 + len(scores) * correlation / (1 - correlation)
    mean = math.sqrt(correlation) / (1 - correlation) * sum(scores) / precision
    spread = math.sqrt(correlation / precision + 1 - correlation)
    inner = [k for k, value in enumerate(forecast.survival) if 1e-4 < value < 1 - 1e-4]
    expected = [
        NORMAL.cdf((math.sqrt(correlation) * mean - NORMAL.inv_cdf(1 - forecast.survival[k])) / spread) for k in inner
    ]
    assert told.survival[inner] == pytest.approx(expected, abs=5e-4)


def test_on_average_over_a_siblings_ends_a_forecast_stays() -> None:
    """Bayes: what is expected after an end is what was expected before."""
    forecast, levels = forecast_of(300), (np.arange(400) + 0.5) / 400
    each = [moved(forecast, weights(ended(NORMAL.inv_cdf(level), 0.6)), 0.6).survival for level in levels]
    assert np.mean(each, axis=0) == pytest.approx(forecast.survival, abs=2e-3)


def test_a_sibling_that_lasts_is_the_mixture_of_all_its_later_ends() -> None:
    """P(others | z > c) is the mean over the ends beyond c."""
    forecast, levels = forecast_of(300), 0.7 + 0.3 * (np.arange(300) + 0.5) / 300
    ends = [moved(forecast, weights(ended(NORMAL.inv_cdf(level), 0.6)), 0.6).survival for level in levels]
    lasts = moved(forecast, weights(outlived(NORMAL.inv_cdf(0.7), 0.6)), 0.6)
    assert lasts.survival == pytest.approx(np.mean(ends, axis=0), abs=3e-3)
    assert (lasts.survival >= forecast.survival - 1e-6).all()


def test_a_length_beyond_the_last_edge_is_read_off_the_tail() -> None:
    """With an index it has a score, and the moved forecast keeps the index; without one nothing is that long."""
    forecast = Forecast(np.array([0, 100]), np.array([1.0, 0.2]), 2.0)
    assert survival_at(forecast, 200) == pytest.approx(0.05)
    assert moved(forecast, weights(ended(1.0, 0.6)), 0.6).tail == 2.0
    assert survival_at(replace(forecast, tail=None), 101) == 0


def drawn(rng: np.random.Generator, groups: int, size: int, correlation: float) -> Workload:
    """Groups of answers whose forecasts know nothing but the distribution of all."""
    shared = np.repeat(rng.standard_normal(groups), size)
    scores = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.standard_normal(groups * size)
    lens = np.clip(np.rint(300 * np.exp(0.8 * scores)), 1, 9_000).astype(int).tolist()
    forecast = forecast_of(300)
    order = rng.permutation(len(lens)).tolist()
    requests = [Request(f"r{i}", 20, 10_000, 0.0, 107, None, 300, forecast, group=f"g{i // size}") for i in order]
    return Workload(requests, [lens[i] for i in order])


class Told(Policy):
    """A policy that admits in order, and keeps the last it was told of each request."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker, np.random.default_rng(0))
        self.inner = make_policy("fcfs", worker, self.rng)
        self.waiting = self.inner.waiting
        self.last: dict[int, Forecast] = {}

    def add(self, index: int, request: Request) -> None:
        """Keep what it comes with."""
        assert request.forecast is not None
        self.last[index] = request.forecast
        self.inner.add(index, request)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Keep it."""
        self.last[index] = renewal.forecast

    def schedule(self, running: RunningBatch) -> Decision:
        """Pass it on."""
        return self.inner.schedule(running)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Pass it on."""
        self.inner.end(index, status, num_generated, is_running=is_running)


def test_what_is_told_is_what_all_the_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ends, one lasts beyond its median, one waits: each is told of the others and not of itself."""
    monkeypatch.setattr(module, "STEP", 0.0)
    told, forecast = Told(Worker(KvCache(100_000), max_running=2)), forecast_of(100, 0.5)
    policy, running = WithSiblings(told, 0.6), RunningBatch(KvCache(100_000))
    for index in range(4):
        policy.add(index, Request(f"r{index}", 1, 20_000, forecast=forecast, group="" if index == 3 else "g"))
    for index in policy.schedule(running).admit:
        running.append(index, 1, 0)
    ages = [int(forecast.quantile(level)) + 1 for level in module.AGES[:2]]
    for age in (*ages, ages[1] + 5):
        decision = policy.schedule(running)
        assert running.clock + decision.valid_for <= next((a for a in ages if a > running.clock), math.inf)
        running.advance(age - running.clock)
    policy.schedule(running)
    length = running.num_generated(0)
    running.remove(0)
    policy.end(0, Status.ANSWERED, length)
    policy.schedule(running)
    end = ended(score(survival_at(forecast, length - 0.5)), 0.6)
    lasts = outlived(score(survival_at(forecast, ages[1])), 0.6)
    assert told.last[1].survival == pytest.approx(moved(forecast, weights(end), 0.6).survival, abs=1e-9)
    assert told.last[2].survival == pytest.approx(moved(forecast, weights(end + lasts), 0.6).survival, abs=1e-9)
    assert told.last[3] is forecast
    policy.add(4, Request("late", 1, 20_000, forecast=forecast, group="g"))
    assert told.last[4].survival == pytest.approx(told.last[2].survival, abs=1e-9)


def test_a_cut_answer_is_longer_than_it_is() -> None:
    """An answer at its cap moves the others up, as an end at the same length would not."""
    forecast, told = forecast_of(300), Told(Worker(KvCache(1000)))
    policy = WithSiblings(told, 0.6)
    for index in range(2):
        policy.add(index, Request(f"r{index}", 1, 200, forecast=forecast, group="g"))
    running = RunningBatch(KvCache(1000))
    policy.schedule(running)
    policy.end(0, Status.ANSWERED, 200)
    policy.schedule(running)
    assert told.last[1].quantile(0.5) > forecast.quantile(0.5)


@pytest.mark.parametrize("name", ["amin", "amin-survival", "svf", "sjf"])
def test_siblings_help_where_forecasts_know_nothing(name: str) -> None:
    """Groups of eight, alike: the mean latency falls; where lengths are not alike nothing is known, little changes."""
    worker = Worker(KvCache(15_000), resume=True)
    alike = drawn(np.random.default_rng(3), 40, 8, 0.9)
    plain, told = (simulate(name, alike, worker, 0, **more) for more in ({}, {"sibling_correlation": 0.9}))
    assert told.finish_time.mean() < 0.97 * plain.finish_time.mean()
    assert told.output_len.tolist() == alike.output_lens
    none = simulate(name, alike, worker, 0, sibling_correlation=0.0)
    assert none.finish_time.tolist() == plain.finish_time.tolist()


def test_groups_without_requests_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next turn of a session finds what the last one said; of many sessions the oldest are forgotten."""
    monkeypatch.setattr(module, "MOST_GROUPS", 3)
    forecast, told = forecast_of(300), Told(Worker(KvCache(1000)))
    policy = WithSiblings(told, 0.6)
    for index in range(5):
        policy.add(index, Request(f"r{index}", 1, 20_000, forecast=forecast, group=f"g{index}"))
        policy.end(index, Status.ANSWERED, 5, is_running=False)
    for index, name in enumerate(("g4", "g0"), 5):
        policy.add(index, Request(f"s{index}", 1, 20_000, forecast=forecast, group=name))
    assert told.last[5].quantile(0.5) < 150
    assert told.last[6] is forecast
    assert len(policy._groups) <= 4


@pytest.mark.parametrize("value", [-0.1, 0.99, True, "x"])
def test_a_correlation_out_of_range_is_named(value: float) -> None:
    """One line."""
    with pytest.raises(InputError, match="sibling_correlation is"):
        make_policy("sjf", Worker(KvCache(10)), np.random.default_rng(0), sibling_correlation=value)


class AtClock(Policy):
    """Hands renewals to a policy after so many iterations, whatever the request does then."""

    def __init__(self, policy: Policy, plan: Mapping[int, Sequence[tuple[int, Renewal]]]) -> None:
        super().__init__(policy.worker, policy.rng)
        self.policy, self.plan, self.there = policy, dict(plan), dict[int, int]()

    def add(self, index: int, request: Request) -> None:
        """Pass it on."""
        self.there[index] = -1
        self.policy.add(index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Renew first; decide anew in each iteration."""
        for index, renewal in self.plan.pop(running.clock, ()):
            if 0 <= self.there.get(index, -1) < running.clock:
                generated = running.num_generated(index) if index in running else 0
                self.policy.renew(index, replace(renewal, num_generated=generated))
        for index, since in self.there.items():
            self.there[index] = running.clock if since < 0 else since
        return self.policy.schedule(running)._replace(valid_for=1)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Pass it on."""
        del self.there[index]
        self.policy.end(index, status, num_generated, is_running=is_running)


@st.composite
def plans(draw: st.DrawFn, size: int) -> dict[int, list[tuple[int, Renewal]]]:
    """A few renewals in some of the first iterations."""
    plan: dict[int, list[tuple[int, Renewal]]] = {}
    for clock in sorted(draw(st.sets(st.integers(1, 40), max_size=6))):
        ends = np.cumsum([0, *(draw(st.integers(1, 9)) for _ in range(3))])
        forecast = Forecast(ends, np.array([1.0, draw(st.floats(0.5, 1.0)), draw(st.floats(0.05, 0.5)), 0.0]))
        index = draw(st.integers(0, size - 1))
        plan[clock] = [(index, Renewal(0, forecast, draw(st.integers(1, 8))))]
    return plan


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("name", READING)
@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_renewals_of_waiting_requests_agree_with_the_slow_loop(
    cases: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """A request in the queue takes its new place there; running and evicted ones as well."""
    case = data.draw(cases())
    plan = data.draw(plans(len(case.requests)))
    worker = replace(case.worker, resume=resume)
    policy = make_policy(name, worker, np.random.default_rng(0), output_lens=case.output_lens)
    result = run_policy(AtClock(policy, plan), case, resume=resume)
    slow = slow_loop(name, case, resume=resume, by_clock=plan)
    everyone = range(len(case.requests))
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]
    assert result.finish_time.tolist() == [float(slow.finish_time[i]) for i in everyone]
