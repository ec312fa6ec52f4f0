"""What small predictors cost and lose: time of a prediction at batch 1 on one thread, with quality and size."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pipelines.export import quality
from pipelines.files import atomic_file, write_json
from pipelines.predict import survivals_with_progress
from pipelines.results import print_table
from predictor.records.prompt_table import PromptTable, prompt_table
from predictor.records.records import records_from_rows, select_rows
from predictor.serving import LengthPredictor
from predictor.spec import LengthPredictorLike
from predictor.training.checkpoint import load_predictor, predictor_folder

NUM_WARM_UP = 20
# The goal, compared with the first predictor measured: milliseconds, and pinball loss as a ratio.
GOAL_P50, GOAL_P99, GOAL_PINBALL = 3.0, 10.0, 1.03


@dataclass(frozen=True, slots=True)
class Measured:
    """One predictor: times of `predict` for one prompt in milliseconds, and its quality, all served models pooled.

    The time on the clock includes other processes on the processor; `cpu_*` is that of this process alone.
    """

    name: str
    precision: str
    max_prompt_tokens: int
    megabytes: float
    p50_ms: float
    p99_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    quality: dict[str, Any]
    """`pipelines.export.quality`: pooled, and `models`."""

    @property
    def largest_miss(self) -> float:
        """The largest distance of a served model's coverage from its target."""
        target = 1.0 - self.quality["tau"]
        misses: list[float] = [abs(part["coverage"] - target) for part in self.quality["models"].values()]
        return max(misses)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the predictors named on the command line; writes latency.json and latency.png."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.latency", description=__doc__)
    parser.add_argument(
        "paths", metavar="RUN_OR_EXPORT", nargs="+", type=Path, help="the first is the one to compare with"
    )
    parser.add_argument("--data", type=Path, required=True, help="records with the prompts and their lengths")
    parser.add_argument("--split", help="only the rows of this split; default: all")
    parser.add_argument("--tau", type=float, default=0.1, help="probability allowed below the bound")
    parser.add_argument("--rounds", type=int, default=3, help="times that each prompt is predicted, the rounds in turn")
    parser.add_argument("--out", type=Path, required=True, help="folder for latency.json and latency.png")
    args = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    predictors = [load_on_one_thread(path) for path in args.paths]
    tables = [table_of(args.data, args.split, each) for each in predictors]
    prompts = tables[0].prompts
    times = [time_predictions(each, prompts[:NUM_WARM_UP]) for each in predictors]
    rounds = [[time_predictions(each, prompts) for each in predictors] for _ in range(args.rounds)]
    times = [np.concatenate(parts, axis=1) for parts in zip(*rounds, strict=True)]
    measured = [
        predictor_row(path, each, table, milliseconds, args.tau)
        for path, each, table, milliseconds in zip(args.paths, predictors, tables, times, strict=True)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    results = [{**asdict(each), "largest_miss": each.largest_miss} for each in measured]
    write_json(args.out / "latency.json", {"data": str(args.data), "split": args.split, "predictors": results})
    write_plot(measured, args.out / "latency.png")
    show(measured)


def load_on_one_thread(path: Path) -> LengthPredictorLike:
    """Return the predictor of a RUN, a predictor folder or an export, to run on one thread; InputError as theirs."""
    if (path / "manifest.json").is_file():
        return LengthPredictor(path, num_threads=1)
    torch.set_num_threads(1)
    return load_predictor(path)


def table_of(data: Path, split: str | None, length_predictor: LengthPredictorLike) -> PromptTable:
    """Return the records of the served models that the predictor knows."""
    models = length_predictor.spec.models
    rows = [row for row in select_rows(data, None, split) if row.text("model") in models]
    return prompt_table(records_from_rows(rows), models)


def time_predictions(length_predictor: LengthPredictorLike, prompts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the milliseconds that each prompt takes by itself, on the clock and of this process's, [2, N]."""
    milliseconds = np.zeros((2, len(prompts)))
    for place, prompt in enumerate(prompts):
        started = time.perf_counter_ns(), time.process_time_ns()
        length_predictor.predict([prompt])
        ended = time.perf_counter_ns(), time.process_time_ns()
        milliseconds[:, place] = [(end - start) / 1e6 for start, end in zip(started, ended, strict=True)]
    return milliseconds


def predictor_row(
    path: Path,
    length_predictor: LengthPredictorLike,
    table: PromptTable,
    milliseconds: np.ndarray[Any, Any],
    tau: float,
) -> Measured:
    """Return what a predictor takes, [2, N] `milliseconds`, and how good it is on `table`."""
    manifest = path / "manifest.json"
    folder = path if manifest.is_file() else predictor_folder(path)
    survivals = survivals_with_progress(length_predictor, table.prompts, path.name, shown=True)
    (p50, cpu_p50), (p99, cpu_p99) = (np.percentile(milliseconds, q, axis=1).tolist() for q in (50, 99))
    return Measured(
        path.name,
        json.loads(manifest.read_text())["precision"] if manifest.is_file() else "torch",
        length_predictor.spec.max_prompt_tokens,
        sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        p50,
        p99,
        cpu_p50,
        cpu_p99,
        quality(length_predictor.spec, survivals, table, tau),
    )


def show(measured: Sequence[Measured]) -> None:
    """Print a row a predictor; pinball loss also as a ratio to the first's."""
    header = [
        "predictor", "precision", "tokens", "MB", "p50 ms", "p99 ms", "cpu p50", "cpu p99", "coverage",
        "largest miss", "tightness", "pinball", "/ first",
    ]  # fmt: skip
    rows = []
    for each in measured:
        part, first = each.quality, measured[0].quality
        times = (each.p50_ms, each.p99_ms, each.cpu_p50_ms, each.cpu_p99_ms)
        rows.append(
            [
                each.name, each.precision, str(each.max_prompt_tokens),
                f"{each.megabytes:.1f}", *(f"{value:.2f}" for value in times), f"{part['coverage']:.3f}",
                f"{each.largest_miss:.3f}", f"{part['tightness']:.3f}", f"{part['pinball_loss']:.2f}",
                f"{part['pinball_loss'] / first['pinball_loss']:.3f}",
            ]
        )  # fmt: skip
    print_table(header, rows)


def write_plot(measured: Sequence[Measured], file: Path) -> None:
    """Draw pinball loss, as a ratio to the first predictor's, against time: p50, and a line to p99."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    loss = measured[0].quality["pinball_loss"]
    axes.axvline(GOAL_P50, color="#868e96", linewidth=1, linestyle="--")
    axes.axvline(GOAL_P99, color="#868e96", linewidth=1, linestyle=":")
    axes.axhline(GOAL_PINBALL, color="#868e96", linewidth=1, linestyle="--")
    for place, each in enumerate(measured):
        ratio = each.quality["pinball_loss"] / loss
        axes.plot([each.p50_ms, each.p99_ms], [ratio, ratio], color="#4c6ef5", alpha=0.4, linewidth=1)
        axes.plot(each.p50_ms, ratio, "o", color="#4c6ef5")
        offset = 5 + 11 * (place % 2)  # neighbours must not write over each other
        axes.annotate(each.name, (each.p50_ms, ratio), textcoords="offset points", xytext=(4, offset), fontsize=8)
    axes.set(
        xscale="log",
        xlabel="a prediction: p50 (dot) to p99, ms; dashed, dotted: goals",
        ylabel="pinball loss / first's",
    )
    axes.margins(x=0.2, y=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    with atomic_file(file) as aside:
        figure.savefig(aside, format="png", dpi=120)


if __name__ == "__main__":
    main()
