"""A figure of how good a probe is while an answer grows, as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"probe": "#4c6ef5", "conditioned": "#868e96", "both": "#e8590c"}
LABELS = {"probe": "probe", "conditioned": "prompt alone, conditioned on t", "both": "both together"}
PANELS = (
    ("kendall_tau", "tau-b of the remaining length"),
    ("pinball_loss", "pinball loss (tokens)"),
    ("coverage", "coverage"),
    ("tightness", "tightness"),
)


def write_plot(measures: Mapping[str, Any], tau: float, path: Path) -> None:
    """Write one panel a measure, against the tokens that are out, to a PNG of a file that does not exist yet."""
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2).ravel(), PANELS, strict=True):
        for name, part in measures.items():
            rows = part["by_generated"]
            places = [1 + int(t) for t in rows]
            axes.plot(places, [row[key] for row in rows.values()], "o-", color=COLOURS[name], markersize=3, linewidth=1)
        if key == "coverage":
            axes.axhline(1 - tau, color="#868e96", linewidth=1, linestyle="--")
            axes.set(ylim=(0.5, 1.02))
        axes.set(xscale="log", xlabel="tokens out (+ 1)", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    handles = [axes.plot([], [], "o-", color=COLOURS[name], label=LABELS[name])[0] for name in measures]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, format="png", dpi=120)
