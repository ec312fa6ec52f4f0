"""The check's tables: one line a cell and server, each of ours compared with vLLM's own on the same requests."""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.evaluate.endpoint.figures import compare, server_figures
from pipelines.evaluate.endpoint.measure import ServerRun
from pipelines.studies.vllm_check.cells import Measured
from pipelines.studies.vllm_check.servers import OWN
from scheduler.metrics import Targets

HEAD = ("cell", "server", "mean", "own / it", "p50", "p99", "it / own p99", "mean TTFT", "tokens/s", "iterations",
        "preemptions", "identical", "reached bound")  # fmt: skip
CLOCKS: dict[str, Callable[[Measured], ServerRun]] = {
    "seconds": lambda measured: measured.run,
    "processor seconds of the server": lambda measured: measured.in_processor_time,
}


def report(found: dict[str, Sequence[Measured]]) -> str:
    """Return the tables as Markdown, one by each clock; intervals are 95 % ones over the seeds."""
    parts = []
    for clock, timed in CLOCKS.items():
        lines = [row for cell, measured in found.items() for row in _rows(cell, measured, timed)]
        head = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
        parts.append("\n".join([f"In {clock}:", "", *head, *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def _rows(cell: str, measured: Sequence[Measured], timed: Callable[[Measured], ServerRun]) -> list[list[str]]:
    names = sorted({each.run.server for each in measured}, key=lambda name: (name != OWN, name))
    by_server = {name: [each for each in measured if each.run.server == name] for name in names}
    own = [timed(each) for each in by_server.get(OWN, [])]
    return [_row(cell, name, mine, [timed(each) for each in mine], own) for name, mine in by_server.items()]


def _row(
    cell: str, name: str, mine: Sequence[Measured], runs: Sequence[ServerRun], own: Sequence[ServerRun]
) -> list[str]:
    figures = server_figures(runs, 0, Targets())["mean"]
    compared = compare(own, runs, 0, Targets()) if name != OWN else None
    faster = tail = identical = ""
    if compared is not None:
        faster = _ratio(compared["mean_latency"])
        tail = f"{1 / compared['p99_latency']['ratio']:.2f}"
        identical = f"{compared['num_identical']} of {compared['num_compared']}"
    covered, missed = _total(mine, "covered"), _total(mine, "missed")
    return [
        cell,
        name if name != OWN else "vLLM's own",
        f"{figures['mean_latency']:.1f}",
        faster,
        f"{figures['p50_latency']:.1f}",
        f"{figures['p99_latency']:.1f}",
        tail,
        f"{figures['mean_ttft']:.1f}",
        f"{figures['throughput']:.1f}",
        *(f"{_total(mine, key) / len(mine):.0f}" for key in ("iterations", "preemptions")),
        identical,
        f"{covered / (covered + missed):.2f}" if covered + missed else "",
    ]


def _total(measured: Sequence[Measured], key: str) -> float:
    return sum(each.counts.get(key, 0.0) for each in measured)


def _ratio(entry: dict[str, Any]) -> str:
    mean, half = entry["ratio"], entry["ratio_interval_95"]
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"
