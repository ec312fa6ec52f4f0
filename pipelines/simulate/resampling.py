"""Runs of any size from a file of requests: drawn with replacement, all at once or at a load."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scheduler.latency_bounds import volume
from scheduler.simulation.arrivals import times_at_load
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

Floats = NDArray[np.float64]


def resample(base: Workload, count: int, load: float | None, kv_budget: int, rng: np.random.Generator) -> Workload:
    """Return `count` requests drawn with replacement, all at 0 or Poisson at a load (`simulation.arrivals`)."""
    chosen = rng.integers(len(base.requests), size=count).tolist()
    drawn = base.select(chosen)
    return arriving(drawn, poisson(drawn, load, kv_budget, rng))


def poisson(workload: Workload, load: float | None, kv_budget: int, rng: np.random.Generator) -> Floats:
    """Return Poisson arrival times at a load, in iterations; zeros for None."""
    if load is None:
        return np.zeros(len(workload.requests))
    return times_at_load("poisson", load, volumes(workload), kv_budget, rng)


def arriving(workload: Workload, times: Floats) -> Workload:
    """Return the workload with these arrival times and new names."""
    facts = zip(workload.requests, times.tolist(), strict=True)
    requests = [replace(r, request_id=f"r{k}", arrival_time=time) for k, (r, time) in enumerate(facts)]
    return replace(workload, requests=requests)


def volumes(workload: Workload) -> Floats:
    """Return the token-iterations of memory of every request, shape [n]."""
    prompts = np.array([request.num_prompt_tokens for request in workload.requests], dtype=np.float64)
    lens = np.array(workload.output_lens, dtype=np.float64)
    return volume(prompts, lens)


def seconds_per_iteration(worker: Worker, workload: Workload) -> float:
    """Return what an iteration takes under the worker's cost model while it is full, 1 without one.

    Taken from `hindsight-svf` on the requests all at once. Arrival times in iterations times this are in seconds, at a
    load that is a share of what the worker can serve.
    """
    if worker.cost_model is None:
        return 1.0
    at_once = arriving(workload, np.zeros(len(workload.requests)))
    spans = [
        float(simulate("hindsight-svf", at_once, replace(worker, cost_model=cost_model), 0).finish_time.max())
        for cost_model in (worker.cost_model, None)
    ]
    return spans[0] / spans[1]


def stretched(workload: Workload, factor: float) -> Workload:
    """Return the workload with all arrival times multiplied."""
    requests = [replace(request, arrival_time=request.arrival_time * factor) for request in workload.requests]
    return replace(workload, requests=requests)
