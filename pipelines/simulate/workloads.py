"""The workload of `amin simulate`: read or made up, then given arrivals and predictions by seed."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.simulate.resampling import seconds_per_iteration, volumes
from pipelines.simulate.traces import read_trace
from scheduler.arrivals import arrival_times, scale_to_load, times_at_load
from scheduler.errors import InputError
from scheduler.json_file import read_json
from scheduler.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

MADE_UP = "lmsys-shaped:"
DEFAULT_EDGES = np.unique(np.rint(np.geomspace(1, 8192, 64)).astype(np.int64))


def read_base(args: argparse.Namespace) -> Workload:
    """Return the requests as the file has them, or made up with seed 0."""
    if args.workload.startswith(MADE_UP):
        text = args.workload.removeprefix(MADE_UP)
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"workload is {args.workload!r}; give {MADE_UP}N with a whole number N >= 1")
        prompts, lens = lmsys_shaped(int(text), np.random.default_rng(0))
        places = [f"r{i}" for i in range(len(lens))]
        return workload_from_columns(places, prompts, lens, np.zeros(len(lens)), args.max_new_tokens)
    beside = Path(f"{args.workload}.bins.json")  # as amin predict and amin evaluate write it
    bins = beside if args.bins is None and beside.is_file() else args.bins
    workload, report = read_trace(Path(args.workload), args.max_new_tokens, _edges(bins), args.time_unit)
    print(report.line())
    return workload


def _edges(path: Path | None) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    if path is None:
        return None
    values = read_json(path)
    whole = isinstance(values, list) and len(values) > 1 and all(type(value) is int for value in values)
    if not whole or values[0] != 0 or sorted(set(values)) != values:
        raise InputError(f"{path}: must be a list of ascending whole numbers of tokens from 0 on")
    return np.asarray(values, dtype=np.int64)


def iteration_time(worker: Worker, base: Workload, load: float | None) -> float:
    """Return what an iteration takes of the worker's time, for arrivals that are to make a load; without one 1."""
    return 1.0 if load is None else seconds_per_iteration(worker, base)


def with_arrivals_and_predictions(base: Workload, args: argparse.Namespace, seed: int, iteration: float) -> Workload:
    """Return the workload of a seed: random arrivals and predictions differ between seeds, and nothing else.

    Arrivals at a load are counted in iterations, which take `iteration` in the worker's unit of time.
    """
    requests, rng = base.requests, np.random.default_rng(seed)
    times = np.array([request.arrival_time for request in requests])
    if args.load is not None:
        if args.arrivals is None:
            times = scale_to_load(times, args.load, volumes(base), args.kv_budget)
        else:
            times = times_at_load(args.arrivals, args.load, volumes(base), args.kv_budget, rng)
        times = times * iteration
    elif args.arrivals is not None:
        times = arrival_times(args.arrivals, len(requests), rng)
    if args.load is not None or args.arrivals is not None:
        requests = [replace(request, arrival_time=time) for request, time in zip(requests, times.tolist(), strict=True)]
    if args.predictions is not None:
        edges = np.concatenate([[0], DEFAULT_EDGES])
        requests = synthesize(requests, base.output_lens, args.predictions, rng, edges)
    return Workload(requests, base.output_lens)
