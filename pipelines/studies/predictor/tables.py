"""Tables of `pipelines.studies.predictor.study`, in Markdown, from run folders and records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from predictor.bounds.distribution import FloatArray
from predictor.bounds.metrics import kendall_tau
from predictor.quality import MeasuredBounds, bounds_by_model
from predictor.records.prompt_table import PromptTable, prompt_table
from predictor.records.records import Records
from predictor.spec import PredictorSpec
from predictor.training.baselines import measure_baselines
from predictor.training.checkpoint import load_predictor

TAU = 0.1
MAX_LENGTH = 4096
NUM_RESAMPLES = 1000
# On a kind of prompt never trained on: prompts to calibrate on, and random choices of them.
NUM_IN_DOMAIN = 200
NUM_CHOICES = 20
NUM_RESPLITS = 40
FORMATS = {
    "coverage": ".3f",
    "worst_group_coverage": ".3f",
    "pinball_loss": ".2f",
    "tightness": ".3f",
    "kendall_tau": ".3f",
    "mean_absolute_error": ".1f",
    "within_100": ".3f",
}
"""Measures of every table, of `predictor.bounds.metrics.BoundQuality`, and how their numbers are written."""
TITLES = ("coverage", "worst data set", "pinball", "tightness", "tau-b", "error", "within 100")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the predictor of a run says of the prompts of a table, [P, M, K+1]."""

    spec: PredictorSpec
    table: PromptTable
    survivals: FloatArray

    @classmethod
    def of(cls, run: Path, records: Records) -> "Predicted":
        """Load the run's predictor and let it predict."""
        length_predictor = load_predictor(run / "predictor")
        table = prompt_table(records, length_predictor.spec.models)
        return cls(length_predictor.spec, table, length_predictor.survivals(table.prompts))

    def of_split(self, is_test: bool) -> "Predicted":
        """Return what it says of the prompts of the test split, or of the others; all records of a prompt have one."""
        splits = np.asarray(self.table.records.splits)[self.table.places.max(axis=1)]
        rows = np.flatnonzero((splits == "test") == is_test)
        prompts = tuple(self.table.prompts[row] for row in rows)
        table = replace(self.table, prompts=prompts, places=self.table.places[rows])
        return Predicted(self.spec, table, self.survivals[rows])

    def measured(self, model: str) -> MeasuredBounds:
        """Return the bounds for one served model, with its draws."""
        return bounds_by_model(self.spec, self.survivals, self.table, TAU)[model]

    def recalibrated(self, model: str, chosen: "Predicted", rows: np.ndarray) -> MeasuredBounds:
        """Return the bounds for one served model after calibration on `rows` of the prompts in `chosen`.

        Where these are its own prompts, the bounds are those of the others.
        """
        number = self.spec.models.index(model)
        places = chosen.table.places[rows, number]
        few = prompt_table(chosen.table.records.select(places[places >= 0]), (model,))
        one = replace(self.spec, models=(model,), served_model=model)
        spec = one.recalibrated(chosen.survivals[rows[places >= 0], number][:, None], few)
        own, records = self.table.column(model)
        if chosen is self:
            kept = np.flatnonzero(~np.isin(own, rows))
            own, records = own[kept], records.select(kept)
        predictions = spec.predictions(self.survivals[own, number], TAU)
        return MeasuredBounds(records, predictions.lower_bounds, predictions.medians)

    def random_rows(self, model: str, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of `NUM_IN_DOMAIN` prompts that a served model answered, drawn at random."""
        known = np.flatnonzero(self.table.places[:, self.spec.models.index(model)] >= 0)
        return rng.choice(known, min(NUM_IN_DOMAIN, len(known)), replace=False)


def seeds(runs: Sequence[Path], records: Records, models: Sequence[str]) -> str:
    """Return mean and spread of each measure over `runs`, next to the baselines, with paired bootstrap intervals."""
    splits = np.asarray(records.splits)
    predicted = [Predicted.of(run, records.select(np.flatnonzero(splits == "test"))) for run in runs]
    rows = []
    for model in models:
        train, calibration = (
            records.select(np.flatnonzero((splits == name) & (np.asarray(records.models) == model)))
            for name in ("train", "calibration")
        )
        ours = [part.measured(model) for part in predicted]
        baselines = measure_baselines(train, calibration, ours[0].records, TAU, MAX_LENGTH)
        best = min(baselines, key=lambda name: baselines[name].quality(TAU, MAX_LENGTH).pinball_loss)
        qualities = [part.quality(TAU, MAX_LENGTH).to_dict() for part in ours]
        of_seeds = [spread([quality[key] for quality in qualities], key) for key in FORMATS]
        rows.append([model, f"predictor, {len(runs)} seeds", *of_seeds])
        for name, bounds in baselines.items():
            rows.append([model, name, *cells(bounds.quality(TAU, MAX_LENGTH).to_dict())])
        loss, order = bootstrap(ours, baselines[best])
        rows.append([model, f"predictor - {best}, 95 % interval", "", "", loss, "", order, "", ""])
        ceiling = qualities[0]["kendall_tau_ceiling"]
        rows.append([model, "ceiling: a draw against the mean of the others", "", "", "", "", f"{ceiling:.3f}", "", ""])
    return markdown(["served model", "", *TITLES], rows)


def resplits(runs: Sequence[Path], records: Records, models: Sequence[str]) -> str:
    """Return how coverage varies with the prompts that calibrate: calibration and test divided anew, at random.

    As many calibrate as in the published split; all runs meet the same divisions.
    """
    splits = np.asarray(records.splits)
    held_out = records.select(np.flatnonzero((splits == "calibration") | (splits == "test")))
    share = float(np.mean(np.asarray(held_out.splits) == "calibration"))
    found: dict[str, list[tuple[float, float]]] = {model: [] for model in models}
    for run in runs:
        every, rng = Predicted.of(run, held_out), np.random.default_rng(0)
        for _ in range(NUM_RESPLITS):
            size = len(every.table.prompts)
            rows = rng.choice(size, round(share * size), replace=False)
            for model in models:
                quality = every.recalibrated(model, every, rows).quality(TAU, MAX_LENGTH)
                found[model].append((quality.coverage, quality.worst_group_coverage or np.nan))
    rows_of_table = []
    for model, pairs in found.items():
        coverage, worst = np.array(pairs).T
        near, kept = np.mean(np.abs(coverage - 1 + TAU) <= 0.015), np.mean(worst >= 0.85)
        cells = [f"{coverage.mean():.3f} ± {coverage.std():.3f}", f"{near:.0%}"]
        rows_of_table.append([model, *cells, f"{worst.mean():.3f} ± {worst.std():.3f}", f"{kept:.0%}"])
    header = ["served model", "coverage", "within 0.015 of 0.90", "worst data set", "at least 0.85"]
    return markdown(header, rows_of_table)


def objectives(runs: Sequence[Path], names: Sequence[str], models: Sequence[str]) -> str:
    """Return the measures of one run for each objective."""
    rows = [
        [model, name, *cells(_metrics(run)["models"][model]["test"])]
        for model in models
        for run, name in zip(runs, names, strict=True)
    ]
    return markdown(["served model", "objective", *TITLES], rows)


def unseen_data(runs: Sequence[Path], names: Sequence[str], full: Path, records: Records, models: Sequence[str]) -> str:
    """Return coverage and the rest on data sets left out of training, as calibrated and calibrated on 200 prompts."""
    datasets, splits = np.asarray(records.datasets), np.asarray(records.splits)
    rows = []
    for run, name in zip(runs, names, strict=True):
        every = Predicted.of(run, records.select(np.flatnonzero(datasets == name)))
        left_out, others = every.of_split(True), every.of_split(False)
        trained = Predicted.of(full, records.select(np.flatnonzero((datasets == name) & (splits == "test"))))
        rng = np.random.default_rng(0)
        for model in models:
            again = [left_out.recalibrated(model, others, others.random_rows(model, rng)) for _ in range(NUM_CHOICES)]
            anywhere = [
                every.recalibrated(model, every, every.random_rows(model, rng)).quality(TAU, MAX_LENGTH).coverage
                for _ in range(NUM_CHOICES)
            ]
            before, inside = left_out.measured(model), trained.measured(model)
            after = [part.quality(TAU, MAX_LENGTH) for part in again]
            first, ours = (part.quality(TAU, MAX_LENGTH) for part in (before, inside))
            covered = [quality.coverage for quality in after]
            rows.append(
                [
                    name,
                    model,
                    str(len(before.records)),
                    f"{first.coverage:.3f}",
                    f"{np.mean(covered):.3f} ± {np.std(covered):.3f}",
                    f"{np.mean(anywhere):.3f} ± {np.std(anywhere):.3f}",
                    f"{ours.coverage:.3f}",
                    f"{first.pinball_loss:.1f}",
                    f"{np.mean([quality.pinball_loss for quality in after]):.1f}",
                    f"{ours.pinball_loss:.1f}",
                    f"{first.kendall_tau:.3f}",
                    f"{ours.kendall_tau:.3f}",
                    f"{first.mean_absolute_error:.1f}",
                    f"{ours.mean_absolute_error:.1f}",
                    f"{first.within_100:.3f}",
                    f"{ours.within_100:.3f}",
                ]
            )
    header = ["data set", "served model", "test prompts", "coverage: left out", f"on {NUM_IN_DOMAIN}", "the rest"]
    header += ["trained on", "pinball: left out", f"on {NUM_IN_DOMAIN}", "trained on"]
    for name in ("tau-b", "error", "within 100"):
        header += [f"{name}: left out", "trained on"]
    return markdown(header, rows)


def bootstrap(ours: Sequence[MeasuredBounds], other: MeasuredBounds) -> tuple[str, str]:
    """Return 95 % intervals of the difference to `other` in pinball loss and tau-b, over resamples of the prompts.

    Of ours the mean over runs; each resample takes the same prompts for both.
    """
    if any(part.records.prompt_ids != other.records.prompt_ids for part in ours):
        raise ValueError("the bounds are of different prompts, or in another order")
    draws = [np.minimum(lengths, MAX_LENGTH) for lengths in other.records.output_lens]
    losses = np.mean([_losses(part, draws) for part in ours], axis=0) - _losses(other, draws)
    rng, size = np.random.default_rng(0), len(draws)
    found = np.zeros((NUM_RESAMPLES, 2))
    for resample in range(NUM_RESAMPLES):
        rows = rng.integers(0, size, size)
        # One draw of each prompt, in turn: tau-b is the slow part and the interval that of a mean over draws.
        kept = [draws[row][resample % len(draws[row]) :][:1] for row in rows]
        tau = [kendall_tau(np.asarray(part.medians, dtype=np.float64)[rows], kept) for part in [*ours, other]]
        found[resample] = losses[rows].mean(), np.mean(tau[:-1]) - tau[-1]
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return f"{low[0]:.2f} to {high[0]:.2f}", f"{low[1]:+.3f} to {high[1]:+.3f}"


def spread(values: Sequence[float], key: str) -> str:
    """Return mean ± standard deviation of a measure; of one value itself."""
    mean = f"{np.mean(values):{FORMATS[key]}}"
    return f"{mean} ± {np.std(values, ddof=1):{FORMATS[key]}}" if len(values) > 1 else mean


def cells(quality: Mapping[str, Any]) -> list[str]:
    """Return the measures as text, in the order of `TITLES`; "-" where the data cannot tell."""
    return ["-" if quality[key] is None else f"{quality[key]:{form}}" for key, form in FORMATS.items()]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _losses(part: MeasuredBounds, draws: Sequence[np.ndarray]) -> FloatArray:
    excess = [lengths - bound for lengths, bound in zip(draws, part.lower_bounds, strict=True)]
    return np.asarray([np.mean(np.maximum(TAU * gap, (TAU - 1.0) * gap)) for gap in excess])


def _metrics(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics
