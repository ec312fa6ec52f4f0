"""Figures of a training run on its test split, as PNG."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipelines.files import atomic_file
from pipelines.train.results import TestResults
from predictor.bounds.calibration import required_prompts
from predictor.bounds.distribution import FloatArray
from predictor.bounds.metrics import coverage_by_prompt
from predictor.quality import MeasuredBounds, bounds_by_model, pool
from predictor.spec import PredictorSpec

BLUE, GREY, ORANGE = "#4c6ef5", "#868e96", "#e8590c"
LEVELS = np.linspace(0.04, 0.96, 24)
NUM_LENGTH_GROUPS = 8
MAX_POINTS = 4000
# Label, coverage and tightness of a group.
Bars = list[tuple[str, float, float]]


def write_plots(results: TestResults, spec: PredictorSpec, tau: float, out: Path) -> None:
    """Write `calibration.png`, `coverage_by_group.png`, `coverage_by_length.png` and `predicted_against_true.png`."""
    pooled = pool(results.predictor, results.table)
    max_length = spec.bins.max_length
    figures = {
        "calibration": calibration_curve(results, spec),
        "coverage_by_group": grouped_bars(by_group(pooled, max_length), tau, "data set, served model"),
        "coverage_by_length": grouped_bars(by_length(pooled, max_length), tau, "predicted median (tokens)"),
        "predicted_against_true": predicted_against_true(pooled),
    }
    for name, figure in figures.items():
        with atomic_file(out / f"{name}.png") as aside:
            figure.savefig(aside, format="png", dpi=120)


def calibration_curve(results: TestResults, spec: PredictorSpec) -> Any:
    """Return the share of answers that reach their bound against the share promised, a line per served model."""
    fewest = min(calibration.pit.num_prompts for calibration in spec.calibrations.values())
    levels = [float(level) for level in LEVELS if required_prompts(float(level)) <= fewest]
    figure, axes = _figure(4.6, 4.4)
    curves: dict[str, list[float]] = {}
    for level in levels:
        for model, part in bounds_by_model(spec, results.survivals, results.table, level).items():
            curves.setdefault(model, []).append(float(covered(part).mean()))
    for curve in curves.values():
        axes.plot([1 - level for level in levels], curve, color=BLUE, alpha=0.7, linewidth=1)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="promised share of answers above the bound", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    return figure


def by_group(pooled: MeasuredBounds, max_length: int) -> Bars:
    """Return coverage and tightness of each data set and each served model."""
    labels = {"data set": pooled.records.datasets, "model": pooled.records.models}
    bars: Bars = []
    for values in labels.values():
        for value in sorted(set(values) - {""}):
            bars.append((value, *_measures(pooled, np.flatnonzero(np.asarray(values) == value), max_length)))
    return bars or [("all", *_measures(pooled, np.arange(len(pooled.records)), max_length))]


def by_length(pooled: MeasuredBounds, max_length: int) -> Bars:
    """Return coverage and tightness of groups of equal size by predicted median."""
    order = np.argsort(pooled.medians, kind="stable")
    parts = [part for part in np.array_split(order, NUM_LENGTH_GROUPS) if len(part)]
    return [
        (f"{pooled.medians[part[0]]:.0f} to {pooled.medians[part[-1]]:.0f}", *_measures(pooled, part, max_length))
        for part in parts
    ]


def grouped_bars(bars: Bars, tau: float, label: str) -> Any:
    """Return bars of coverage and of tightness, a pair for each group."""
    figure, axes = _figure(6.4, 0.36 * len(bars) + 1.3)
    places = np.arange(len(bars))
    axes.barh(places - 0.19, [coverage for _, coverage, _ in bars], 0.36, color=BLUE, label="coverage")
    axes.barh(places + 0.19, [share for _, _, share in bars], 0.36, color="#bac8ff", label="tightness")
    axes.axvline(1 - tau, color=ORANGE, linewidth=1, label="target coverage")
    axes.set_yticks(places, [label for label, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="share; tightness is mean bound / mean length", ylabel=label, xlim=(0, 1.02))
    figure.legend(frameon=False, loc="outside upper right", ncols=3, fontsize=8)
    return figure


def predicted_against_true(pooled: MeasuredBounds) -> Any:
    """Return the predicted median and the lower bound against the first length drawn, of at most 4,000 prompts."""
    figure, axes = _figure(5.2, 4.6)
    step = max(1, len(pooled.records) // MAX_POINTS)
    true = np.asarray([draws[0] for draws in pooled.records.output_lens])[::step]
    axes.scatter(true, pooled.medians[::step], s=5, alpha=0.4, color=BLUE, label="predicted median", linewidths=0)
    axes.scatter(true, pooled.lower_bounds[::step], s=5, alpha=0.4, color=ORANGE, label="lower bound", linewidths=0)
    ends = [1, max(2, int(true.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="output length (tokens)", ylabel="predicted (tokens)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def covered(measured: MeasuredBounds) -> FloatArray:
    """Return the share of each prompt's draws that reach its bound, [N]."""
    return coverage_by_prompt(np.asarray(measured.lower_bounds, dtype=np.float64), measured.records.output_lens)


def _measures(pooled: MeasuredBounds, rows: Any, max_length: int) -> tuple[float, float]:
    lengths = [float(np.minimum(pooled.records.output_lens[row], max_length).mean()) for row in rows]
    return float(covered(pooled)[rows].mean()), float(pooled.lower_bounds[rows].mean() / np.mean(lengths))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes
