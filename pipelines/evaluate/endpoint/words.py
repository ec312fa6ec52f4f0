"""What the terminal and the report say of servers: a table, a sentence, and what a reader must know with it."""

from collections.abc import Mapping
from typing import Any

from pipelines.evaluate.report import factor

COLUMNS = (
    ("num_requests", "requests", "{:.0f}"),
    ("num_failures", "failed", "{:.0f}"),
    ("mean_latency", "mean latency", "{:.2f}"),
    ("p50_latency", "p50", "{:.2f}"),
    ("p99_latency", "p99", "{:.2f}"),
    ("mean_ttft", "mean TTFT", "{:.2f}"),
    ("p99_ttft", "p99 TTFT", "{:.2f}"),
    ("mean_tpot", "TPOT", "{:.4f}"),
    ("requests_per_second", "requests/s", "{:.2f}"),
    ("throughput", "tokens/s", "{:.1f}"),
)
IN_TIME = (("attainment", "in time", "{:.0%}"), ("goodput", "goodput/s", "{:.2f}"))
COLUMNS_HELP = (
    "Seconds, from when a request was due. TTFT is the time to the first token, TPOT the time per token after it. "
    "Means over seeds; ± is half a 95 % interval. Failed requests are counted and have no part in the other columns; "
    "goodput counts only those that keep the targets."
)
LATE = 0.05
"""Seconds that this client may be late before the reader is told."""


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table, a row a server."""
    servers = results["servers"]
    columns = [*COLUMNS, *(IN_TIME if all("goodput" in each["mean"] for each in servers.values()) else ())]
    rows = []
    for name, entry in servers.items():
        cells = [form.format(entry["mean"][key]) for key, _, form in columns]
        if entry["interval_95"] is not None:
            cells[2] += f" ±{entry['interval_95']['mean_latency']:.2f}"
        rows.append([name, *cells])
    return ["server", *(title for _, title, _ in columns)], rows


def summary(results: Mapping[str, Any]) -> str:
    """Return how the second server compares with the first, or what the only one did."""
    servers, compared = results["servers"], results["b_over_a"]
    if compared is None:
        name, entry = next(iter(servers.items()))
        mean = entry["mean"]
        return (
            f"{name} is {entry['endpoint']}: mean latency {mean['mean_latency']:.2f} s, "
            f"{mean['throughput']:.1f} tokens a second."
        )
    parts = [
        f"{factor(compared[key]['ratio'], compared[key]['ratio_interval_95'])} a in {title}"
        for key, title in (("mean_latency", "mean latency"), ("p99_latency", "p99"), ("mean_ttft", "mean TTFT"))
    ]
    addresses = ", ".join(f"{name} is {entry['endpoint']}" for name, entry in servers.items())
    failed = {name: entry["mean"]["num_failures"] for name, entry in servers.items()}
    warned = (
        ""
        if not any(failed.values())
        else (
            f"REQUESTS FAILED ({', '.join(f'{name} {count:g}' for name, count in failed.items())} of "
            f"{servers['a']['mean']['num_requests']:g} a run), and those that fail leave room for the others: "
        )
    )
    return f"{warned}b was {'; '.join(parts)} ({addresses})."


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know with the table."""
    servers, compared = results["servers"], results["b_over_a"]
    lines = [line for name, entry in servers.items() for line in _failures(name, entry)]
    if compared is not None:
        num_seeds = len(servers["b"]["seeds"])
        lines.append(
            f"Both got the same requests at the same times with the same seeds of sampling, one server after the other "
            f"in each of {num_seeds} seed(s); the one that began alternated. Ratios are over the "
            f"{compared['num_compared']} requests that both answered."
        )
        if num_seeds == 1:
            lines.append("One seed has no interval: the ratios may be chance.")
        lines.append(
            f"{compared['num_identical']} of {compared['num_compared']} answers were identical (text and tokens)."
        )
    lines += [_late(name, entry["mean"]["p99_send_delay"]) for name, entry in servers.items()]
    return [line for line in lines if line]


def _failures(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return the reasons of a server's failed requests, the most frequent ones first."""
    shown = list(entry["errors"].items())[:5]
    lines = [f"{name}: {count} requests FAILED: {reason}" for reason, count in shown]
    if len(entry["errors"]) > len(shown):
        lines.append(f"{name}: and {len(entry['errors']) - len(shown)} other reasons (results.json)")
    return lines


def _late(name: str, delay: float) -> str:
    if delay <= LATE:
        return ""
    return (
        f"{name}: this client sent one request in a hundred {delay:.2f} s late or later: it was busy, and latencies "
        "contain that."
    )
