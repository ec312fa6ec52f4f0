"""A workload and the edges of its forecasts, in two files that `amin simulate` reads together."""

import json
from contextlib import ExitStack
from pathlib import Path

from pipelines.files import atomic_file
from scheduler.workload import Workload, workload_lines


def bins_file(workload: Path) -> Path:
    """Return where the edges of the field survival are: next to the workload."""
    return workload.with_name(workload.name + ".bins.json")


def write_workload(path: Path, workload: Workload) -> None:
    """Write a line for each request (JSONL) and, where they have forecasts, the edges of their bins next to it."""
    forecast = workload.requests[0].forecast
    with ExitStack() as both:
        with both.enter_context(atomic_file(path)).open("w", encoding="utf-8") as lines:
            lines.writelines(workload_lines(workload))
        if forecast is not None:
            new_bins = both.enter_context(atomic_file(bins_file(path)))
            new_bins.write_text(json.dumps(forecast.edges.tolist()) + "\n", encoding="utf-8")
