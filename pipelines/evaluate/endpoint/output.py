"""What an evaluation of servers writes and prints: results, a table of the requests, a report."""

import base64
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, select_autoescape

from pipelines import plots
from pipelines.collect.asking import Chat
from pipelines.evaluate.endpoint.figures import answered, as_policy_run, compare, server_figures
from pipelines.evaluate.endpoint.measure import Server, ServerRun
from pipelines.evaluate.endpoint.words import COLUMNS_HELP, notes, summary, table
from pipelines.files import atomic_file, atomic_files, write_json
from pipelines.results import print_table
from pipelines.settings.evaluate import EvaluateSettings
from scheduler.metrics import Targets


def num_warm_up(settings: EvaluateSettings, num_requests: int) -> int:
    """Return how many requests, the first to arrive, the figures leave out."""
    return 0 if settings.arrivals == "all-at-once" else int(settings.warm_up * num_requests)


def write_all(
    settings: EvaluateSettings,
    servers: Sequence[Server],
    chats: Sequence[Chat],
    runs: Sequence[ServerRun],
    missing: Sequence[str],
) -> None:
    """Write results and report of the finished runs, at least one, marked as partial where some are `missing`."""
    left_out = num_warm_up(settings, len(chats))
    results = evaluation_results(settings, servers, runs, left_out)
    results |= {"partial": bool(missing), "missing_runs": list(missing)}
    with atomic_files(settings.out, last="results.json") as new:
        with (new / "requests.parquet").open("wb") as stream:
            rows = [{"server": run.server, "seed": run.seed, **asdict(sent)} for run in runs for sent in run.requests]
            pq.write_table(pa.Table.from_pylist(rows), stream)
        write_json(new / "results.json", results)
    _write_report(settings, results, runs, left_out)
    print_table(*table(results))
    for line in (summary(results), *notes(results)):
        print(line)
    if missing:
        print(f"PARTIAL: {len(missing)} runs are missing; --resume continues")
    print(f"report: {settings.out / 'report.html'}")


def evaluation_results(
    settings: EvaluateSettings, servers: Sequence[Server], runs: Sequence[ServerRun], left_out: int
) -> dict[str, Any]:
    """Return what `results.json` holds of the runs that have finished."""
    targets = Targets(settings.servers.ttft_target, settings.servers.tpot_target)
    by_server = {server: [run for run in runs if run.server == server.name] for server in servers}
    entries = {
        server.name: {"endpoint": server.url, "served_model": server.model, **server_figures(made, left_out, targets)}
        for server, made in by_server.items()
        if made
    }
    a, *rest = by_server.values()
    return {
        "workload": {
            "file": settings.prompts.name,
            "num_requests": len(runs[0].requests),
            "num_warm_up": left_out,
            "arrivals": settings.arrivals,
            "max_new_tokens": settings.max_new_tokens,
            "sampling": settings.sampling.given,
        },
        "targets": asdict(targets),
        "servers": entries,
        "b_over_a": compare(a, rest[0], left_out, targets) if rest else None,
        "environment": {
            "command": shlex.join(["amin", *sys.argv[1:]]),
            "client": f"{os.cpu_count()} CPU cores, {platform.platform()}",
            "python": platform.python_version(),
            "aiohttp": version("aiohttp"),
        },
    }


def _write_report(
    settings: EvaluateSettings, results: Mapping[str, Any], runs: Sequence[ServerRun], left_out: int
) -> None:
    shown = [as_policy_run(run, answered(run), left_out) for run in runs]
    figures = {
        "latency": ("Latency by server", plots.latency_bars(shown, "s")),
        "latency_cdf": ("Share of requests done within a latency", plots.latency_cdf(shown, "s")),
        "in_flight": ("Requests in flight, first seed", plots.over_time(shown, "num_running", "requests", "s")),
    }
    for name, (_, png) in figures.items():
        with atomic_file(settings.out / f"{name}.png") as aside:
            aside.write_bytes(png)
    header, rows = table(results)
    environment = Environment(
        loader=PackageLoader("pipelines.evaluate.endpoint", "."), autoescape=select_autoescape(["html", "j2"])
    )
    page = environment.get_template("report.html.j2").render(
        results=results,
        summary=summary(results),
        notes=notes(results),
        header=header,
        rows=rows,
        columns_help=COLUMNS_HELP,
        images=[(title, base64.b64encode(png).decode()) for title, png in figures.values()],
    )
    with atomic_file(settings.out / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")
