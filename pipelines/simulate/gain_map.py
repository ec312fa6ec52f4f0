"""The map of when a policy pays: its gain over fcfs by load and by quality of the predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.files import atomic_files, write_json
from pipelines.gains import gain_cell, gain_over, is_nil
from pipelines.plots import gain_map
from pipelines.results import print_table
from pipelines.settings.simulate import MapSettings
from pipelines.simulate.workers import described, make_worker, setting
from pipelines.simulate.workloads import (
    arriving_at,
    iteration_time,
    read_base,
    served_tokens,
    with_predictions,
    with_times,
)
from scheduler.errors import InputError
from scheduler.metrics import summarize
from scheduler.policies import POLICIES
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload


@dataclass(frozen=True, slots=True)
class Ground:
    """What all cells share: the requests, the worker, and what a load means on it (see `served_tokens`)."""

    base: Workload
    worker: Worker
    iteration: float
    tokens: int


def run(settings: MapSettings) -> None:
    """Simulate every cell, write the map, print the table."""
    if settings.policy not in POLICIES:
        raise InputError(f"--policy: unknown policy {settings.policy!r}; choose from {', '.join(POLICIES)}")
    loads, noises = _numbers("--loads", settings.loads, 1e-3), _numbers("--noise", settings.noise, 0.0)
    worker = make_worker(settings.worker)
    base = read_base(settings.source, worker.kv_cache)
    ground = Ground(base, worker, iteration_time(worker, base, loads[0]), served_tokens(base, worker))
    cells: list[dict[str, Any]] = []
    total = len(loads) * (len(noises) + 1) * settings.seeds
    with tqdm(total=total, desc="map", unit="run", disable=not settings.progress) as bar:
        for load in loads:
            cells += _row(settings, ground, load, noises, bar)
    results = {"policy": settings.policy, "workload": Path(settings.source.workload).name}
    with atomic_files(settings.out, last="map.json") as new:
        (new / "map.png").write_bytes(gain_map(cells, settings.policy))
        write_json(new / "map.json", results | setting(settings.worker) | {"cells": cells})
    print(f"{described(settings.worker)}; how many times faster {settings.policy} is than fcfs (mean latency)")
    print(f"{settings.seeds} seeds; error of the predictions across, load down; ~ no difference")
    header = ["load", *(f"{noise:g}" for noise in noises), "fcfs waits"]
    rows = []
    for load in loads:
        row = [cell for cell in cells if cell["load"] == load]
        waits = f"{row[0]['fcfs_queueing_share']:.0%} of its latency"
        rows.append([f"{load:g}", *(_text(cell) for cell in row), waits])
    print_table(header, rows)


def _row(settings: MapSettings, ground: Ground, load: float, noises: Sequence[float], bar: Any) -> list[dict[str, Any]]:
    """Return the cells of one load."""
    gains: dict[float, list[Mapping[str, Any]]] = {noise: [] for noise in noises}
    runs_of_fcfs = []
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        timed = arriving_at(ground.base, settings.arrivals, load, ground.tokens, rng)
        timed = with_times(timed, [request.arrival_time * ground.iteration for request in timed.requests])
        fcfs = _figures("fcfs", timed, ground.worker, seed)
        runs_of_fcfs.append(fcfs)
        bar.update()
        for noise in noises:
            predicted = with_predictions(timed, f"noise:{noise}", np.random.default_rng((seed, 1)))
            figures = _figures(settings.policy, predicted, ground.worker, seed)
            gains[noise].append(gain_over(fcfs, figures) | {"recomputed_share": figures["recomputed_share"]})
            bar.update()
    return [{"load": load, "noise": noise, **gain_cell(seeds, runs_of_fcfs)} for noise, seeds in gains.items()]


def _figures(policy: str, workload: Workload, worker: Worker, seed: int) -> dict[str, Any]:
    return dict(summarize(simulate(policy, workload, worker, seed), worker.kv_cache))


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
