"""The map of the gain over fcfs by KV cache and arrival rate: simulated with the fitted cost model, checked by runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.evaluate.case import Case
from pipelines.evaluate.inputs import shared_by_runs
from pipelines.evaluate.replay import replay
from pipelines.evaluate.run import run_policy, within_cache
from pipelines.evaluate.store import RunStore
from pipelines.gains import gain_cell, gain_over
from pipelines.served_model.loading import ServedModel
from pipelines.settings.evaluate import EvaluateSettings
from scheduler.kv_cache import KvCache
from scheduler.metrics import summarize
from scheduler.simulation.arrivals import poisson_arrivals
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

POLICY = "amin-survival"
BUDGETS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""KV caches, in shares of that of the evaluation."""
LOADS = (0.5, 0.7, 0.85, 1.0, 1.2)
"""Arrival rates, in shares of what fcfs serves of a standing queue with the KV cache of the evaluation."""
MEASURED = ((1.0, 0.85), (1.0, 1.2))
"""Cells that are also run on the engine."""
NUM_SEEDS = 5
FEWEST_REQUESTS = 300
"""Fewer prompts are drawn again and again up to this number."""


def sweep(settings: EvaluateSettings, served: ServedModel, case: Case, lens: Sequence[int], worker: Worker) -> Any:
    """Return the map for `results.json`.

    Args:
        settings: Settings of `amin evaluate`.
        served: The model, for the cells that are measured.
        case: The prompts.
        lens: Output length by prompt.
        worker: The engine as the simulator knows it: KV cache and fitted cost model.
    """
    largest = max(request.num_prompt_tokens + length for request, length in zip(case.requests, lens, strict=True))
    budgets = [round(share * worker.kv_cache.num_blocks) for share in BUDGETS]
    fitting = [blocks for blocks in budgets if blocks * worker.kv_cache.block_size >= largest]
    capacity = _capacity(case, lens, worker)
    rates = [float(f"{load * capacity:.3g}") for load in LOADS]
    measured = {(budgets[BUDGETS.index(share)], rates[LOADS.index(load)]) for share, load in MEASURED}
    cells = []
    with tqdm(total=len(rates) * len(fitting), desc="sweep", unit="cell") as bar:
        for rate in rates:
            for blocks in fitting:
                kv_cache = KvCache(blocks, worker.kv_cache.block_size)
                cell = _simulated(case, lens, replace(worker, kv_cache=kv_cache), rate)
                if (blocks, rate) in measured:
                    cell |= _measured(settings, served, case, replace(worker, kv_cache=kv_cache), rate)
                cells.append({"rate": rate, "kv_blocks": blocks, **cell})
                bar.update()
    return {"policy": POLICY, "block_size": worker.kv_cache.block_size, "num_seeds": NUM_SEEDS, "cells": cells}


def _capacity(case: Case, lens: Sequence[int], worker: Worker) -> float:
    """Return the requests per second that fcfs serves of a standing queue, in the simulator."""
    requests = [within_cache(worker.kv_cache, request) for request in case.requests]
    result = simulate("fcfs", Workload(requests, list(lens)), worker, 0, **case.policy_options["fcfs"])
    return len(lens) / float(result.finish_time.max())


def _simulated(case: Case, lens: Sequence[int], worker: Worker, rate: float) -> dict[str, Any]:
    """Return the gain over fcfs, as the cells of `pipelines.simulate.gain_map` have it."""
    gains, runs_of_fcfs = [], []
    for seed in range(NUM_SEEDS):
        workload = _drawn(case, lens, rate, worker.kv_cache, np.random.default_rng(seed))
        fcfs, ours = (
            summarize(simulate(name, workload, worker, seed, **case.policy_options[name]), worker.kv_cache)
            for name in ("fcfs", POLICY)
        )
        gains.append(gain_over(fcfs, ours))
        runs_of_fcfs.append(fcfs)
    return gain_cell(gains, runs_of_fcfs)


def _drawn(case: Case, lens: Sequence[int], rate: float, kv_cache: KvCache, rng: np.random.Generator) -> Workload:
    """Return all prompts in random order, or a draw with replacement where they are few, arriving at `rate`."""
    size = len(lens)
    chosen = rng.permutation(size) if size >= FEWEST_REQUESTS else rng.integers(0, size, FEWEST_REQUESTS)
    times = poisson_arrivals(len(chosen), rate, rng)
    requests = [
        replace(within_cache(kv_cache, case.requests[i]), request_id=str(k), arrival_time=float(time))
        for k, (i, time) in enumerate(zip(chosen, times, strict=True))
    ]
    return Workload(requests, [int(lens[i]) for i in chosen])


def _measured(
    settings: EvaluateSettings, served: ServedModel, case: Case, worker: Worker, rate: float
) -> dict[str, float]:
    """Return the gain over fcfs of real runs with the first seed, and of the same runs replayed in the simulator.

    The runs have the prompts once, the simulated cells `FEWEST_REQUESTS` at least: a longer stream gains more, so only
    the replay is comparable. The runs are kept like those of the evaluation.
    """
    kv_cache = worker.kv_cache
    cell = replace(settings, arrivals=f"poisson:{rate}", kv_blocks=kv_cache.num_blocks)
    folder = settings.out / "cells" / f"{kv_cache.num_blocks}-{rate}"
    store = RunStore(folder, shared_by_runs(cell), resume=settings.resume)
    runs = []
    for name in ("fcfs", POLICY):
        found = store.load(name, settings.seed, case.facts) or run_policy(
            name, settings.seed, cell, served, case, kv_cache
        )
        store.keep(found, {})
        runs.append(found)
    fcfs, ours = replay(runs, worker, case.policy_options).values()
    return {
        "measured_gain": fcfs["measured_mean_latency"] / ours["measured_mean_latency"],
        "replayed_gain": fcfs["simulated_mean_latency"] / ours["simulated_mean_latency"],
    }
