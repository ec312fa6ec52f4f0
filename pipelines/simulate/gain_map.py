"""The map of when a policy pays: its gain over fcfs by load and by quality of the predictions."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.gains import is_nil
from scheduler.errors import InputError

HELP = "gain of a policy over fcfs, by load and by quality of the predictions"
EPILOG = """example:
  amin map lmsys-shaped:2000 --kv-budget 16492 --out map
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of `amin simulate`, and the grid."""
    from pipelines.simulate.stage import add_worker_arguments

    parser.epilog = EPILOG
    add_worker_arguments(parser)
    parser.add_argument("--policy", default="amin-survival", help="the policy to compare with fcfs")
    parser.add_argument("--loads", default="0.5,0.7,0.8,0.9,1.0,1.2", help="shares of what the KV cache can serve")
    parser.add_argument(
        "--noise",
        default="0,0.2,0.4,0.8,1.6",
        help="standard deviations of the log-normal error of the predictions; 0 is perfect, 0.4 a good predictor",
    )
    parser.add_argument("--arrivals", default="poisson", help="poisson, gamma:CV, or a file with a time a line")
    parser.add_argument("--seeds", type=int, default=10, help="runs per cell; they differ in arrivals and predictions")
    parser.add_argument("--out", type=Path, required=True, help="folder for map.json and map.png")


def run(args: argparse.Namespace) -> None:
    """Simulate every cell, write the map, print the table."""
    from tqdm import tqdm

    from pipelines.files import atomic_file, write_json
    from pipelines.plots import gain_map
    from pipelines.results import print_table
    from pipelines.simulate.stage import make_worker
    from pipelines.simulate.workloads import iteration_time, read_base
    from scheduler.policies import POLICIES

    if args.policy not in POLICIES:
        raise InputError(f"--policy: unknown policy {args.policy!r}; choose from {', '.join(POLICIES)}")
    loads, noises = _numbers("--loads", args.loads, 1e-3), _numbers("--noise", args.noise, 0.0)
    if args.seeds < 2:
        raise InputError(f"--seeds is {args.seeds}, must be >= 2: a gain needs an interval")
    worker, base = make_worker(args), read_base(args)
    iteration, cells = iteration_time(worker, base, loads[0]), []
    with tqdm(total=len(loads) * (len(noises) + 1) * args.seeds, desc="map", unit="run") as bar:
        for load in loads:
            cells += _row(args, base, worker, iteration, load, noises, bar)
    results = {"policy": args.policy, "workload": Path(args.workload).name, "kv_budget": args.kv_budget, "cells": cells}
    with atomic_file(args.out / "map.png") as aside:
        aside.write_bytes(gain_map(cells, args.policy))
    write_json(args.out / "map.json", results)
    print(f"mean latency of fcfs over {args.policy}'s, {args.seeds} seeds; noise across, load down; ~ no difference")
    header = ["load", *(f"{noise:g}" for noise in noises), "fcfs waits"]
    rows = []
    for load in loads:
        row = [cell for cell in cells if cell["load"] == load]
        rows.append(
            [f"{load:g}", *(_text(cell) for cell in row), f"{row[0]['fcfs_queueing_share']:.0%} of its latency"]
        )
    print_table(header, rows)


def _row(
    args: argparse.Namespace, base: Any, worker: Any, iteration: float, load: float, noises: Sequence[float], bar: Any
) -> list[Any]:
    """Return the cells of one load."""
    from pipelines.simulate.workloads import with_arrivals_and_predictions
    from scheduler.metrics import interval_over_seeds, mean_over_seeds, summarize
    from scheduler.simulation import simulate

    gains: dict[float, list[Mapping[str, Any]]] = {noise: [] for noise in noises}
    waits = []
    for seed in range(args.seeds):
        reference = None
        for noise in noises:
            cell = argparse.Namespace(**vars(args) | {"load": load, "predictions": f"noise:{noise}"})
            workload = with_arrivals_and_predictions(base, cell, seed, iteration)
            if reference is None:
                reference = summarize(simulate("fcfs", workload, worker, seed), worker.kv_cache)
                waits.append(reference["mean_queueing_delay"] / reference["mean_latency"])  # type: ignore[operator]
                bar.update()
            figures = summarize(simulate(args.policy, workload, worker, seed), worker.kv_cache)
            ratio = {key: reference[key] / figures[key] for key in ("mean_latency", "p99_latency")}  # type: ignore[operator]
            gains[noise].append(ratio | {"recomputed_share": figures["recomputed_share"]})
            bar.update()
    return [
        {
            "load": load,
            "noise": noise,
            "gain": mean_over_seeds(seeds),
            "interval_95": interval_over_seeds(seeds),
            "fcfs_queueing_share": sum(waits) / len(waits),
        }
        for noise, seeds in gains.items()
    ]


def _text(cell: Mapping[str, Any]) -> str:
    text = f"{cell['gain']['mean_latency']:.2f} ±{cell['interval_95']['mean_latency']:.2f}"
    return f"~{text}" if is_nil(cell) else text


def _numbers(option: str, text: str, least: float) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}, must be numbers separated by commas") from error
    if not all(least <= value <= 100 for value in values) or len(set(values)) < len(values):
        raise InputError(f"{option} is {text!r}, must be different numbers from {least:g} to 100")
    return values
