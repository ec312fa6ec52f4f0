from dataclasses import replace

import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.kv_cache import KvCache
from scheduler.metrics import Targets, service, summarize
from scheduler.request import Request
from scheduler.simulation.replicas import ROUTINGS, Router, simulate_replicas
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload


def _workload(count: int, gap: float, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    lens = rng.integers(1, 60, count).tolist()
    times = np.cumsum(rng.exponential(gap, count)).tolist()
    requests = [Request(f"r{i}", int(rng.integers(0, 20)), 64, times[i]) for i in range(count)]
    return Workload(synthesize(requests, lens, "noise:0.4", rng), lens)


WORKER = Worker(KvCache(300), max_running=6)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("policy", ["fcfs", "amin", "amin-survival"])
def test_every_request_ends_once_on_every_routing(policy: str, routing: str) -> None:
    """All tokens come out, no request ends before its length allows, and time goes forward."""
    workload = _workload(80, 2.0)
    result = simulate_replicas(policy, workload, WORKER, 0, replicas=3, routing=routing)
    assert result.output_len.tolist() == workload.output_lens
    assert (result.finish_time - result.arrival_time >= result.output_len).all()
    assert (np.diff(result.timeline.end) >= 0).all()


def test_one_replica_is_the_simulator() -> None:
    """With one replica every figure is that of a plain run."""
    workload = _workload(60, 3.0)
    one = summarize(simulate_replicas("amin", workload, WORKER, 1), WORKER.kv_cache)
    assert one == summarize(simulate("amin", workload, WORKER, 1), WORKER.kv_cache)


def test_a_replica_sees_what_a_worker_of_its_own_would() -> None:
    """Round robin on two is two runs of every other request: the same times for all, at any load."""
    for gap in (0.3, 2.0, 20.0):
        workload = _workload(60, gap)
        both = simulate_replicas("fcfs", workload, WORKER, 0, replicas=2, routing="round-robin")
        for k in (0, 1):
            half = Workload(workload.requests[k::2], workload.output_lens[k::2])
            assert both.finish_time[k::2].tolist() == simulate("fcfs", half, WORKER, 0).finish_time.tolist()


def test_two_workers_serve_better_than_one() -> None:
    """Half the load each: nobody waits longer on average."""
    workload = _workload(120, 1.0)
    one, two = (simulate_replicas("fcfs", workload, WORKER, 0, replicas=n, routing="least-requests") for n in (1, 2))
    assert (two.finish_time - two.arrival_time).mean() < (one.finish_time - one.arrival_time).mean()


def test_predictions_send_the_short_one_past_the_long_one() -> None:
    """Of a worker with one long and one with two short requests the second has less predicted work, the first fewer."""
    long, short = Request("a", 0, 1000, output_len_prediction=900), Request("b", 0, 1000, output_len_prediction=10)
    for routing, expected in (("least-predicted-work", 1), ("least-requests", 0)):
        router = Router(routing, 2, np.random.default_rng(0))
        assert router.send(0, long) == 0
        assert router.send(1, short) == 1
        router.finish([1])
        assert router.send(2, replace(short, request_id="c")) == 1
        if routing == "least-requests":
            assert router.send(3, replace(short, request_id="d")) == 0
            router.finish([3])
            router.send(3, replace(short, request_id="d"))
            router.finish([0])
        else:
            router.send(3, replace(short, request_id="d"))
        assert router.send(4, replace(short, request_id="e")) == expected


def test_an_unknown_routing_is_refused() -> None:
    """The error lists those that there are."""
    with pytest.raises(InputError, match="round-robin"):
        Router("random", 2, np.random.default_rng(0))


def test_goodput_counts_requests_that_keep_both_targets() -> None:
    """Without targets all count, with impossible ones none; a target for the first token leaves out who waited."""
    workload = _workload(60, 1.0)
    result = simulate("fcfs", workload, WORKER, 0)
    assert service(result, Targets())["attainment"] == 1
    assert service(result, Targets(ttft=0.5))["attainment"] == 0
    ttft = result.first_token_time - result.arrival_time
    figures = service(result, Targets(ttft=float(np.median(ttft))))
    assert figures["attainment"] == pytest.approx(np.mean(ttft <= np.median(ttft)))
    makespan = result.finish_time.max() - result.arrival_time.min()
    assert figures["goodput"] == pytest.approx(figures["attainment"] * 60 / makespan)
    assert service(result, Targets(tpot=1.0))["attainment"] == pytest.approx(
        (result.num_evictions == 0).mean(), abs=0.1
    )
