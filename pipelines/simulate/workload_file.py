"""A workload and the edges of its forecasts, in two files that `amin simulate` reads together."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.files import atomic_file
from scheduler.errors import InputError
from scheduler.json_file import read_json
from scheduler.workload import Ints, Workload, read_workload, workload_lines

FINEST_STEP, MOST_STEPS = 8, 512
"""Renewed forecasts are about what is left after any number of tokens: their edges are evenly spaced, in tokens."""


def bins_file(workload: Path) -> Path:
    """Return where the edges of the field survival are: next to the workload."""
    return workload.with_name(workload.name + ".bins.json")


def read_bins(path: Path) -> Ints:
    """Return the edges of length bins, shape [num_bins + 1]; InputError where the file has none."""
    values = read_json(path)
    whole = isinstance(values, list) and len(values) > 1 and all(type(value) is int for value in values)
    if not whole or values[0] != 0 or sorted(set(values)) != values:
        raise InputError(f"{path}: must be a list of ascending whole numbers of tokens from 0 on")
    return np.asarray(values, dtype=np.int64)


def read_with_bins(path: Path) -> Workload:
    """Return a workload that `write_workload` wrote with forecasts."""
    return read_workload(path, edges=read_bins(bins_file(path)))


def write_workload(path: Path, workload: Workload) -> None:
    """Write a line for each request (JSONL) and, where they have forecasts, the edges of their bins next to it."""
    if workload.renewals:
        workload = _on_common_edges(workload)
    forecast = workload.requests[0].forecast
    with ExitStack() as both:
        with both.enter_context(atomic_file(path)).open("w", encoding="utf-8") as lines:
            lines.writelines(workload_lines(workload))
        if forecast is not None:
            new_bins = both.enter_context(atomic_file(bins_file(path)))
            new_bins.write_text(json.dumps(forecast.edges.tolist()) + "\n", encoding="utf-8")


def _on_common_edges(workload: Workload) -> Workload:
    """Return a workload whose first forecasts, which all have, and renewed ones are on the same edges."""
    first = workload.requests[0].forecast
    assert first is not None, "renewals without first forecasts"
    renewed = [renewal.forecast for each in workload.renewals.values() for renewal in each]
    longest = max(int(forecast.edges[-1]) for forecast in (first, *renewed))
    step = max(FINEST_STEP, -(-longest // MOST_STEPS))
    edges = np.union1d(first.edges, np.arange(0, longest + step, step))
    requests = [
        replace(request, forecast=None if request.forecast is None else request.forecast.on(edges))
        for request in workload.requests
    ]
    renewals = {
        index: [replace(renewal, forecast=renewal.forecast.on(edges)) for renewal in each]
        for index, each in workload.renewals.items()
    }
    return replace(workload, requests=requests, renewals=renewals)
