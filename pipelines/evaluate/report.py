"""`report.html`: one file that opens from disk; the figures are also next to it as PNG."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from pipelines import plots
from pipelines.evaluate.report_text import notes, summary
from pipelines.files import atomic_file
from pipelines.results import PolicyRun, table


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
