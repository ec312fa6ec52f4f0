"""`report.html`: one file that opens from disk; the figures are also next to it as PNG."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from pipelines import plots
from pipelines.files import atomic_file
from pipelines.results import PolicyRun, class_table, table

OURS = ("amin", "amin-survival")


def write_report(
    out: Path,
    results: Mapping[str, Any],
    runs: Sequence[PolicyRun],
    bounds: Sequence[int],
    output_lens: Sequence[int] | None,
) -> None:
    """Write `out/report.html` and its figures.

    Args:
        out: Folder.
        results: As in `results.json`.
        runs: What happened.
        bounds: Lower bounds by position in the prompts.
        output_lens: Lengths by position in the prompts, if there are any.
    """
    figures = _figures(results, runs, bounds, output_lens)
    for name, (_, png) in figures.items():
        with atomic_file(out / f"{name}.png") as aside:
            aside.write_bytes(png)
    images = [(title, base64.b64encode(png).decode()) for title, png in figures.values()]
    header, rows = table(results["policies"])
    environment = Environment(
        loader=PackageLoader("pipelines.evaluate", "."), autoescape=select_autoescape(["html", "j2"])
    )
    page = environment.get_template("report.html.j2").render(
        results=results,
        summary=summary(results["policies"]),
        notes=notes(results),
        header=header,
        rows=rows,
        classes=class_table(results["policies"]),
        shares=_shares(results["policies"]),
        images=images,
    )
    with atomic_file(out / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")


def _figures(
    results: Mapping[str, Any], runs: Sequence[PolicyRun], bounds: Sequence[int], output_lens: Sequence[int] | None
) -> dict[str, tuple[str, bytes]]:
    """Return title and PNG by the name of the file."""
    unit = "s"
    blocks = results["kv_budget"] // results["block_size"]
    figures = {
        "latency": ("Latency by policy", plots.latency_bars(runs, unit)),
        "latency_cdf": ("Share of requests done within a latency", plots.latency_cdf(runs, unit)),
        "queue": ("Requests waiting", plots.over_time(runs, "num_waiting", "requests waiting", unit)),
        "kv_use": ("KV cache in use", plots.over_time(runs, "kv_blocks", "share of blocks", unit, 1 / blocks)),
    }
    if output_lens is not None:
        figures["bounds"] = ("Bounds against lengths", plots.bounds_against_lengths(bounds, output_lens))
    if results.get("replay"):
        figures["replay"] = ("Simulated against measured", plots.simulated_against_measured(results["replay"], unit))
    if results.get("sweep"):
        figures["map"] = ("When it pays", plots.sweep_map(results["sweep"]))
    return figures


def _shares(policies: Mapping[str, Any]) -> list[list[str]]:
    """Return by policy the shares of wall time spent deciding and predicting, and how predictions came."""
    rows = []
    for name, entry in policies.items():
        mean = entry["mean"]
        if "scheduling_share" in mean:
            shares = [f"{mean[key]:.2%}" for key in ("scheduling_share", "prediction_share")]
            rows.append(
                [name, *shares, f"{mean['mean_prediction_delay'] * 1e3:.0f} ms", f"{mean['fallback_share']:.1%}"]
            )
    return rows


def summary(policies: Mapping[str, Any]) -> str:
    """Return what each of our policies gained over the others, and how far hindsight is; a sentence each."""
    sentences = [_gain(name, policies) for name in OURS if name in policies]
    if not sentences:
        mean = {name: entry["mean"]["mean_latency"] for name, entry in policies.items()}
        return f"Lowest mean latency: {min(mean, key=lambda name: mean[name])}."
    return " ".join(sentences)


def _gain(ours: str, policies: Mapping[str, Any]) -> str:
    mean = {name: entry["mean"]["mean_latency"] for name, entry in policies.items()}
    parts = []
    for name in ("fcfs", "fcfs-reserve", "amax"):
        if name in mean:
            width = _width(policies[ours]) if name == "fcfs" else None
            parts.append(f"{factor(_ratio(name, ours, policies), width)} {name}")
    title = ours.capitalize()
    text = f"{title} with this predictor was {', '.join(parts)} in mean latency" if parts else f"{title} was run"
    if "hindsight" in mean:
        gap = 1 - mean["hindsight"] / mean[ours]
        text += f"; hindsight, which knows every length, took {abs(gap):.0%} {'less' if gap > 0 else 'more'}"
    return text + "."


def _ratio(name: str, ours: str, policies: Mapping[str, Any]) -> float:
    """Return the mean latency of another policy over ours: of fcfs the mean over pairs, as the table has it."""
    paired = (policies[ours].get("versus_fcfs") or {}).get("mean_latency") if name == "fcfs" else None
    if paired:
        return float(paired["ratio"])
    return float(policies[name]["mean"]["mean_latency"] / policies[ours]["mean"]["mean_latency"])


def _width(entry: Mapping[str, Any]) -> float | None:
    paired = (entry.get("versus_fcfs") or {}).get("mean_latency")
    return None if paired is None else paired["ratio_interval_95"]


def factor(ratio: float, width: float | None = None) -> str:
    """Return how ours compares: `ratio` is the other mean latency over ours, `width` half its interval."""
    span = "" if width is None else f" (95 % interval {ratio - width:.2f} to {ratio + width:.2f})"
    if abs(ratio - 1) < 0.005:
        return f"as fast{span} as"
    if width is not None and abs(ratio - 1) <= width:
        return f"not measurably {'faster' if ratio > 1 else 'slower'}{span} than"
    return f"{ratio:.2f}x faster{span} than" if ratio > 1 else f"{1 / ratio:.2f}x SLOWER{span} than"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know with the summary: where it does not help, and what the figures rest on."""
    mean = {name: entry["mean"] for name, entry in results["policies"].items()}
    lines = []
    if "fcfs" in mean:
        waits = mean["fcfs"]["mean_queueing_delay"] / mean["fcfs"]["mean_latency"]
        lines.append(
            f"Under fcfs a request waited {waits:.0%} of its latency for its first admission. A policy can only win "
            "that back: where nothing waits, all policies are the same."
        )
        lines += [_tail(name, mean) for name in OURS if name in mean]
        if "engine-fifo" in mean:
            ratio = mean["engine-fifo"]["mean_latency"] / mean["fcfs"]["mean_latency"]
            lines.append(
                f"The engine's own scheduler, without our loop, had {ratio:.2f} times the mean latency of our fcfs: "
                "this says whether fcfs is a fair opponent and what the loop costs."
            )
    bounds = results["bounds"]
    if bounds.get("tightness", 1.0) < 0.3:
        lines.append(
            f"The bounds are loose (tightness {bounds['tightness']:.2f}): the predictor sees little of what decides "
            "the length here, and Amin then admits much like fcfs."
        )
    busy = {name: mean[name].get("scheduling_share", 0) + mean[name].get("prediction_share", 0) for name in mean}
    most = max(busy, key=lambda name: busy[name])
    lines.append(f"Deciding and predicting took at most {busy[most]:.1%} of the wall time ({most}).")
    return lines


def _tail(ours: str, mean: Mapping[str, Any]) -> str:
    ratio = mean[ours]["p99_latency"] / mean["fcfs"]["p99_latency"]
    text = f"The slowest hundredth (p99) of {ours} took {ratio:.2f} times what it took under fcfs"
    return text + (": short requests overtook long ones." if ratio > 1.02 else ".")
