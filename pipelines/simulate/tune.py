"""Choose tau of amin and the levels of amin-survival by simulated latency on the user's own records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.files import write_json
from pipelines.output.claim import claimed
from pipelines.predict import survivals_with_progress
from pipelines.results import print_table
from pipelines.scheduling import FILE_NAME
from pipelines.settings.tune import TuneSettings
from pipelines.simulate.resampling import resample, seconds_per_iteration, stretched
from pipelines.simulate.workers import described, make_worker, setting, unit
from pipelines.simulate.workloads import served_tokens
from predictor.bounds.distribution import lower_bound
from predictor.records.records import answered_rows, prompt_of, records_from_rows, select_rows
from predictor.records.rows import Row
from predictor.resolve import resolve_predictor
from predictor.spec import LengthPredictorLike
from predictor.training.checkpoint import predictor_folder
from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.metrics import Targets, interval_over_seeds, mean_over_seeds, service, summarize
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy as it may be served."""

    policy: str
    tau: float = 0.1
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the table calls it."""
        changes = [f"{key} {value:g}" for key, value in self.options.items()]
        return f"tau {self.tau:g}" if self.policy == "amin" else ", ".join(changes) or "default"

    @property
    def num_changes(self) -> int:
        """How many settings differ from the default."""
        return len(self.options) + (self.tau != Candidate.__dataclass_fields__["tau"].default)


LEVELS: Sequence[Mapping[str, float]] = (
    {},
    {"pack_level": 0.1},
    {"pack_level": 0.5},
    {"reserve_sd": 0.0},
    {"reserve_sd": 0.3},
    {"reserve_sd": 1.2, "max_reserve": 0.15},
    {"pack_level": 0.5, "reserve_sd": 1.2, "max_reserve": 0.15},
    {"tail": 0.0},
    {"tail": 3.0},
)
CANDIDATES: Mapping[str, Sequence[Candidate]] = {
    "amin": [Candidate("amin", tau) for tau in (0.1, 0.05, 0.2, 0.3, 0.5)],
    "amin-survival": [Candidate("amin-survival", options=options) for options in LEVELS],
}
"""By policy, the default first."""


def run(settings: TuneSettings) -> None:
    """Simulate every candidate, write `scheduling.json` into the folder, print the table.

    Raises:
        InputError: a file, row or option that the user can fix.
    """
    load = _load(settings.load)
    if settings.objective == "goodput" and settings.ttft_target is None and settings.tpot_target is None:
        raise InputError("--objective goodput counts what keeps targets: give --ttft-target, --tpot-target or both")
    file = _folder(settings) / FILE_NAME
    with claimed(file, is_folder=False, inputs=[settings.data], force=settings.force, option="SERVING"):
        _tune(settings, load, file)


def _tune(settings: TuneSettings, load: float | None, file: Path) -> None:
    worker = make_worker(settings.worker)
    length_predictor = resolve_predictor(settings.path)
    by_tau = _workloads(settings, length_predictor)
    policies: dict[str, Any] = {}
    rows: list[list[str]] = []
    tied: list[str] = []
    for policy, candidates in CANDIDATES.items():
        known = [candidate for candidate in candidates if candidate.tau in by_tau]
        figures = _figures(known, by_tau, worker, load, settings)
        best = choose(known, figures, settings.objective)
        policies[policy] = {
            "tau" if policy == "amin" else "options": best.tau if policy == "amin" else dict(best.options),
            "candidates": [{"name": c.name, **_means(figures[c.name])} for c in known],
        }
        mark = "chosen"
        if all_tie(figures, settings.objective):
            mark, tied = "default", [*tied, policy]
        rows += [_row(c, figures, known[0].name, settings.objective, mark if c == best else "") for c in known]
    value = {"served_model": length_predictor.spec.choose(settings.model), **setting(settings.worker)}
    value |= {name: getattr(settings, name) for name in ("load", "split", "objective", "requests", "seeds")}
    write_json(file, value | {"policies": policies})
    print(
        f"{settings.requests} requests of {len(by_tau[0.1].requests)} draws, {described(settings.worker)}, "
        f"{settings.seeds} seeds, load {settings.load}, {unit(settings.worker)}; by {settings.objective}"
    )
    header = ["policy", "candidate", "mean latency", f"{settings.objective} / default's", "p99", "evictions"]
    print_table([*header, "recomputed", ""], rows)
    for policy in tied:
        print(f"{policy}: nothing chosen, its default stays: all do the same here. Give a higher --load or less memory")
    print(f"{file}: pass it to amin simulate or amin evaluate as --scheduling")


def _folder(settings: TuneSettings) -> Path:
    """Return the folder of the predictor or of its export."""
    if (settings.path / "manifest.json").is_file():
        return settings.path
    return predictor_folder(settings.path)


def _load(text: str) -> float | None:
    try:
        return None if text == "at-once" else float(text)
    except ValueError as error:
        raise InputError(f"--load is {text!r}, must be a number or at-once") from error


def _workloads(settings: TuneSettings, length_predictor: LengthPredictorLike) -> dict[float, Workload]:
    """Return the draws of the records as requests, by tau of their lower bounds; taus too fine to calibrate are out."""
    spec = length_predictor.spec
    model = spec.choose(settings.model)
    rows = select_rows(settings.data, None, settings.split)
    if settings.split is None and any(row.text("split") for row in rows):
        calibration_rows = [row for row in rows if row.text("split") == "calibration"]
        rows = calibration_rows or select_rows(settings.data, None, "calibration")  # which says what splits there are
    rows = answered_rows(settings.data, [row for row in rows if row.text("model") == model] or rows)
    records, prompt_tokens = records_from_rows(rows), _prompt_tokens(settings.data, rows)
    prompts = [prompt_of(row, spec.chat_options).prompt for row in rows]
    survivals = survivals_with_progress(length_predictor, prompts, "predict", shown=settings.progress)
    survival = spec.survival_of(survivals, model)
    longest, edges, calibration = spec.bins.max_length, np.asarray(spec.bins.to_list()), spec.calibration(model)
    taus = {candidate.tau for candidates in CANDIDATES.values() for candidate in candidates}
    taus = {tau for tau in taus if tau == Candidate("amin").tau or tau * (calibration.lengths.num_prompts + 1) >= 1}
    workloads = {}
    for tau in taus:
        bounds = lower_bound(spec.bins, survival, calibration.level(tau)).tolist()
        requests, lens = [], []
        for tokens, bound, curve, draws in zip(prompt_tokens, bounds, survival, records.output_lens, strict=True):
            forecast = Forecast(edges, np.asarray(curve, dtype=np.float64), calibration.tail)
            for length in draws.tolist():
                facts = Request("r", tokens, longest, output_len_lower_bound=min(bound, longest), forecast=forecast)
                requests.append(facts)
                lens.append(min(length, longest))
        workloads[tau] = Workload(requests, lens)
    return workloads


def _prompt_tokens(data: Path, rows: Sequence[Row]) -> list[int]:
    """Return the rows' `num_prompt_tokens`; where none has them 0 for each, as `amin simulate` reads such a log."""
    values = [row.fields.get("num_prompt_tokens") for row in rows]
    if all(value is None for value in values):
        logger.warning("%s: no num_prompt_tokens; prompts count as 0 tokens", data)
        return [0] * len(rows)
    for row, value in zip(rows, values, strict=True):
        if not isinstance(value, int):
            row.fail("num_prompt_tokens", "must be a whole number to simulate with")
    return [value for value in values if isinstance(value, int)]


def _figures(
    candidates: Sequence[Candidate],
    by_tau: Mapping[float, Workload],
    worker: Worker,
    load: float | None,
    settings: TuneSettings,
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each candidate by its name, a seed each, on the same requests."""
    base, targets = by_tau[candidates[0].tau], Targets(settings.ttft_target, settings.tpot_target)
    tokens = served_tokens(base, worker)
    sample = resample(base, settings.requests, None, tokens, np.random.default_rng(0))
    iteration = 1.0 if load is None else seconds_per_iteration(worker, sample)
    figures: dict[str, list[dict[str, Any]]] = {}
    total = len(candidates) * settings.seeds
    with tqdm(total=total, desc=candidates[0].policy, unit="run", disable=not settings.progress) as bar:
        for candidate in candidates:
            for seed in range(settings.seeds):
                rng = np.random.default_rng(seed)
                drawn = stretched(resample(by_tau[candidate.tau], settings.requests, load, tokens, rng), iteration)
                options: dict[str, Any] = dict(candidate.options)
                result = simulate(candidate.policy, drawn, worker, seed, **options)
                run = {**summarize(result, worker.kv_cache), **service(result, targets)}
                figures.setdefault(candidate.name, []).append(run)
                bar.update()
    return figures


def loss(run: Mapping[str, Any], objective: str) -> float:
    """Return what is to be small: mean latency, its 0.99 quantile, or the time for a request that keeps the targets."""
    if objective == "goodput":
        return 1 / max(float(run["goodput"]), 1e-12)
    return float(run[f"{objective}_latency"])


def choose(
    candidates: Sequence[Candidate], figures: Mapping[str, Sequence[Mapping[str, Any]]], objective: str = "mean"
) -> Candidate:
    """Return the candidate nearest to the default among those that are not told from the best.

    Told apart means: the 95 % interval of their difference on the same requests (Student's t) leaves out 0. One
    standard error, the usual rule, lets the best of many candidates win by chance too often.
    """
    losses = {c.name: np.array([loss(run, objective) for run in figures[c.name]]) for c in candidates}
    best = min(candidates, key=lambda c: float(losses[c.name].mean()))

    def is_near(candidate: Candidate) -> bool:
        difference = losses[candidate.name] - losses[best.name]
        width: Any = (interval_over_seeds([{"difference": value} for value in difference]) or {})["difference"]
        return bool(difference.mean() <= width)

    near = [candidate for candidate in candidates if is_near(candidate)]
    return min(near, key=lambda c: (c.num_changes, float(losses[c.name].mean())))


def all_tie(figures: Mapping[str, Sequence[Mapping[str, Any]]], objective: str) -> bool:
    """Return whether every candidate comes to the same in every seed, as where nothing ever waits."""
    losses = [[loss(run, objective) for run in runs] for runs in figures.values()]
    return all(each == losses[0] for each in losses)


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("mean_latency", "p99_latency", "num_evictions", "recomputed_share", "attainment", "goodput")
    kept = [{name: run[name] for name in names} for run in runs]
    return {"mean": mean_over_seeds(kept), "interval_95": interval_over_seeds(kept)}


def _row(candidate: Candidate, figures: Mapping[str, Any], default: str, objective: str, mark: str) -> list[str]:
    runs, means = figures[candidate.name], _means(figures[candidate.name])
    pairs = zip(runs, figures[default], strict=True)
    ratios: list[dict[str, Any]] = [{"ratio": loss(run, objective) / loss(other, objective)} for run, other in pairs]
    ratio, width = mean_over_seeds(ratios)["ratio"], (interval_over_seeds(ratios) or {"ratio": 0.0})["ratio"]
    return [
        candidate.policy,
        candidate.name,
        f"{means['mean']['mean_latency']:.4g} ±{means['interval_95']['mean_latency']:.2g}",
        f"{ratio:.3f} ±{width:.3f}",
        f"{means['mean']['p99_latency']:.4g}",
        f"{means['mean']['num_evictions']:.0f}",
        f"{means['mean']['recomputed_share']:.0%}",
        mark,
    ]
