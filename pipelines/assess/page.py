"""`assess.html`: the answer on one page that opens from disk."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from pipelines.assess.verdict import HEADER, Setting, rows
from pipelines.files import atomic_file

COLOURS = ("#868e96", "#4c6ef5", "#f08c00", "#2b8a3e")


def write_page(path: Path, facts: Mapping[str, Any], settings: Sequence[Setting], names: Mapping[str, str]) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        facts: `title`, `verdicts` (a list of texts), `pays`, and `notes` (pairs of a term and what it is).
        settings: The loads that were assessed.
        names: What the tables call the policies.
    """
    environment = Environment(
        loader=PackageLoader("pipelines.assess", "."), autoescape=select_autoescape(["html", "j2"])
    )
    sections = [
        {"title": each.name, "rows": rows(each, names), "image": _encoded(_latencies(each, names))} for each in settings
    ]
    page = environment.get_template("assess.html.j2").render(facts=facts, header=HEADER, sections=sections)
    with atomic_file(path) as aside:
        aside.write_text(page, encoding="utf-8")


def _latencies(setting: Setting, names: Mapping[str, str]) -> bytes:
    """Return a PNG of the share of requests that end within a time, by policy."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (name, compared) in zip(COLOURS, setting.compared.items(), strict=False):
        shares = np.linspace(0, 1, len(compared.latencies) + 1)[1:]
        style = "--" if name.startswith("hindsight") else "-"
        axes.plot(np.maximum(compared.latencies, 1e-3), shares, style, color=colour, label=names.get(name, name))
    axes.set_xscale("log")
    axes.set_xlabel("latency in seconds")
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()
