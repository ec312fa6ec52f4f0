"""`report.html`: one file that opens from disk; the figures also lie beside it as PNG."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from pipelines import plots
from pipelines.files import atomic_file
from pipelines.results import PolicyRun, table


def summary(policies: Mapping[str, Any]) -> str:
    """Return one plain sentence: what amin gained over fcfs and fcfs-reserve, and how far hindsight is."""
    mean = {name: entry["mean"]["mean_latency"] for name, entry in policies.items()}
    if "amin" not in mean:
        return f"Lowest mean latency: {min(mean, key=lambda name: mean[name])}."
    parts = [
        f"{_factor(mean[name] / mean['amin'])} than {name}" for name in ("fcfs", "fcfs-reserve", "amax") if name in mean
    ]
    text = f"Amin with this predictor had a mean latency {', '.join(parts)}" if parts else "Amin was run"
    if "hindsight" in mean:
        gap = 1 - mean["hindsight"] / mean["amin"]
        text += f"; hindsight, which knows every length, was {abs(gap):.0%} {'below' if gap > 0 else 'above'} Amin"
    return text + "."


def _factor(ratio: float) -> str:
    """Return how a mean latency compares, `ratio` being the other policy's over ours."""
    if abs(ratio - 1) < 0.005:
        return "no different"
    return f"{ratio:.2f}x lower" if ratio > 1 else f"{1 / ratio:.2f}x HIGHER"


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
        output_lens: Reference lengths by position in the prompts, if there are any.
    """
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
    for name, (_, png) in figures.items():
        with atomic_file(out / f"{name}.png") as aside:
            aside.write_bytes(png)
    images = [(title, base64.b64encode(png).decode()) for title, png in figures.values()]
    header, rows = table(results["policies"])
    environment = Environment(loader=PackageLoader("pipelines", "."), autoescape=select_autoescape(["html", "j2"]))
    page = environment.get_template("report.html.j2").render(
        results=results, summary=summary(results["policies"]), header=header, rows=rows, images=images
    )
    with atomic_file(out / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")
