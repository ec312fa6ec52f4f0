"""What a probe is worth to a scheduler: held-out answers with their states, in the simulator.

    python -m pipelines.studies.states --data records.parquet --states records.parquet.states --probe probe-run \
        --predictor run --out states

The answers of the test split stand for requests, drawn again and again, all there at the start. Their renewed forecasts
are what the probe says of the states that were collected. Nothing is generated. Writes states.json, prints the table.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.files import write_json
from pipelines.probe.data import SplitStates, load_states, read_matching_source
from pipelines.probe.renewed_bounds import RenewedBounds
from pipelines.probe.use import is_mixed, read_probe
from pipelines.request_bounds import UPPER_LEVEL, RequestBounds, with_bounds
from pipelines.simulate.resampling import resample
from pipelines.train.data import load_splits
from predictor.probe.probe import Probe, ProbeInputs
from predictor.records.chat_turns import ChatOptions
from predictor.training.config import TrainConfig
from scheduler.cost_model import CostModel
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.metrics import interval_over_seeds, mean_over_seeds, summarize
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

POLICIES = ("amin", "amin-survival", "svf", "sjf", "amax")
REFERENCES = ("fcfs", "hindsight", "hindsight-svf")
OURS = "amin-survival"
PROMPT, AHEAD = "prompt alone", "read ahead"
LOOK_AHEAD, LOOK_AHEADS = 512, (32, 128, 512, 2048)
"""Tokens of waiting prompts that an iteration reads."""
LONGER = 8
"""How many times as long prompts are in the last table."""
COUNT, KV_BUDGET, BLOCK_SIZE = 420, 20_480, 16
CLOCK = CostModel(0.0127, 2.5e-6, 7e-5, 4e-7)
"""Of SmolLM2 on one H200, fitted on 2026-11-27."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Held-out answers as requests with what the prompt alone tells, and the places of each one's states, from 0 on."""

    requests: list[Request]
    output_lens: list[int]
    rows: list[list[int]]


@dataclass(frozen=True, slots=True)
class Job:
    """A policy, what it knows, and how many prompt tokens an iteration reads ahead."""

    policy: str
    variant: str
    look_ahead: int | None = None

    @property
    def title(self) -> str:
        """How the job stands in a table."""
        if self.policy in REFERENCES:
            return self.policy
        return f"{self.policy}, {self.variant}" + (f" ({self.look_ahead} tokens)" if self.look_ahead else "")


def read_answers(split: SplitStates, predictor: Path, model: str, tau: float, cap: int) -> Answers:
    """Return the answers of a split; one that was cut counts as long as it is."""
    states, data = split.data.states, split.data
    rows: dict[tuple[int, int], list[int]] = {}
    for row in np.argsort(states.generated, kind="stable").tolist():
        rows.setdefault((int(states.prompt[row]), int(states.draw[row])), []).append(row)
    facts, prompts, lens = [], [], []
    for (prompt, draw), (first, *_) in rows.items():
        facts.append(Request(f"{prompt}-{draw}", int(data.num_prompt_tokens[first]), cap))
        prompts.append(split.records.prompts[int(split.record_of[first])])
        lens.append(int(data.remaining[first] + states.generated[first]))
    requests = RequestBounds.read(predictor, model, tau).predicted(facts, prompts)
    return Answers(requests, lens, list(rows.values()))


def variants(answers: Answers, split: SplitStates, probe: Probe, tau: float, *, mixed: bool) -> dict[str, Workload]:
    """Return the workload as the policies may know it, by what they know."""
    requests, lens = answers.requests, answers.output_lens
    alone = _renewals(answers, split, RenewedBounds(probe, tau))
    at_first = _of_prompts(answers, split, probe, tau)
    told = [_told(request, renewal) for request, renewal in zip(requests, at_first, strict=True)]
    found = {
        PROMPT: Workload(requests, lens),
        "probe at prefill": Workload(requests, lens, {index: each[:1] for index, each in alone.items()}),
        "probe renewed": Workload(requests, lens, alone),
        AHEAD: Workload(requests, lens, {i: [told_first, *alone.get(i, ())] for i, told_first in enumerate(at_first)}),
        "state at arrival, renewed": Workload(told, lens, alone),
    }
    if mixed:
        found["both renewed"] = Workload(
            requests, lens, _renewals(answers, split, RenewedBounds(probe, tau, is_mixed=True))
        )
    return found


def _renewals(answers: Answers, split: SplitStates, bounds: RenewedBounds) -> dict[int, Sequence[Renewal]]:
    """Return the renewals of each answer; the state at its last token but one is too late for any."""
    owner = [index for index, rows in enumerate(answers.rows) for _ in rows]
    rows = np.array([row for each in answers.rows for row in each])
    inputs = split.data.inputs(0)
    forecasts = [answers.requests[index].forecast for index in owner]
    renewed = bounds.renew(
        inputs.states[rows], inputs.generated[rows].tolist(), inputs.num_prompt_tokens[rows].tolist(), forecasts
    )
    found: dict[int, list[Renewal]] = {}
    for index, renewal in zip(owner, renewed, strict=True):
        if renewal is not None and renewal.num_generated < answers.output_lens[index]:
            found.setdefault(index, []).append(renewal)
    return dict(found)


def _of_prompts(answers: Answers, split: SplitStates, probe: Probe, tau: float) -> list[Renewal]:
    """Return what the state at each prompt's last token tells of the whole answer."""
    inputs = split.data.inputs(0)
    rows = np.array([each[0] for each in answers.rows])
    found = probe.renew(ProbeInputs(inputs.states[rows], inputs.generated[rows], inputs.num_prompt_tokens[rows]), tau)
    edges = probe.bins.as_array()
    return [
        Renewal(0, Forecast(edges, survival), int(bound))
        for survival, bound in zip(found.survival, found.lower_bounds, strict=True)
    ]


def _told(request: Request, renewal: Renewal) -> Request:
    forecast = renewal.forecast
    bounds = (renewal.output_len_lower_bound, int(forecast.quantile(0.5)), int(forecast.quantile(UPPER_LEVEL)))
    return with_bounds(request, bounds, forecast)


def main_jobs(workloads: Mapping[str, Workload]) -> list[Job]:
    """Return every policy with everything that it may know."""
    jobs = [Job(name, PROMPT) for name in REFERENCES]
    for variant in workloads:
        ahead = LOOK_AHEAD if variant == AHEAD else None
        jobs += [Job(name, variant, ahead) for name in POLICIES]
    return jobs


def ahead_jobs() -> list[Job]:
    """Return one policy with prompts that are read ahead faster and faster."""
    jobs = [Job("fcfs", PROMPT), Job("hindsight", PROMPT), Job(OURS, PROMPT), Job(OURS, "probe renewed")]
    return [*jobs, *(Job(OURS, AHEAD, tokens) for tokens in LOOK_AHEADS), Job(OURS, "state at arrival, renewed")]


def run_cell(workloads: Mapping[str, Workload], jobs: Sequence[Job], worker: Worker, seeds: int) -> dict[str, Any]:
    """Return, by job, means and intervals of the gain over fcfs, which comes first, and of the recomputed share."""
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in tqdm(range(seeds), desc="seeds", unit="seed"):
        base = 0.0
        for job in jobs:
            rng = np.random.default_rng(seed)
            drawn = resample(workloads[job.variant], COUNT, None, worker.kv_cache.kv_budget, rng)
            result = simulate(job.policy, drawn, worker, seed, look_ahead=job.look_ahead)
            run = summarize(result, worker.kv_cache)
            latency, recomputed = (float(np.mean(run[key])) for key in ("mean_latency", "recomputed_share"))
            base = base or latency
            entry = {"gain_over_fcfs": base / latency, "recomputed_share": recomputed}
            figures.setdefault(job.title, []).append(entry)
    return {
        key: {"mean": mean_over_seeds(runs), "interval_95": interval_over_seeds(runs)} for key, runs in figures.items()
    }


def table(cell: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the cell as a table in Markdown."""
    lines = ["| policy, and what it knows | mean latency: times faster than fcfs | recomputed |", "|---|---|---|"]
    for key, entry in cell.items():
        mean, width = entry["mean"], entry["interval_95"] or {"gain_over_fcfs": 0.0}
        lines.append(
            f"| {key} | {mean['gain_over_fcfs']:.2f} ± {width['gain_over_fcfs']:.2f} | {mean['recomputed_share']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, simulate, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="records of amin collect --states")
    parser.add_argument("--states", type=Path, required=True, help="the folder of states next to them")
    parser.add_argument("--probe", type=Path, required=True, help="run of amin train --states, or its export")
    parser.add_argument("--predictor", type=Path, required=True, help="run or export that reads prompts alone")
    parser.add_argument("--seed", type=int, default=0, help="that the splits were made with (default 0)")
    parser.add_argument("--seeds", type=int, default=20, help="workloads that are drawn (default 20)")
    parser.add_argument("--tau", type=float, default=0.1, help="probability allowed below a bound (default 0.1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for states.json")
    args = parser.parse_args()
    source = read_matching_source(args.states, str(args.data))
    probe = read_probe(args.probe, args.tau)
    probe.source.require(replace(source, layers=probe.source.layers), args.probe)
    splits, _ = load_splits(TrainConfig(data=str(args.data), seed=args.seed, tau=args.tau), ChatOptions())
    split = load_states(args.states, source, str(args.data), {"test": splits["test"]})["test"]
    split = of_layer(split, source.layers.index(probe.layer))
    cap = max(int(lens.max()) for lens in splits["test"].output_lens)
    answers = read_answers(split, args.predictor, source.served_model, args.tau, cap)
    workloads = variants(answers, split, probe, args.tau, mixed=is_mixed(probe, args.predictor))
    worker = Worker(KvCache.from_budget(KV_BUDGET, BLOCK_SIZE), resume=True, cost_model=CLOCK)
    longer = {name: with_longer_prompts(workload) for name, workload in workloads.items()}
    cells = {
        "policies": run_cell(workloads, main_jobs(workloads), worker, args.seeds),
        "look-ahead": run_cell(workloads, ahead_jobs(), worker, args.seeds),
        f"look-ahead, prompts {LONGER} times as long": run_cell(longer, ahead_jobs(), worker, args.seeds),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "states.json", {"num_answers": len(answers.requests), "seeds": args.seeds, "cells": cells})
    prompts = np.array([request.num_prompt_tokens for request in answers.requests])
    print(f"{len(answers.requests)} answers ({np.mean(answers.output_lens):.0f} tokens), {len(splits['test'])} prompts")
    print(f"({prompts.mean():.0f} tokens); {COUNT} at once, {KV_BUDGET} tokens of KV cache, {args.seeds} seeds")
    for title, cell in cells.items():
        print(f"\n{title}\n\n{table(cell)}")


def with_longer_prompts(workload: Workload) -> Workload:
    """Return the workload as if each prompt were longer and told the same."""
    requests = [replace(each, num_prompt_tokens=LONGER * each.num_prompt_tokens) for each in workload.requests]
    return replace(workload, requests=requests)


def of_layer(split: SplitStates, place: int) -> SplitStates:
    """Return a split with the states of one layer alone."""
    states = split.data.states
    kept = {name: getattr(states, name)[:, place : place + 1] for name in ("last", "recent", "prompt_mean")}
    return replace(split, data=replace(split.data, states=replace(states, **kept)))


if __name__ == "__main__":
    main()
