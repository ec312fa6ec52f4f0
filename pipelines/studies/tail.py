"""The frontier of mean against p99 latency: every policy, and amin-survival at several values of its knob."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from pipelines.files import atomic_file, write_json
from pipelines.simulate.resampling import resample
from pipelines.studies.beyond.sources import with_upper_bounds
from scheduler.kv_cache import KvCache
from scheduler.metrics import Figures, interval_over_seeds, mean_over_seeds, summarize
from scheduler.policies import POLICIES
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload, read_workload

TAILS = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 3.0)
OVERTAKES = (20, 50, 100, 200, 400)
LEAST_GAIN = 0.9
"""Of what is drawn."""
COLUMNS = {
    "gain": "mean, times faster than fcfs",
    "p99_to_fcfs": "p99 / fcfs",
    "worst_decile": "p99 / fcfs, worst tenth by length",
    "recomputed_share": "recomputed",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A policy with options on the frontier."""

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The policy, and its options where it has any."""
        return " ".join([self.policy, *(f"{name} {value:g}" for name, value in self.options.items())])


def points() -> list[Point]:
    """Return every policy, then amin-survival by its knob, by the bound on overtaking, and packed with a reserve."""
    careful = {"tail": 1.0, "reserve_sd": 1.2, "max_reserve": 0.15}
    by_knob = [Point("amin-survival", {"tail": tail}) for tail in TAILS]
    by_bound = [Point("amin-survival", {"max_overtakes": count}) for count in OVERTAKES]
    others = [Point(name) for name in POLICIES if name != "amin-survival"]
    return [*others, *by_knob, *by_bound, Point("amin-survival", careful)]


def compare_policies(
    base: Workload, worker: Worker, load: float, seeds: int, count: int, chosen: Sequence[Point]
) -> dict[str, Any]:
    """Return by name the mean of each figure over the seeds, paired with fcfs, and half of its 95 % interval."""
    runs: dict[str, list[Figures]] = {point.name: [] for point in chosen}
    for seed in tqdm(range(seeds), desc="seeds"):
        drawn = resample(base, count, load, worker.kv_cache.kv_budget, np.random.default_rng(seed))
        reference = summarize(simulate("fcfs", drawn, worker, seed), worker.kv_cache)
        for point in chosen:
            result = simulate(point.policy, drawn, worker, seed, **point.options)
            runs[point.name].append(_beside(summarize(result, worker.kv_cache), reference))
    return {
        name: {"mean": mean_over_seeds(each), "interval_95": interval_over_seeds(each)} for name, each in runs.items()
    }


def _beside(run: Mapping[str, Any], fcfs: Mapping[str, Any]) -> Figures:
    tenths = zip(run["p99_latency_by_length_decile"], fcfs["p99_latency_by_length_decile"], strict=True)
    return {
        "gain": fcfs["mean_latency"] / run["mean_latency"],
        "p99_to_fcfs": run["p99_latency"] / fcfs["p99_latency"],
        "worst_decile": max(mine / theirs for mine, theirs in tenths),
        "recomputed_share": run["recomputed_share"],
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the figures in Markdown, a row a policy."""
    lines = [f"| policy | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for name, entry in results.items():
        widths = entry["interval_95"] or dict.fromkeys(COLUMNS, 0.0)
        cells = [f"{entry['mean'][key]:.2f} ± {widths[key]:.2f}" for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw mean against p99, both as ratios to fcfs, the knob as a line; much slower than fcfs is left out."""
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    at = {name: (entry["mean"]["gain"], entry["mean"]["p99_to_fcfs"]) for name, entry in results.items()}
    lines: list[tuple[str, Sequence[float], str]] = [
        ("tail", TAILS, "tab:red"),
        ("max_overtakes", OVERTAKES, "tab:blue"),
    ]
    known: set[str] = set()
    for option, values, colour in lines:
        by_name = {Point("amin-survival", {option: value}).name: value for value in values}
        there = [name for name in by_name if name in at]
        axes.plot(*np.array([at[name] for name in there]).reshape(-1, 2).T, "o-", color=colour, label=f"by {option}")
        for name in there:
            axes.annotate(
                f"{by_name[name]:g}", at[name], textcoords="offset points", xytext=(-4, 7), color=colour, fontsize=8
            )
        known.update(there)
    others = [name for name in at if name not in known and at[name][0] >= LEAST_GAIN]
    for name in others:
        axes.plot(*at[name], "s", color="tab:gray", markersize=4)
        axes.annotate(
            name.replace(" reserve", "\nreserve"), at[name], textcoords="offset points", xytext=(5, -3), fontsize=8
        )
    axes.axhline(1.1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="mean latency, times faster than fcfs", ylabel="p99 latency / fcfs's (log)", yscale="log")
    axes.set_yticks(ticks := [1, 1.5, 2, 3, 5], [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.legend()
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every point; write OUT/tail.json, tail.md and tail.png."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.tail", description=__doc__)
    parser.add_argument("workload", type=Path, help="file of amin predict --workload, with its bins next to it")
    parser.add_argument("--kv-budget", type=int, default=16_492)
    parser.add_argument("--load", type=float, default=0.95)
    parser.add_argument("--requests", type=int, default=2000, help="of a run; drawn with replacement, by seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="evicted requests keep their tokens")
    parser.add_argument("--only", help="names of rows, separated by commas; default: all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    edges = np.asarray(json.loads(args.workload.with_name(args.workload.name + ".bins.json").read_text()))
    base = with_upper_bounds(read_workload(args.workload, edges=edges))
    worker = Worker(KvCache(args.kv_budget), resume=args.resume)
    wanted = None if args.only is None else [name.strip() for name in args.only.split(",")]
    chosen = [point for point in points() if wanted is None or point.name in wanted]
    if wanted is not None and len(chosen) < len(wanted):
        parser.error(f"--only: choose from {', '.join(point.name for point in points())}")
    results = compare_policies(base, worker, args.load, args.seeds, args.requests, chosen)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "tail.json", results)
    with atomic_file(args.out / "tail.md") as aside:
        aside.write_text(table(results))
    plot(results, args.out / "tail.png")
    print(table(results))


if __name__ == "__main__":
    main()
