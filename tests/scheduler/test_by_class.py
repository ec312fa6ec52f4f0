"""Figures of each class of requests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scheduler.by_class as module
from scheduler.by_class import by_class, classes_over_seeds, num_overtaken
from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult
from scheduler.metrics import Targets, service, summarize
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload


def run(policy: str = "sjf", count: int = 120) -> tuple[RunResult, list[str]]:
    """A run of two classes on a cache that is too small for all, and the class of each request."""
    rng = np.random.default_rng(0)
    lens = rng.integers(1, 60, count).tolist()
    classes = ["long" if length > 30 else "short" for length in lens]
    requests = [
        Request(f"r{i}", 5, 60, float(i // 8), output_len_prediction=length, service_class=classes[i])
        for i, length in enumerate(lens)
    ]
    return simulate(policy, Workload(requests, lens), Worker(KvCache(400)), 0), classes


def test_classes_add_up_to_the_whole() -> None:
    """Counts sum to the run's, means weighted by requests are the run's, and so is attainment."""
    result, classes = run()
    targets = Targets(ttft=20.0)
    whole = summarize(result, KvCache(400)) | service(result, targets)
    parts = by_class(result, classes, targets)
    assert list(parts) == ["long", "short"]
    sizes = np.array([part["num_requests"] for part in parts.values()])
    for key in ("mean_latency", "mean_ttft", "attainment"):
        assert sizes @ np.array([part[key] for part in parts.values()]) / sizes.sum() == pytest.approx(whole[key])
    assert sum(part["num_evictions"] for part in parts.values()) == whole["num_evictions"]
    assert max(part["max_evictions_per_request"] for part in parts.values()) == whole["max_evictions_per_request"]


def test_shortest_first_lets_the_long_be_overtaken() -> None:
    """Under fcfs nobody is; under sjf mostly the long ones are."""
    result, classes = run()
    parts = by_class(result, classes, Targets())
    assert parts["long"]["mean_overtaken"] > parts["short"]["mean_overtaken"]
    assert num_overtaken(run("fcfs")[0]).tolist() == [0] * 120


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), size=st.integers(1, 40))
def test_overtaking_is_counted_as_one_would_by_hand(data: st.DataObject, size: int) -> None:
    """Pairs of which the later arrival was admitted first; ties go by place, and none is before at the same time."""
    result, _ = run(count=size)
    times = st.lists(st.integers(0, 6).map(float), min_size=size, max_size=size)
    arrival, admission = np.array(data.draw(times)), np.array(data.draw(times))
    object.__setattr__(result, "arrival_time", arrival)
    object.__setattr__(result, "admission_time", admission)
    came = [(arrival[i], i) for i in range(size)]
    expected = [sum(came[j] > came[i] and admission[j] < admission[i] for j in range(size)) for i in range(size)]
    blocks = module.BLOCK
    try:
        module.BLOCK = data.draw(st.sampled_from([1, 3, 512]))
        assert num_overtaken(result).tolist() == expected
    finally:
        module.BLOCK = blocks


def test_a_class_that_is_missing_in_a_seed_is_averaged_over_the_others() -> None:
    """Each figure is the mean of the seeds that have the class."""
    merged = classes_over_seeds([{"a": {"num_requests": 1}}, {"a": {"num_requests": 3}, "b": {"num_requests": 5}}])
    assert merged == {"a": {"num_requests": 2.0}, "b": {"num_requests": 5.0}}
