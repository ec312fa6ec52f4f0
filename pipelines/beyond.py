"""The experiments of docs/results/beyond.md: what each change of amin-survival brings, what a bad forecast costs."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.files import write_json
from pipelines.results import print_table
from scheduler.arrivals import times_at_load
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.latency_bounds import total_latency_lower_bound
from scheduler.metrics import Figures, interval_over_seeds, mean_over_seeds, summarize
from scheduler.request import Request
from scheduler.simulation import Worker, simulate
from scheduler.workload import Workload, read_workload

BASELINES = ("hindsight", "hindsight-svf", "fcfs", "amax", "amin", "amin-eviction", "sjf", "svf", "tie", "past-future")
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "amin-survival": {},
    "pack at .1": {"pack_level": 0.1},
    "pack at .25": {"pack_level": 0.25},
    "pack at .75": {"pack_level": 0.75},
    "order at .25": {"order_level": 0.25},
    "order at .75": {"order_level": 0.75},
    "no ageing": {"ageing": 0.0},
    "ageing .02": {"ageing": 0.02},
    "bounds not renewed": {"renew": False},
    "order by length": {"by_volume": False},
    "least bound evicted": {"victim": "least-bound"},
}
FORECASTS = ("as predicted", "perfect", "2x too high", "2x too low", "same for all")


def with_forecast(requests: Sequence[Request], lens: Sequence[int], kind: str, tau: float = 0.1) -> list[Request]:
    """Return the requests with another forecast, and the bounds that it gives (quantiles tau, .5 and .95)."""
    edges = requests[0].forecast_or_bounds().edges
    mean = np.mean([request.forecast_or_bounds().survival for request in requests], axis=0)
    changed = []
    for request, length in zip(requests, lens, strict=True):
        forecast = request.forecast_or_bounds()
        if kind == "perfect":
            forecast = Forecast(np.array([0, length, length + 1]), np.array([1.0, 1.0, 0.0]))
        elif kind == "2x too high":
            forecast = Forecast(forecast.edges * 2, forecast.survival)
        elif kind == "2x too low":
            halves = np.maximum(forecast.edges // 2, np.arange(len(edges)))
            forecast = Forecast(halves, forecast.survival)
        elif kind == "same for all":
            forecast = Forecast(edges, mean)
        changed.append(_with_bounds(request, forecast, tau))
    return changed


def _with_bounds(request: Request, forecast: Forecast, tau: float) -> Request:
    cap = request.max_new_tokens
    lower, middle, upper = (max(1, min(cap, int(forecast.quantile(level)))) for level in (tau, 0.5, 0.95))
    return replace(
        request,
        forecast=forecast,
        output_len_lower_bound=lower,
        output_len_prediction=max(lower, middle),
        output_len_upper_bound=max(lower, upper),
    )


def draw(base: Workload, count: int, load: float | None, kv_budget: int, seed: int) -> Workload:
    """Return `count` requests drawn with replacement, all at once or Poisson at a load."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(base.requests), size=count)
    lens = np.asarray(base.output_lens)[chosen]
    prompts = np.array([base.requests[i].num_prompt_tokens for i in chosen])
    volumes = prompts * lens + lens * (lens + 1) / 2
    times = np.zeros(count) if load is None else times_at_load("poisson", load, volumes, kv_budget, rng)
    facts = zip(chosen.tolist(), times.tolist(), strict=True)
    requests = [replace(base.requests[i], request_id=f"r{k}", arrival_time=t) for k, (i, t) in enumerate(facts)]
    return Workload(requests, lens.tolist())


def figures(name: str, workload: Workload, worker: Worker, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one run."""
    return dict(summarize(simulate(name, workload, worker, seed, **options), worker.kv_cache))


def measure(
    base: Workload, worker: Worker, load: float | None, variants: Mapping[str, Mapping[str, Any]], args: Any, bar: Any
) -> list[dict[str, Any]]:
    """Return per variant its figures over the seeds, as ratios to hindsight and fcfs of the same seed."""
    by_variant: dict[str, list[Figures]] = {name: [] for name in variants}
    for seed in range(args.seeds):
        plain = draw(base, args.requests, load, worker.kv_cache.kv_budget, seed)
        hindsight, fcfs = (figures(name, plain, worker, seed, {}) for name in ("hindsight", "fcfs"))
        bound = None
        if load is None:
            prompts = [request.num_prompt_tokens for request in plain.requests]
            bound = total_latency_lower_bound(prompts, plain.output_lens, worker.kv_cache.kv_budget)
        for name, variant in variants.items():
            options = dict(variant)
            kind, policy = options.pop("forecast", "as predicted"), options.pop("policy", "amin-survival")
            workload = Workload(with_forecast(plain.requests, plain.output_lens, kind), plain.output_lens)
            run = figures(policy, workload, worker, seed, options)
            by_variant[name].append(_ratios(run, hindsight, fcfs, bound, args.requests))
            bar.update()
    return [
        {"load": load, "variant": name, "mean": mean_over_seeds(seeds), "interval_95": interval_over_seeds(seeds)}
        for name, seeds in by_variant.items()
    ]


def _ratios(
    run: Mapping[str, Any], hindsight: Mapping[str, Any], fcfs: Mapping[str, Any], bound: float | None, count: int
) -> Figures:
    deciles = zip(run["p99_latency_by_length_decile"], fcfs["p99_latency_by_length_decile"], strict=True)
    ratios: Figures = {} if bound is None else {"to_bound": run["total_latency"] / bound}
    return ratios | {
        "to_hindsight": run["mean_latency"] / hindsight["mean_latency"],
        "gain_over_fcfs": fcfs["mean_latency"] / run["mean_latency"],
        "p99_to_fcfs": run["p99_latency"] / fcfs["p99_latency"],
        "worst_decile_p99_to_fcfs": max(mine / theirs for mine, theirs in deciles),
        "evictions_per_request": run["num_evictions"] / count,
        "recomputed_share": run["recomputed_share"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments, print the tables, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.beyond", description=__doc__)
    parser.add_argument("workload", type=Path, help="JSONL with survival, as `amin predict --workload` writes it")
    parser.add_argument("--bins", type=Path, required=True, help="JSON list of the edges of survival")
    parser.add_argument("--kv-budget", type=int, default=16_492, help="tokens that the KV cache holds")
    parser.add_argument("--eviction", choices=["restart", "resume"], default="restart")
    parser.add_argument("--loads", default="at-once,0.5,0.8,0.95,1.2", help="at-once, or shares of what can be served")
    parser.add_argument("--requests", type=int, default=2000, help="drawn with replacement, by seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=["policies", "ablation", "forecasts"], help="one of the experiments")
    parser.add_argument("--out", type=Path, required=True, help="folder for beyond.json")
    args = parser.parse_args(argv)
    edges = np.asarray(json.loads(args.bins.read_text()), dtype=np.int64)
    base = read_workload(args.workload, edges=edges)
    worker = Worker(KvCache(args.kv_budget), resume=args.eviction == "resume")
    loads = [None if word == "at-once" else float(word) for word in args.loads.split(",")]
    experiments: dict[str, Mapping[str, Mapping[str, Any]]] = {
        "policies": {name: {"policy": name} for name in (*BASELINES, "amin-survival")},
        "ablation": ABLATION,
        "forecasts": {kind: {"forecast": kind} for kind in FORECASTS},
    }
    chosen = {name: rows for name, rows in experiments.items() if args.only in (None, name)}
    total = sum(len(rows) for rows in chosen.values()) * len(loads) * args.seeds
    results: dict[str, Any] = {"workload": args.workload.name, "kv_budget": args.kv_budget, "eviction": args.eviction}
    with tqdm(total=total, desc="beyond", unit="run") as bar:
        for name, variants in chosen.items():
            results[name] = [cell for load in loads for cell in measure(base, worker, load, variants, args, bar)]
    write_json(args.out / "beyond.json", results)
    for name in chosen:
        _show(name, results[name])


def _show(title: str, cells: Sequence[Mapping[str, Any]]) -> None:
    columns = {
        "to_hindsight": "/ hindsight",
        "gain_over_fcfs": "fcfs /",
        "p99_to_fcfs": "p99 / fcfs",
        "worst_decile_p99_to_fcfs": "worst decile",
        "to_bound": "/ bound",
        "evictions_per_request": "evictions",
        "recomputed_share": "recomputed",
    }
    rows = []
    for cell in cells:
        mean, width = cell["mean"], cell["interval_95"] or {}
        text = [f"{mean[key]:.2f}" if key in mean else "-" for key in columns]
        text[0] = f"{mean['to_hindsight']:.3f} ±{width.get('to_hindsight', 0.0):.3f}"
        rows.append([cell["variant"], "at once" if cell["load"] is None else f"{cell['load']:g}", *text])
    print(f"\n{title}")
    print_table(["variant", "load", *columns.values()], rows)


if __name__ == "__main__":
    main()
