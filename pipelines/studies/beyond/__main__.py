"""The experiments of docs/results/beyond.md: predictions once, then every cell, kept as it is done, then the tables."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipelines import predict
from pipelines.files import atomic_file, write_json
from pipelines.settings.predict import PredictSettings
from pipelines.simulate.resampling import seconds_per_iteration, stretched
from pipelines.studies.beyond.cells import MODELS, Cell, Variant, cells
from pipelines.studies.beyond.sources import WRONG_MODEL, Draw, changed, source, with_upper_bounds
from pipelines.studies.beyond.tables import tables
from scheduler.latency_bounds import latency_lower_bound_with_arrivals
from scheduler.metrics import Figures, interval_over_seeds, mean_over_seeds, summarize
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload, read_workload

WRONG = "gemma-3-4b-it"
"""The served model whose predictions stand in for those of the first of `MODELS`."""


def predictions(predictor: Path, data: Path, split: str, out: Path) -> dict[str, Workload]:
    """Return the records of a split as workloads with forecasts, by served model; they are kept in `out`.

    Under `WRONG_MODEL` stand the records of the first of `MODELS` as if they were of another.
    """
    first = out / "first.parquet"
    workloads = {}
    for name, file, model in [*((model, data, model) for model in MODELS), (WRONG_MODEL, first, WRONG)]:
        path = out / f"{name}.jsonl"
        if not path.is_file():
            with atomic_file(first) as aside:
                rows = pq.read_table(data)
                pq.write_table(rows.filter(pc.equal(rows["model"], MODELS[0])), aside)
            bounds = out / "bounds.jsonl"
            predict.run(PredictSettings(predictor, file, bounds, split=split, model=model, workload=path))
        edges = np.asarray(json.loads(path.with_name(path.name + ".bins.json").read_text()), dtype=np.int64)
        workloads[name] = with_upper_bounds(read_workload(path, edges=edges))
    return workloads


def run_cell(cell: Cell, draw: Draw, draw_wrong: Draw | None, seeds: int, count: int) -> dict[str, Any]:
    """Return the cell's entry of `beyond.json`: per variant its figures over the seeds, paired with fcfs and hindsight.

    Args:
        cell: What to run.
        draw: Draws its requests.
        draw_wrong: Draws the same requests with the forecasts of another served model.
        seeds: How many runs of each variant.
        count: Requests of a run.
    """
    worker = cell.worker()
    runs: dict[str, list[Figures]] = {name: [] for name in cell.variants}
    sample = draw(count, None, cell.kv_budget, np.random.default_rng(0))
    iteration = 1.0 if cell.load is None else seconds_per_iteration(worker, sample)
    for seed in range(seeds):
        plain = stretched(draw(count, cell.load, cell.kv_budget, np.random.default_rng(seed)), iteration)
        wrong = None
        if draw_wrong is not None:
            wrong = draw_wrong(count, cell.load, cell.kv_budget, np.random.default_rng(seed))
        references = {name: _figures(Variant(name), plain, worker, seed) for name in ("hindsight", "fcfs")}
        bound = None
        if cell.cost_model is None:
            facts = zip(*((r.num_prompt_tokens, r.arrival_time) for r in plain.requests), strict=True)
            prompts, arrivals = (np.array(column) for column in facts)
            bound = latency_lower_bound_with_arrivals(prompts, plain.output_lens, arrivals, cell.kv_budget)
        for name, variant in cell.variants.items():
            run = references.get(name) or _figures(variant, changed(plain, wrong, variant, seed), worker, seed)
            runs[name].append(_ratios(run, references["hindsight"], references["fcfs"], bound, len(plain.requests)))
    place = f"{cell.source} on {cell.deployment}" if cell.deployment else cell.source
    facts_of_cell = {"group": cell.group, "source": place, "load": cell.load, "kv_budget": cell.kv_budget}
    means = {name: mean_over_seeds(each) for name, each in runs.items()}
    widths = {name: interval_over_seeds(each) for name, each in runs.items()}
    variants = {name: {"mean": means[name], "interval_95": widths[name]} for name in runs}
    return {**facts_of_cell, "seeds": seeds, "requests": count, "variants": variants}


def _figures(variant: Variant, workload: Workload, worker: Worker, seed: int) -> dict[str, Any]:
    return dict(summarize(simulate(variant.policy, workload, worker, seed, **variant.options), worker.kv_cache))


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
    """Run the cells that OUT/beyond.json does not have yet; write it after each, and the tables at the end."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.beyond", description=__doc__)
    parser.add_argument("predictor", type=Path, help="folder that amin train or amin export wrote")
    parser.add_argument(
        "--shared", type=Path, required=True, help="folder with castillo_records.parquet and the traces"
    )
    parser.add_argument("--split", default="test", help="whose prompts are served")
    parser.add_argument("--requests", type=int, default=2000, help="of a run; drawn with replacement, by seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="groups of cells, separated by commas; default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for beyond.json, tables.md and the predictions")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    workloads = predictions(args.predictor, args.shared / "castillo_records.parquet", args.split, args.out)
    results = args.out / "beyond.json"
    done: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    groups = args.only.split(",") if args.only else None
    planned = [cell for cell in cells() if groups is None or cell.group in groups]
    left = [cell for cell in planned if _key(cell) not in done]
    for cell in tqdm(left, desc="beyond", unit="cell"):
        wrong = None
        if any(variant.forecast == WRONG_MODEL for variant in cell.variants.values()):
            wrong = source(WRONG_MODEL, workloads, args.shared)
        drawn = source(cell.source, workloads, args.shared)
        done[_key(cell)] = run_cell(cell, drawn, wrong, args.seeds, args.requests)
        write_json(results, done)
    with atomic_file(args.out / "tables.md") as aside:
        aside.write_text(tables(done))
    print(tables(done))


def _key(cell: Cell) -> str:
    return f"{cell.name}: {', '.join(cell.variants)}"


if __name__ == "__main__":
    main()
