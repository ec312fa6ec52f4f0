"""A log under fcfs and under a policy that reads predictions: latency, tail, and the load that either can carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.simulate.workloads import with_predictions
from scheduler.loop import RunResult
from scheduler.metrics import interval_over_seeds, mean_over_seeds, summarize
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

NOW, LIMIT = "fcfs", "hindsight-svf"
KEPT = (
    "mean_latency", "p99_latency", "mean_ttft", "p99_ttft", "mean_queueing_delay", "recomputed_share",
    "mean_kv_utilization", "throughput",
)  # fmt: skip
STEPS = 5
LEAST_WAIT = 0.05
"""Share of the latency that requests wait, below which order cannot help."""
MOST_LOAD = 4.0
"""Times the present load beyond which nothing is looked for."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A policy compared with fcfs on the same requests.

    Attributes:
        mean: Of each figure of `KEPT` over the seeds.
        gain: How many times faster than fcfs, in mean latency.
        interval: Half the 95 % interval of the gain; 0 for one seed.
        tail: Its p99 latency over fcfs's.
        latencies: Of the first seed, sorted, shape [n].
    """

    mean: Mapping[str, Any]
    gain: float
    interval: float
    tail: float
    latencies: NDArray[np.float64]


def queues(workload: Workload, worker: Worker) -> bool:
    """Return whether requests wait, or are evicted, so much under fcfs that order or packing can matter."""
    figures: Any = summarize(simulate(NOW, workload, worker, 0), worker.kv_cache)
    return bool(
        figures["mean_queueing_delay"] >= LEAST_WAIT * figures["mean_latency"]
        or figures["recomputed_share"] >= LEAST_WAIT
    )


def compare(
    policies: Sequence[str],
    workload: Workload,
    worker: Worker,
    skill: float,
    seeds: Sequence[int],
    done: Callable[[], object],
) -> dict[str, Compared]:
    """Return every policy compared with fcfs, which is the first.

    Args:
        policies: Besides fcfs.
        workload: What a replica gets.
        worker: The replica.
        skill: Share of the variance of log length that predictions explain.
        seeds: Of predictions and ties.
        done: Called after each run.
    """  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {}
    firsts: dict[str, NDArray[np.float64]] = {}
    for seed in seeds:
        predicted = _predicted(workload, skill, seed)
        for name in (NOW, *policies):
            result = simulate(name, predicted, worker, seed)
            figures = summarize(result, worker.kv_cache)
            runs.setdefault(name, []).append({key: figures[key] for key in KEPT})
            firsts.setdefault(name, _latencies(result))
            done()
    return {name: _compared(runs[NOW], figures, firsts[name]) for name, figures in runs.items()}


def _compared(now: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], first: Any) -> Compared:
    pairs = [
        {key: theirs[f"{key}_latency"] / ours[f"{key}_latency"] for key in ("mean", "p99")}
        for theirs, ours in zip(now, runs, strict=True)
    ]
    ratio: Any = mean_over_seeds(pairs)
    width: Any = interval_over_seeds(pairs) or {"mean": 0.0}
    return Compared(mean_over_seeds(runs), ratio["mean"], width["mean"], 1 / ratio["p99"], first)


def load_factor(
    policy: str, workload: Workload, worker: Worker, skill: float, seed: int, done: Callable[[], object], load: float
) -> float:
    """Return how many times the load a policy carries at the mean latency that fcfs has now; found by bisection.

    From a `load` below what can be served to that at most: beyond it the queue grows for as long as requests come,
    which the mean latency of a short log hides.
    """
    predicted = _predicted(workload, skill, seed)
    goal = _latencies(simulate(NOW, predicted, worker, seed)).mean()
    low, high = 1.0, min(MOST_LOAD, 1 / load) if load < 1 else MOST_LOAD
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        faster = simulate(policy, denser(predicted, middle), worker, seed)
        low, high = (middle, high) if _latencies(faster).mean() <= goal else (low, middle)
        done()
    return low


def denser(workload: Workload, factor: float) -> Workload:
    """Return the workload with `factor` times as many arrivals a second."""
    requests = [replace(request, arrival_time=request.arrival_time / factor) for request in workload.requests]
    return Workload(requests, workload.output_lens)


def _predicted(workload: Workload, skill: float, seed: int) -> Workload:
    return with_predictions(workload, f"skill:{skill:.4f}", np.random.default_rng((seed, 5)))


def _latencies(result: RunResult) -> NDArray[np.float64]:
    return np.sort(result.finish_time - result.arrival_time)
