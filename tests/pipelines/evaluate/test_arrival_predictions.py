import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluate.arrival_predictions import PredictedArrivals
from scheduler.arrival_source import KnownArrivals
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop, RunResult
from scheduler.metrics import summarize
from scheduler.policies import make_policy
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker

REQUESTS = [Request(f"r{i}", 5, 20, arrival_time=0.01 * i) for i in range(6)]


class Clock:
    """A wall clock from 0."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def __call__(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self.started


def fallback(request: Request) -> Request:
    """A bound of 2."""
    return replace(request, output_len_lower_bound=2)


def drain(arrivals: PredictedArrivals, clock: Clock) -> dict[int, Request]:
    """All requests, polled like the loop does."""
    taken: dict[int, Request] = {}
    arrivals.start()
    while arrivals.next_time < np.inf:
        time.sleep(max(0.0, arrivals.next_time - clock()))
        for index, request in arrivals.take(clock()):
            assert index not in taken
            taken[index] = request
    arrivals.close()
    return taken


def test_each_request_comes_once_with_its_prediction_after_its_arrival() -> None:
    """Nothing falls back while the predictor is fast, and nobody is handed over before it came."""
    clock = Clock()

    def predict(indices: Sequence[int]) -> list[Request]:
        return [replace(REQUESTS[i], output_len_lower_bound=10 + i) for i in indices]

    arrivals = PredictedArrivals(REQUESTS, predict, fallback, clock, 60.0)
    taken = drain(arrivals, clock)
    assert {index: request.output_len_lower_bound for index, request in taken.items()} == {i: 10 + i for i in range(6)}
    assert not arrivals.fallbacks
    assert all(arrivals.times[i] >= REQUESTS[i].arrival_time for i in range(6))
    assert arrivals.busy_seconds > 0


def test_a_slow_predictor_is_not_waited_for() -> None:
    """At the limit the fallback is handed over, a late prediction is dropped, and the delay is about the limit."""
    clock = Clock()

    def predict(indices: Sequence[int]) -> list[Request]:
        time.sleep(0.2)
        return [REQUESTS[i] for i in indices]

    arrivals = PredictedArrivals(REQUESTS, predict, fallback, clock, 0.02)
    taken = drain(arrivals, clock)
    assert len(taken) == 6
    assert arrivals.fallbacks
    assert all(taken[i].output_len_lower_bound == 2 for i in arrivals.fallbacks)
    assert all(arrivals.times[i] - REQUESTS[i].arrival_time >= 0.02 for i in arrivals.fallbacks)


def test_all_at_once_is_predicted_in_batches() -> None:
    """What has come in meanwhile makes batches of at most 16, the shortest prompts first."""
    clock, sizes = Clock(), []
    requests = [Request(f"r{i}", 50 - i, 20) for i in range(20)]

    def predict(indices: Sequence[int]) -> list[Request]:
        sizes.append(len(indices))
        assert list(indices) == sorted(indices, reverse=True)
        return [requests[i] for i in indices]

    assert len(drain(PredictedArrivals(requests, predict, fallback, clock, None), clock)) == 20
    assert sizes == [16, 4]


def test_what_cannot_be_predicted_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    """Alone, with the fallback: the loop must not wait for ever, nor lose the predictions of the others."""
    clock = Clock()
    requests = [Request(f"r{i}", 5, 20) for i in range(6)]

    def predict(indices: Sequence[int]) -> list[Request]:
        if 3 in indices:
            raise ValueError("no such token")
        return [replace(requests[i], output_len_lower_bound=10 + i) for i in indices]

    arrivals = PredictedArrivals(requests, predict, fallback, clock, None)
    taken = drain(arrivals, clock)
    assert [taken[i].output_len_lower_bound for i in range(6)] == [10, 11, 12, 2, 14, 15]
    assert arrivals.fallbacks == {3}
    assert "request r3 goes on without a prediction: no such token" in caplog.text


class Delayed(KnownArrivals):
    """Hands each request over 3 iterations after its arrival, with a bound."""

    def __init__(self, requests: Sequence[Request]) -> None:
        later = [replace(r, arrival_time=r.arrival_time + 3, output_len_lower_bound=4) for r in requests]
        super().__init__(later)


def simulated(delayed: bool) -> RunResult:
    """The outcome of four requests in the simulator under amin."""
    requests = [Request(f"r{i}", 2, 8, arrival_time=float(2 * i)) for i in range(4)]
    worker = Worker(KvCache(30))
    policy = make_policy("amin", worker, np.random.default_rng(0))
    executor = SimulatedExecutor(worker, [5, 6, 7, 8])
    arrivals = Delayed(requests) if delayed else None
    return Loop(policy, executor, requests, arrivals=arrivals).run()


def test_the_clock_of_a_request_starts_at_its_arrival() -> None:
    """A policy that learns of requests later changes their latencies by the delay, where nothing else waits."""
    plain, late = simulated(delayed=False), simulated(delayed=True)
    assert (late.arrival_time == plain.arrival_time).all()
    assert (late.admission_time - plain.admission_time == 3).all()
    assert (late.finish_time - plain.finish_time == 3).all()


class Held(KnownArrivals):
    """Hands a request over 3 iterations after its arrival, and says how many it holds back."""

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return those that arrived 3 iterations ago."""
        taken = super().take(now - 3)
        arrived = sum(request.arrival_time <= now for request in self._requests)
        self.num_held = arrived - (len(self._requests) - len(self._left))
        self.next_time = now + 1 if self._left else np.inf
        return taken


@pytest.mark.parametrize("budget", [12, 60], ids=["with evictions", "room for all"])
def test_the_queue_counts_requests_that_wait_for_a_prediction(budget: int) -> None:
    """Little's law: the queue summed over time is the time that all requests wait, whatever they wait for."""
    requests = [Request(f"r{i}", 2, 8, arrival_time=float(i)) for i in range(4)]
    worker = Worker(KvCache(budget))
    policy = make_policy("fcfs", worker, np.random.default_rng(0))
    result = Loop(policy, SimulatedExecutor(worker, [5, 6, 7, 8]), requests, arrivals=Held(requests)).run()
    timeline, figures = result.timeline, summarize(result, worker.kv_cache)
    waited = figures["total_latency"] - float(timeline.duration @ timeline.num_running)
    assert waited >= 4 * 3
    assert float(timeline.duration @ timeline.num_waiting) == waited
    assert figures["mean_queue_depth"] == pytest.approx(waited / figures["makespan"])


def test_a_batch_job_has_a_queue_while_it_is_predicted() -> None:
    """Nothing runs and nobody is known to the policy, but all have arrived."""
    clock = Clock()
    requests = [Request(f"r{i}", 5, 20) for i in range(6)]
    is_free = threading.Event()

    def predict(indices: Sequence[int]) -> list[Request]:
        is_free.wait()
        return [requests[i] for i in indices]

    arrivals = PredictedArrivals(requests, predict, fallback, clock, None)
    arrivals.start()
    assert not arrivals.take(clock())
    assert arrivals.num_held == 6
    is_free.set()
    while arrivals.next_time < np.inf:
        arrivals.take(clock())
    arrivals.close()
    assert arrivals.num_held == 0
