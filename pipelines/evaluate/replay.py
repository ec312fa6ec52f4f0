"""The measured runs once more, in the simulator with the cost model fitted from them: is it a model of this engine?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.evaluate.run import ENGINE_FIFO, MeasuredRun
from scheduler.cost_model import CostModel
from scheduler.deployments.iteration_times import iteration_seconds
from scheduler.loop import RunResult
from scheduler.metrics import after_warm_up
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload


def replay(
    runs: Sequence[MeasuredRun],
    worker: Worker,
    policy_options: Mapping[str, dict[str, Any]] | None = None,
    look_ahead: int | None = None,
) -> dict[str, Any]:
    """Return by policy the simulated and the measured mean latency, in seconds, and their ratio; means over seeds.

    `iterations_over_measured` is what the cost model says of the very iterations that were run, over what they took: as
    far as it explains the ratio of the latencies, the clock is off (the fit, or a machine whose speed drifted between
    the runs), and the simulator's schedule is right.

    The simulator gets the arrivals, output lengths and bounds of each run, and a request when the policy got it; of
    `policy_options`, what the run's policy is built with; with `look_ahead` it reads so many tokens an iteration ahead,
    of the prompts that the run had read. The engine's own scheduler is none of its policies and left
    out.
    """
    options = policy_options or {}
    pairs: dict[str, list[tuple[float, ...]]] = {}
    for measured in tqdm(runs, desc="replay", unit="run"):
        if measured.run.policy != ENGINE_FIFO:
            pairs.setdefault(measured.run.policy, []).append(
                (
                    *_mean_latencies(measured, worker, look_ahead, options.get(measured.run.policy, {})),
                    *_iteration_seconds(measured.iterations, worker.cost_model),
                )
            )
    report = {}
    for name, each in pairs.items():
        simulated, real, modelled, taken = np.array(each).T
        report[name] = {
            "simulated_mean_latency": float(simulated.mean()),
            "measured_mean_latency": float(real.mean()),
            "simulated_over_measured": float(simulated.mean() / real.mean()),
            "iterations_over_measured": float(modelled.sum() / taken.sum()),
        }
    return report


def _mean_latencies(
    measured: MeasuredRun, worker: Worker, look_ahead: int | None, options: Mapping[str, Any]
) -> tuple[float, float]:
    run = measured.run
    workload = Workload(list(run.requests), run.result.output_len.tolist(), measured.renewals)
    times = measured.entry_times.tolist()
    simulated = simulate(run.policy, workload, worker, run.seed, look_ahead=look_ahead, handed_over=times, **options)
    return mean_latency(simulated, run.num_warm_up), mean_latency(run.result, run.num_warm_up)


def _iteration_seconds(iterations: NDArray[np.float64], cost_model: CostModel | None) -> tuple[float, float]:
    """Return what the cost model says that all iterations take together, and what they took."""
    if cost_model is None:
        return float(len(iterations)), float(len(iterations))
    return float(iteration_seconds(cost_model, iterations[:, 1:]).sum()), float(iterations[:, 0].sum())


def mean_latency(result: RunResult, num_warm_up: int) -> float:
    """Return the mean latency of the requests after the warm-up."""
    kept = after_warm_up(result, num_warm_up)
    return float((kept.finish_time - kept.arrival_time).mean())
