"""Figures of the evaluation report, as PNG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipelines.gains import is_nil
from pipelines.results import PolicyRun
from scheduler.metrics import after_warm_up

COLOURS = (
    "#4c6ef5", "#868e96", "#e8590c", "#2b8a3e", "#ae3ec9", "#c2255c", "#0b7285",
    "#5f3dc4", "#f08c00", "#82c91e", "#212529", "#15aabf", "#a9744f", "#f783ac",
)  # fmt: skip


def _figure(width: float = 7.2, height: float = 3.4) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _by_policy(runs: Sequence[PolicyRun]) -> dict[str, list[PolicyRun]]:
    grouped: dict[str, list[PolicyRun]] = {}
    for run in runs:
        grouped.setdefault(run.policy, []).append(run)
    return grouped


def _latency(runs: Sequence[PolicyRun]) -> Any:
    """Return the latency of every request of all runs but those of the warm-up."""
    results = [after_warm_up(run.result, run.num_warm_up) for run in runs]
    return np.concatenate([result.finish_time - result.arrival_time for result in results])


def latency_bars(runs: Sequence[PolicyRun], unit: str) -> bytes:
    """Return bars of mean and 99th percentile latency per policy, over all requests and seeds."""
    grouped = _by_policy(runs)
    latency = {name: _latency(group) for name, group in grouped.items()}
    figure, axes = _figure(height=0.45 * len(latency) + 1.2)
    places = np.arange(len(latency))
    means, tails = [v.mean() for v in latency.values()], [np.quantile(v, 0.99) for v in latency.values()]
    axes.barh(places - 0.2, means, 0.38, color=COLOURS[0], label="mean")
    axes.barh(places + 0.2, tails, 0.38, color="#bac8ff", label="p99")
    for place, mean, tail in zip(places, means, tails, strict=True):
        axes.text(mean, place - 0.2, f" {mean:.1f}", va="center", fontsize=8)
        axes.text(tail, place + 0.2, f" {tail:.1f}", va="center", fontsize=8)
    axes.set_yticks(places, list(latency))
    axes.invert_yaxis()
    axes.set_xlabel(f"end-to-end latency ({unit})")
    axes.margins(x=0.1)
    figure.legend(frameon=False, loc="outside upper right", ncols=2, fontsize=8)
    return _png(figure)


def latency_cdf(runs: Sequence[PolicyRun], unit: str) -> bytes:
    """Return the share of requests that have ended within a latency, per policy."""
    figure, axes = _figure()
    for colour, (name, group) in zip(cycle(COLOURS), _by_policy(runs).items(), strict=False):
        latency = np.sort(_latency(group))
        axes.step(latency, np.arange(1, len(latency) + 1) / len(latency), color=colour, label=name, where="post")
    axes.set_xlabel(f"end-to-end latency ({unit})")
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def over_time(runs: Sequence[PolicyRun], column: str, label: str, unit: str, scale: float = 1.0) -> bytes:
    """Return a column of the timeline against time, first seed of each policy."""
    figure, axes = _figure()
    for colour, (name, group) in zip(cycle(COLOURS), _by_policy(runs).items(), strict=False):
        timeline = group[0].result.timeline
        values = np.array(getattr(timeline, column), dtype=float) * scale
        keep = np.unique(np.linspace(0, len(values) - 1, 600).astype(int))
        axes.plot(np.array(timeline.end)[keep], values[keep], color=colour, label=name, linewidth=1)
    axes.set_xlabel(f"time ({unit})")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=4, fontsize=8)
    return _png(figure)


def bounds_against_lengths(bounds: Sequence[int], output_lens: Sequence[int]) -> bytes:
    """Return each request's lower bound against its output length; points above the diagonal break their bound."""
    figure, axes = _figure(5.2, 4.2)
    held = np.array(bounds) <= np.array(output_lens)
    for mask, colour, label in ((held, COLOURS[3], "bound holds"), (~held, COLOURS[2], "bound broken")):
        axes.scatter(np.array(output_lens)[mask], np.array(bounds)[mask], s=9, alpha=0.6, color=colour, label=label)
    edges = [min(*bounds, *output_lens), max(*bounds, *output_lens)]
    axes.plot(edges, edges, color="#495057", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="output length (tokens)", ylabel="predicted lower bound (tokens)")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def simulated_against_measured(replay: Mapping[str, Any], unit: str) -> bytes:
    """Return measured and simulated mean latency per policy, and how far they are apart."""
    figure, axes = _figure(height=0.45 * len(replay) + 1.2)
    places = np.arange(len(replay))
    for offset, key, colour in ((-0.2, "measured", COLOURS[0]), (0.2, "simulated", "#bac8ff")):
        axes.barh(places + offset, [e[f"{key}_mean_latency"] for e in replay.values()], 0.38, color=colour, label=key)
    for place, entry in zip(places, replay.values(), strict=True):
        simulated = entry["simulated_mean_latency"]
        axes.text(simulated, place + 0.2, f" {entry['simulated_over_measured'] - 1:+.0%}", va="center", fontsize=8)
    axes.set_yticks(places, list(replay))
    axes.invert_yaxis()
    axes.set_xlabel(f"mean latency ({unit})")
    axes.margins(x=0.1)
    figure.legend(frameon=False, loc="outside upper right", ncols=2, fontsize=8)
    return _png(figure)


def cost_per_request(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the simulator's time per request against the number of requests that wait from the start, per policy."""
    figure, axes = _figure()
    for colour, name in zip(COLOURS, dict.fromkeys(row["policy"] for row in rows), strict=False):
        points = [(row["requests"], row["us"]) for row in rows if row["policy"] == name]
        axes.plot(*zip(*points, strict=True), color=colour, label=name, marker="o", markersize=4)
    axes.set(xscale="log", xlabel="requests waiting at the start", ylabel="microseconds per request")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def gain_map(cells: Sequence[Mapping[str, Any]], policy: str) -> bytes:
    """Return the gain over fcfs by load and noise: blue where it pays, red where it costs, hatched where neither."""
    figure, axes = _map(cells, "load", "noise")
    axes.set(xlabel="noise of the predictions (0 = perfect)", ylabel="load")
    axes.set_title(f"mean latency: fcfs over {policy} (hatched: no difference)", fontsize=9)
    return _png(figure)


def sweep_map(sweep: Mapping[str, Any]) -> bytes:
    """Return the gain over fcfs by arrival rate and KV cache, with the cells that were measured."""
    figure, axes = _map(sweep["cells"], "rate", "kv_blocks")
    axes.set(xlabel=f"KV cache (blocks of {sweep['block_size']} tokens)", ylabel="requests per second")
    title = f"mean latency: fcfs over {sweep['policy']}; simulated with the fitted cost model (hatched: no difference)"
    axes.set_title(f"{title}\nruns: the engine, each prompt once; replayed: the same runs simulated", fontsize=8)
    return _png(figure)


def _map(cells: Sequence[Mapping[str, Any]], down: str, across: str) -> tuple[Any, Any]:
    """Return a figure of gains in mean latency by two fields of the cells, which are in order of `down`."""
    rows, columns = (list(dict.fromkeys(cell[key] for cell in cells)) for key in (down, across))
    gains = np.array([cell["gain"]["mean_latency"] for cell in cells]).reshape(len(rows), len(columns))
    figure, axes = _figure(1.1 * len(columns) + 2.2, 0.55 * len(rows) + 1.6)
    axes.grid(visible=False)
    most = max(0.05, float(np.abs(np.log(gains)).max()))
    axes.imshow(np.log(gains), cmap="RdBu", vmin=-most, vmax=most, aspect="auto", origin="lower")
    for index, cell in enumerate(cells):
        row, column = divmod(index, len(columns))
        if is_nil(cell):
            axes.add_patch(_hatched(column - 0.5, row - 0.5))
        colour = "white" if abs(np.log(gains[row, column])) > 0.6 * most else "black"
        text, size = f"{gains[row, column]:.2f}x", 9
        if "measured_gain" in cell:
            text += f"\nruns {cell['measured_gain']:.2f}x\nreplayed {cell['replayed_gain']:.2f}x"
            size = 7
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    return figure, axes


def _hatched(left: float, bottom: float) -> Any:
    return Rectangle((left, bottom), 1, 1, facecolor="#f1f3f5", edgecolor="#adb5bd", hatch="//", linewidth=0)
