"""How many prompts a second an export predicts that come at once: by batch, by order, by batches next to each other.

All cases take their turn in every round, so that a machine that others use slows all alike; medians over the rounds.
The last column is prompts a second of processor time: what one quiet core would give.

With --workload also what a burst loses to predictions that come one batch after the other: the requests of an
evaluation, all there at once, in the simulator, at a constant time an iteration.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import inf
from pathlib import Path
from statistics import median

import numpy as np

from pipelines.files import write_json
from pipelines.results import print_table
from pipelines.simulate.workload_file import read_with_bins
from predictor.records.records import read_prompts
from predictor.serving import LengthPredictor
from scheduler.cost_model import CostModel
from scheduler.kv_cache import KvCache
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker

GOAL = 400.0
"""Prompts a second on two cores."""
RATES = (inf, 1500.0, 400.0, 133.0)
"""Prompts a second: all at once, the goals of sixteen cores and of two, and one thread on an H200's machine."""


@dataclass(frozen=True, slots=True)
class Case:
    """How a burst is cut into batches; `by_length`: prompts of like length share one, else those next to each other."""

    batch_size: int
    at_once: int
    by_length: bool = True


@dataclass(frozen=True, slots=True)
class Speed:
    """Prompts a second, medians over the rounds: on the clock, and of processor time."""

    case: Case
    per_second: float
    per_processor_second: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the export named on the command line; writes burst.json."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.burst", description=__doc__)
    parser.add_argument("export", type=Path, help="folder that amin export wrote")
    parser.add_argument("--prompts", type=Path, required=True, help="file with the prompts of the burst")
    parser.add_argument("--size", type=int, default=280, help="prompts that come at once (default: 280)")
    parser.add_argument("--batches", default="8,16,32,128", help="prompts in a batch (default: 8,16,32,128)")
    parser.add_argument("--at-once", default="1,2", help="batches next to each other, a thread each (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each case takes its turn (default: 5)")
    parser.add_argument("--workload", type=Path, help="workload.jsonl of amin evaluate, with its bins next to it")
    parser.add_argument("--kv-blocks", type=int, default=512, help="of 16 tokens, for --workload (default: 512)")
    parser.add_argument("--iteration", type=float, default=0.008, help="seconds, for --workload (default: 0.008)")
    parser.add_argument("--out", type=Path, required=True, help="folder for burst.json")
    args = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    prompts = [row.prompt for row in read_prompts(args.prompts)][: args.size]
    sizes, widths = ([int(value) for value in text.split(",")] for text in (args.batches, args.at_once))
    cases = [Case(sizes[0], 1, by_length=False), *(Case(size, width) for width, size in product(widths, sizes))]
    speeds = measure(args.export, prompts, cases, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"export": str(args.export), "prompts": str(args.prompts), "size": len(prompts), "rounds": args.rounds}
    gains = gains_by_rate(args.workload, args.kv_blocks, args.iteration) if args.workload else {}
    measured = {"cases": [asdict(speed) for speed in speeds], "gains": gains}
    write_json(args.out / "burst.json", facts | measured)
    show(speeds)
    if gains:
        print_table(["prompts/s", "amin-survival over fcfs"], [[rate, f"{gain:.2f}x"] for rate, gain in gains.items()])


def measure(export: Path, prompts: Sequence[str], cases: Sequence[Case], num_rounds: int) -> list[Speed]:
    """Return the speed of each case, each tried once beforehand."""
    predictors = [
        LengthPredictor(export, batch_size=case.batch_size, num_threads=1, num_batches_at_once=case.at_once)
        for case in cases
    ]
    times: list[list[tuple[float, float]]] = [[] for _ in cases]
    for number in range(num_rounds + 1):
        for place, (case, length_predictor) in enumerate(zip(cases, predictors, strict=True)):
            started = time.perf_counter(), time.process_time()
            predict(length_predictor, prompts, case)
            ended = time.perf_counter(), time.process_time()
            if number:  # the first round warms up
                times[place].append((ended[0] - started[0], ended[1] - started[1]))
    rates = [[len(prompts) / median(column) for column in zip(*spent, strict=True)] for spent in times]
    return [Speed(case, clock, processor) for case, (clock, processor) in zip(cases, rates, strict=True)]


def predict(length_predictor: LengthPredictor, prompts: Sequence[str], case: Case) -> None:
    """Predict a burst: in one call, which puts like lengths together, or batch by batch as the prompts came."""
    step = len(prompts) if case.by_length else case.batch_size
    for start in range(0, len(prompts), step):
        length_predictor.predict(prompts[start : start + step])


def gains_by_rate(path: Path, num_blocks: int, seconds: float) -> dict[str, float]:
    """Return how much faster amin-survival is than fcfs, by prompts predicted a second, over five orders.

    Like lengths share a batch of 16. The policy learns of a request when its batch is done; latency counts from the
    start.
    """
    workload = read_with_bins(path)
    worker = Worker(KvCache(num_blocks, 16), resume=True, max_batch_tokens=512, cost_model=CostModel(seconds, 1e-5))
    count = len(workload.requests)
    latencies: dict[str, list[float]] = {}
    for seed in range(5):
        shuffled = workload.select(np.random.default_rng(seed).permutation(count).tolist())
        latencies.setdefault("fcfs", []).append(float(simulate("fcfs", shuffled, worker, seed).finish_time.mean()))
        by_length = np.argsort([request.num_prompt_tokens for request in shuffled.requests], kind="stable")
        for rate in RATES:
            times = np.zeros(count)
            times[by_length] = (np.arange(count) // 16 + 1) * 16 / rate
            result = simulate("amin-survival", shuffled, worker, seed, handed_over=times.tolist())
            latencies.setdefault(f"{rate:g}", []).append(float(result.finish_time.mean()))
    fcfs = np.array(latencies.pop("fcfs"))
    return {rate: float((fcfs / each).mean()) for rate, each in latencies.items()}


def show(speeds: Sequence[Speed]) -> None:
    """Print a row a case, and the factor to the first."""
    header = ["batch", "order", "at once", "prompts/s", "/ first", "per processor second"]
    rows = [
        [
            str(speed.case.batch_size),
            "by length" if speed.case.by_length else "as they came",
            str(speed.case.at_once),
            f"{speed.per_second:.0f}",
            f"{speed.per_second / speeds[0].per_second:.2f}",
            f"{speed.per_processor_second:.0f}",
        ]
        for speed in speeds
    ]
    print_table(header, rows)
    print(f"goal: {GOAL:.0f} prompts/s on two cores")


if __name__ == "__main__":
    main()
