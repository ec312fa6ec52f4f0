"""`results.json` and `requests.parquet`, the same for simulation and real generation, and the table on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import atomic_files, write_json
from pipelines.output.terminal import on_one_line
from scheduler.by_class import by_class, classes_over_seeds
from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult
from scheduler.metrics import (
    Figures,
    Targets,
    after_first,
    after_warm_up,
    interval_over_seeds,
    mean_over_seeds,
    paired_with,
    service,
    summarize,
)
from scheduler.request import Request

MEASURED = (
    "arrival_time", "admission_time", "first_token_time", "finish_time", "output_len", "num_evictions",
    "num_recomputed_tokens",
)  # fmt: skip
"""Columns of `requests.parquet` after policy, seed and request_id: latencies follow from them."""
OPTIONAL = ("class", "group")
"""Columns between them, where any request has one."""


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One run of one policy: what happened, and the requests in the order that the result's indices name them."""

    policy: str
    seed: int
    requests: Sequence[Request]
    result: RunResult
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further figures for `results.json`, besides those of `scheduler.metrics.summarize`."""
    num_warm_up: int = 0
    """Requests, the first to arrive, that the figures leave out."""


def policy_figures(
    runs: Sequence[PolicyRun],
    kv_cache: KvCache,
    total_latency_lower_bound: float | None = None,
    targets: Targets | None = None,
) -> dict[str, Any]:
    """Return the `policies` entry of `results.json`: per policy the figures of each seed, means and intervals.

    With targets each also has `attainment` and `goodput` (`scheduler.metrics.service`). With a lower bound each has
    `ratio_to_lower_bound`, of its total latency. Where fcfs ran with the same seeds each also has `versus_fcfs`, the
    paired comparison of `scheduler.metrics.paired_with`. Where requests have classes each also has `classes`, the
    figures of each class (`scheduler.by_class`), means over the seeds.
    """
    policies: dict[str, Any] = {}
    targets = targets or Targets()
    classes: dict[str, list[dict[str, Figures]]] = {}
    for run in runs:
        result = after_warm_up(run.result, run.num_warm_up)
        figures: dict[str, Any] = {"seed": run.seed, **summarize(result, kv_cache), **run.extra}
        if targets != Targets():
            figures |= service(result, targets)
        if any(request.service_class for request in run.requests):
            names = [run.requests[i].service_class for i in after_first(run.result, run.num_warm_up)]
            classes.setdefault(run.policy, []).append(by_class(result, names, targets))
        if total_latency_lower_bound is not None:
            figures["ratio_to_lower_bound"] = figures["total_latency"] / total_latency_lower_bound
        policies.setdefault(run.policy, {"seeds": []})["seeds"].append(figures)
    for name, seeds in classes.items():
        policies[name]["classes"] = classes_over_seeds(seeds)
    for entry in policies.values():
        entry["mean"] = mean_over_seeds(entry["seeds"])
        entry["interval_95"] = interval_over_seeds(entry["seeds"])
    for entry in policies.values():
        if "fcfs" in policies:
            entry["versus_fcfs"] = paired_with(policies["fcfs"]["seeds"], entry["seeds"])
    return policies


def write_results(out: Path, results: Mapping[str, Any], runs: Sequence[PolicyRun]) -> None:
    """Write `out/results.json` and `out/requests.parquet`, both or neither."""
    columns: dict[str, list[Any]] = {name: [] for name in ("policy", "seed", "request_id", "class", "group", *MEASURED)}
    for run in runs:
        count = len(run.requests)
        columns["policy"] += [run.policy] * count
        columns["seed"] += [run.seed] * count
        columns["request_id"] += [request.request_id for request in run.requests]
        for name, value in {"class": "service_class", "group": "group"}.items():
            columns[name] += [getattr(request, value) or None for request in run.requests]
        for name in MEASURED:
            columns[name] += getattr(run.result, name).tolist()
    with atomic_files(out, last="results.json") as new:
        kept = {name: values for name, values in columns.items() if name not in OPTIONAL or any(values)}
        # Arrow takes no path that is not text, and an open file of any name.
        with (new / "requests.parquet").open("wb") as stream:
            pq.write_table(pa.table(kept), stream)
        write_json(new / "results.json", results)


COLUMNS = (
    ("mean_latency", "mean latency", "{:.1f}"),
    ("p99_latency", "p99", "{:.1f}"),
    ("mean_ttft", "mean TTFT", "{:.1f}"),
    ("mean_tpot", "TPOT", "{:.3f}"),
    ("throughput", "tokens/time", "{:.1f}"),
    ("makespan", "makespan", "{:.0f}"),
    ("num_evictions", "evictions", "{:.0f}"),
    ("recomputed_share", "recomputed", "{:.1%}"),
    ("mean_kv_utilization", "KV use", "{:.0%}"),
    ("mean_queue_depth", "queue", "{:.0f}"),
)


def table(policies: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the policy table; the reference for the ratio is fcfs, or else the first policy.

    The ratio is the mean over seeds of the ratio on the same requests where there is one for each (`versus_fcfs`). With
    several seeds it and the mean latency have their 95 % interval; recomputed tokens are shown as a share of output
    tokens.
    """
    reference = "fcfs" if "fcfs" in policies else next(iter(policies))
    base = policies[reference]["mean"]["mean_latency"]
    columns = list(COLUMNS)
    if all("ratio_to_lower_bound" in entry["mean"] for entry in policies.values()):
        columns.append(("ratio_to_lower_bound", "x bound", "{:.2f}"))
    if all("goodput" in entry["mean"] for entry in policies.values()):
        columns += [("attainment", "in time", "{:.0%}"), ("goodput", "goodput", "{:.3g}")]
    header = ["policy", f"vs {reference}", *(title for _, title, _ in columns)]
    rows = []
    for name, entry in policies.items():
        mean, interval = entry["mean"], entry.get("interval_95")
        cells = [form.format(mean[key]) for key, _, form in columns]
        if interval is not None:
            cells[0] += f" ±{interval['mean_latency']:.1f}"
        rows.append([name, _ratio(entry, base / mean["mean_latency"]), *cells])
    return header, rows


CLASS_COLUMNS = (
    ("num_requests", "requests", "{:.0f}"),
    ("mean_latency", "mean latency", "{:.1f}"),
    ("p99_latency", "p99", "{:.1f}"),
    ("mean_ttft", "mean TTFT", "{:.1f}"),
    ("p99_ttft", "p99 TTFT", "{:.1f}"),
    ("num_evictions", "evictions", "{:.0f}"),
    ("recomputed_share", "recomputed", "{:.1%}"),
    ("mean_overtaken", "overtaken", "{:.1f}"),
    ("max_overtaken", "at most", "{:.0f}"),
    ("attainment", "in time", "{:.0%}"),
)


def class_table(policies: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return header and rows of the table by class, a row for each class and policy; None where there are none."""
    entries = {name: entry["classes"] for name, entry in policies.items() if "classes" in entry}
    if not entries:
        return None
    first = next(iter(next(iter(entries.values())).values()))
    columns = [column for column in CLASS_COLUMNS if column[0] in first]
    rows = [
        [each or "(none)", name, *(form.format(figures[each][key]) for key, _, form in columns)]
        for each in next(iter(entries.values()))
        for name, figures in entries.items()
    ]
    return ["class", "policy", *(title for _, title, _ in columns)], rows


def print_tables(policies: Mapping[str, Any]) -> None:
    """Print the policy table, and below it the table by class, where there are classes."""
    print_table(*table(policies))
    if (classes := class_table(policies)) is not None:
        print()
        print_table(*classes)


def _ratio(entry: Mapping[str, Any], unpaired: float) -> str:
    paired = (entry.get("versus_fcfs") or {}).get("mean_latency")
    if paired is None or paired["ratio_interval_95"] is None:
        return f"{unpaired:.2f}x"
    return f"{paired['ratio']:.2f}x ±{paired['ratio_interval_95']:.2f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table: the first column to the left, the others to the right; a row is a line."""
    lines = [[on_one_line(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells))
