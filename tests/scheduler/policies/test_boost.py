"""The order between mean and tail, and the resource that work is measured on."""

from math import inf, log

import numpy as np
import pytest

from scheduler.cost_model import CostModel
from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult
from scheduler.policies.boost import BindingResource, Boost, Demand
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

H100 = CostModel(0.00613, 2.2e-5, 1.61e-5, 3.73e-8)
"""Llama-3.1-8B in bf16, fitted on the kernel times that AISimulate 0.13 carries."""


def keys(tail: float, arrivals: list[int], works: list[float]) -> list[float]:
    """The keys of requests of which each came after the one before, none of them served."""
    boost = Boost(tail)
    for index, (arrival, work) in enumerate(zip(arrivals, works, strict=True)):
        boost.arrive([work])
        boost.queue(index, arrival, work)
    return [boost.key(index) for index in range(len(works))]


def test_without_a_tail_the_least_work_comes_first_and_with_a_large_one_the_first() -> None:
    """The two ends of the knob, whatever the arrivals and the work."""
    rng = np.random.default_rng(0)
    works, arrivals = rng.lognormal(0, 1, 60).tolist(), np.sort(rng.integers(0, 500, 60)).tolist()
    by_work = np.argsort(works).tolist()
    assert np.argsort(keys(0.0, arrivals, works)).tolist() == by_work
    assert np.argsort(keys(1e-9, arrivals, works)).tolist() == by_work
    assert np.argsort(keys(1e9, arrivals, works), kind="stable").tolist() == list(range(60))


def test_a_boost_is_that_of_the_formula() -> None:
    """Arrival + ln(1 - exp(-gamma w)) / gamma, gamma the knob over the mean work that an arrival found waiting."""
    boost = Boost(2.0)
    boost.arrive([3.0, 1.0])  # the second finds the work of the first
    assert boost.queue(0, 10, 3.0) == pytest.approx(10 + log(1 - np.exp(-2.0)) / (2 / 3))
    assert boost.queue(1, 10, 1.0) == pytest.approx(10 + log(1 - np.exp(-2.0 / 3)) / (2 / 3))
    assert not boost.arrive([])


def test_work_is_measured_on_what_is_asked_for_most() -> None:
    """In iterations of the whole worker: memory first, then slots, when requests that fill few slots have gone."""
    resource = BindingResource(Demand(memory=1000, tokens=10, prefill=inf))
    resource.add(0, Demand(memory=9000, tokens=20, prefill=5))
    assert resource.iterations(Demand(500, 40, 5)) == 0.5
    resource.add(1, Demand(memory=1000, tokens=100, prefill=5))
    assert resource.iterations(Demand(500, 40, 5)) == 4.0
    resource.remove(1)
    assert resource.iterations(Demand(500, 40, 5)) == 0.5


def test_the_work_of_all_is_the_iterations_that_they_take() -> None:
    """What its own tokens add to iterations moves work between requests, and leaves the sum."""
    demands = [Demand(800, 20, 300), Demand(4000, 50, 10), Demand(100, 5, 2000)]
    plain, timed = (BindingResource(Demand(2000, 4, inf), cost) for cost in (None, H100))
    for index, demand in enumerate(demands):
        plain.add(index, demand)
        timed.add(index, demand)
    sums = [sum(resource.iterations(demand) for demand in demands) for resource in (plain, timed)]
    assert sums[0] == pytest.approx(75 / 4)
    assert sums[1] == pytest.approx(sums[0])
    assert timed.iterations(demands[2]) > plain.iterations(demands[2])


@pytest.fixture(scope="module")
def chats() -> Workload:
    """1,200 requests shaped like chats of LMSYS, more than 16 slots can serve, with forecasts of error 0.4."""
    rng = np.random.default_rng(0)
    prompts, outputs = lmsys_shaped(1200, rng)
    names = [f"r{i}" for i in range(1200)]
    plain = workload_from_columns(names, prompts, outputs, np.cumsum(rng.exponential(1 / 13, 1200)))
    edges = np.concatenate([[0], np.unique(np.geomspace(1, 600, 40).astype(np.int64))])
    lens = plain.output_lens
    return Workload(synthesize(plain.requests, lens, "noise:0.4", rng, edges), lens)


def mean_latency(result: RunResult) -> float:
    """Seconds from arrival to the last token."""
    return float((result.finish_time - result.arrival_time).mean())


def test_where_slots_bind_the_order_is_as_good_as_any(chats: Workload) -> None:
    """Memory for thirty times as much: nothing is evicted, and amin-survival is within 3 % of the best policy."""
    worker = Worker(KvCache(432_992 // 16, 16), resume=True, max_running=16, cost_model=H100)
    results = {name: simulate(name, chats, worker, 0) for name in ("fcfs", "sjf", "svf", "amin-survival")}
    assert all(result.num_evictions.sum() == 0 for result in results.values())
    means = {name: mean_latency(result) for name, result in results.items()}
    assert means["amin-survival"] <= 1.03 * min(means.values())
    assert means["fcfs"] >= 1.3 * means["amin-survival"]


def test_the_knob_trades_the_mean_for_the_tail(chats: Workload) -> None:
    """A larger one has the longer mean, and a shorter longest wait."""
    worker = Worker(KvCache(432_992 // 16, 16), resume=True, max_running=16, cost_model=H100)
    runs = [simulate("amin-survival", chats, worker, 0, tail=tail) for tail in (0.0, 0.3, 3.0)]
    means = [mean_latency(result) for result in runs]
    longest = [float((result.finish_time - result.arrival_time).max()) for result in runs]
    assert means == sorted(means)
    assert longest == sorted(longest, reverse=True)
