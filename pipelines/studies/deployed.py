"""Policies on deployments that exist: long answers and chats, all at once and at a load; replicas behind a router.

python -m pipelines.studies.deployed --out deployed
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.files import atomic_file, write_json
from pipelines.simulate.resampling import seconds_per_iteration
from pipelines.simulate.sources import MADE_UP
from pipelines.simulate.workloads import arriving_at, served_tokens, with_predictions, with_times
from pipelines.studies.beyond.tables import markdown
from scheduler.deployments.deployment import read_deployment
from scheduler.deployments.workers import worker_of
from scheduler.metrics import interval_over_seeds, mean_over_seeds, summarize
from scheduler.simulation.replicas import ROUTINGS, simulate_replicas
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

POLICIES = ("fcfs", "amin", "sjf", "svf", "amin-survival", "hindsight-svf")
SKILL = 0.5
"""Share of the variance of log length that the predictions explain."""
KEPT = ("mean_latency", "p99_latency", "mean_ttft", "recomputed_share", "mean_kv_utilization", "throughput")


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests on a deployment; `load` None means all at once."""

    deployment: str
    source: str
    count: int
    load: float | None
    policies: Sequence[str] = POLICIES
    replicas: int = 1
    routing: str = "round-robin"
    prefix_caching: bool = True

    @property
    def name(self) -> str:
        """What tells it from the others."""
        arrivals = "at once" if self.load is None else f"load {self.load:g}"
        routed = "" if self.replicas == 1 else f", {self.replicas} replicas, {self.routing}"
        cached = "" if self.prefix_caching else ", no prefix caching"
        return f"{self.source}:{self.count} on {self.deployment}, {arrivals}{routed}{cached}"

    @property
    def group(self) -> str:
        """What it is there to show."""
        if self.replicas > 1:
            return "replicas"
        if not self.prefix_caching:
            return "no-caching"
        return "chats" if self.source.startswith("lmsys") else "long"


def cells() -> Iterator[Cell]:
    """Yield the cells: where it matters first, then where it does not, without a prefix cache, then replicas."""
    for deployment in ("llama-3.1-8b-h100", "qwen3-32b-fp8-h100"):
        for load in (0.9, None):
            yield Cell(deployment, "reasoning", 2000, load)
    yield Cell("llama-3.1-8b-h100", "reasoning-mixed", 2000, 0.9)
    for deployment, load in (("llama-3.1-8b-h100", 0.8), ("llama-3.1-8b-h100", 1.1), ("qwen3-32b-h100", 0.9)):
        yield Cell(deployment, "lmsys-shaped", 8000, load)
    for deployment in ("llama-3.1-8b-h100", "qwen3-32b-fp8-h100"):
        for load in (0.9, None):
            yield Cell(deployment, "reasoning", 2000, load, ("fcfs", "sjf", "amin-survival"), prefix_caching=False)
    behind_a_router = (
        ("llama-3.1-8b-h100", "lmsys-shaped", 8000),
        ("llama-3.1-8b-h100", "reasoning", 3000),
        ("qwen3-32b-h100", "lmsys-shaped", 8000),
    )
    for deployment, source, count in behind_a_router:
        for routing in ROUTINGS:
            yield Cell(deployment, source, count, 0.9, ("fcfs", "amin-survival"), 4, routing)


def requests(cell: Cell, worker: Worker, seed: int) -> Workload:
    """Return the requests of a seed, with arrivals in seconds and predictions of the skill."""
    rng = np.random.default_rng(seed)
    prompts, lens = MADE_UP[cell.source](cell.count, rng)
    cap = worker.kv_cache.kv_budget - prompts
    base = workload_from_columns([f"r{i}" for i in range(cell.count)], prompts, lens, np.zeros(cell.count), cap)
    if cell.load is not None:
        each = seconds_per_iteration(worker, base)
        timed = arriving_at(base, "poisson", cell.load, served_tokens(base, worker, cell.replicas), rng)
        base = with_times(timed, [request.arrival_time * each for request in timed.requests])
    return with_predictions(base, f"skill:{SKILL}", rng)


def run_cell(cell: Cell, seeds: int) -> dict[str, Any]:
    """Return by policy the means of its figures, and its gains over fcfs on the same requests with their interval."""
    worker = replace(worker_of(read_deployment(cell.deployment)), prefix_caching=cell.prefix_caching)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cell.policies}
    for seed in range(seeds):
        workload = requests(cell, worker, seed)
        for name in cell.policies:
            result = simulate_replicas(name, workload, worker, seed, replicas=cell.replicas, routing=cell.routing)
            figures = summarize(result, worker.kv_cache)
            runs[name].append({key: figures[key] for key in KEPT})
    found: dict[str, Any] = {}
    for name, each in runs.items():
        pairs = zip(runs["fcfs"], each, strict=True)
        ratios = [
            {"gain": f["mean_latency"] / r["mean_latency"], "p99": r["p99_latency"] / f["p99_latency"]}
            for f, r in pairs
        ]
        found[name] = {"mean": mean_over_seeds(each), "ratio": mean_over_seeds(ratios)}
        found[name]["interval_95"] = interval_over_seeds(ratios)
    return found


def tables(done: Mapping[str, Any]) -> str:
    """Return a table a cell, in markdown."""
    header = ["policy", "mean s", "times faster than fcfs", "TTFT s", "p99 s", "p99 / fcfs", "recomputed", "KV use"]
    parts = []
    for name, policies in done.items():
        rows = []
        for policy, found in policies.items():
            mean, width = found["mean"], found["interval_95"]
            gain = f"{found['ratio']['gain']:.2f}" + (f" ± {width['gain']:.2f}" if width else "")
            rows.append(
                [
                    policy,
                    f"{mean['mean_latency']:.1f}",
                    gain,
                    f"{mean['mean_ttft']:.2f}",
                    f"{mean['p99_latency']:.1f}",
                    f"{found['ratio']['p99']:.2f}",
                    f"{mean['recomputed_share']:.0%}",
                    f"{mean['mean_kv_utilization']:.0%}",
                ]
            )
        parts.append(f"### {name}\n\n{markdown(header, rows)}")
    return "\n".join(parts)


def main() -> None:
    """Run the cells that are not there yet, write `deployed.json` and `deployed.md`, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.deployed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder; cells that it has are not run again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="of long, chats, no-caching, replicas, separated by commas; default: all")
    args = parser.parse_args()
    path = args.out / "deployed.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    groups = args.only.split(",") if args.only else None
    wanted = [cell for cell in cells() if groups is None or cell.group in groups]
    for cell in tqdm([cell for cell in wanted if cell.name not in done], desc="deployed", unit="cell"):
        done[cell.name] = run_cell(cell, args.seeds)
        write_json(path, done)
    with atomic_file(args.out / "deployed.md") as aside:
        aside.write_text(tables(done))
    print(tables(done))


if __name__ == "__main__":
    main()
