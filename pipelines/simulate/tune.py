"""Choose tau of amin and the levels of amin-survival by simulated latency on the user's own records."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.errors import InputError

if TYPE_CHECKING:
    from predictor.spec import LengthPredictorLike
    from scheduler.worker import Worker
    from scheduler.workload import Workload

HELP = "choose tau and the levels of amin-survival by simulated latency on your records"
EPILOG = """example:
  amin tune serving --data records.parquet --split calibration --kv-budget 16492 --load 0.9 --cost-model cost.json
"""


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
    {"ageing": 0.0},
    {"ageing": 0.02},
)
CANDIDATES: Mapping[str, Sequence[Candidate]] = {
    "amin": [Candidate("amin", tau) for tau in (0.1, 0.05, 0.2, 0.3, 0.5)],
    "amin-survival": [Candidate("amin-survival", options=options) for options in LEVELS],
}
"""By policy, the default first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("path", metavar="SERVING", type=Path, help="folder that amin export or amin train wrote")
    parser.add_argument("--data", type=Path, required=True, help="records with num_prompt_tokens (.parquet or .jsonl)")
    parser.add_argument(
        "--split",
        help="whose prompts are served, not those you report on (default: calibration where the data has splits, else "
        "all)",
    )
    parser.add_argument("--model", help="served model to predict for, and whose records count; default: the folder's")
    parser.add_argument("--kv-budget", type=int, required=True, help="tokens that the KV cache holds")
    parser.add_argument("--block-size", type=int, default=1, help="tokens per KV block")
    parser.add_argument("--load", default="0.9", help="arrival rate as a share of what can be served, or at-once")
    parser.add_argument("--cost-model", default="iteration", help="iteration, or a JSON file of seconds")
    parser.add_argument("--eviction", choices=["restart", "resume"], default="resume", help="as your engine evicts")
    parser.add_argument("--requests", type=int, default=1000, help="of a run; drawn with replacement, by seed")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each candidate, on the same requests")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True, help="show progress bars")


def run(args: argparse.Namespace) -> None:
    """Simulate every candidate, print the table, write `scheduling.json` into the folder.

    Raises:
        InputError: a file, row or option that the user can mend.
    """
    from pipelines.files import write_json
    from pipelines.results import print_table
    from pipelines.scheduling import FILE_NAME
    from pipelines.simulate.stage import make_worker
    from predictor.resolve import resolve_predictor
    from predictor.training.checkpoint import predictor_folder

    load = _load(args.load)
    for option in ("requests", "seeds"):
        if getattr(args, option) < 2:
            raise InputError(f"--{option} is {getattr(args, option)}, must be >= 2: a choice needs an interval")
    worker = make_worker(argparse.Namespace(**vars(args), watermark=0.0, max_running=None, max_batch_tokens=None))
    length_predictor = resolve_predictor(args.path)
    by_tau = _workloads(args, length_predictor)
    policies: dict[str, Any] = {}
    rows = []
    for policy, candidates in CANDIDATES.items():
        known = [candidate for candidate in candidates if candidate.tau in by_tau]
        figures = _figures(known, by_tau, worker, load, args)
        best = choose(known, figures)
        policies[policy] = {
            "tau" if policy == "amin" else "options": best.tau if policy == "amin" else dict(best.options),
            "candidates": [{"name": c.name, **_means(figures[c.name])} for c in known],
        }
        rows += [_row(c, figures, known[0].name, is_chosen=c == best) for c in known]
    unit = "iterations" if worker.cost_model is None else "seconds"
    print(
        f"{args.requests} requests of {len(by_tau[0.1].requests)} draws, {args.seeds} seeds, load {args.load}, {unit}"
    )
    header = ["policy", "candidate", "mean latency", "against the default", "p99", "evictions", "recomputed", ""]
    print_table(header, rows)
    folder = args.path if (args.path / "manifest.json").is_file() else predictor_folder(args.path)
    names = ("kv_budget", "block_size", "load", "cost_model", "eviction", "split", "requests", "seeds")
    setting = {name: getattr(args, name) for name in names}
    model = length_predictor.spec.choose(args.model)
    write_json(folder / FILE_NAME, {"served_model": model, **setting, "policies": policies})
    print(f"{folder / FILE_NAME}: pass it to amin simulate or amin evaluate as --scheduling")


def _load(text: str) -> float | None:
    try:
        return None if text == "at-once" else float(text)
    except ValueError as error:
        raise InputError(f"--load is {text!r}, must be a number or at-once") from error


def _workloads(args: argparse.Namespace, length_predictor: "LengthPredictorLike") -> "dict[float, Workload]":
    """Return the draws of the records as requests, by tau of their lower bounds; taus too fine to calibrate are out."""
    import numpy as np

    from pipelines.predict import survivals_with_progress
    from predictor.bounds.distribution import lower_bound
    from predictor.records.records import prompt_of, records_from_rows, select_rows
    from scheduler.forecast import Forecast
    from scheduler.request import Request
    from scheduler.workload import Workload

    spec = length_predictor.spec
    model = spec.choose(args.model)
    rows = select_rows(args.data, None, args.split)
    if args.split is None and any(row.text("split") for row in rows):
        calibration_rows = [row for row in rows if row.text("split") == "calibration"]
        rows = calibration_rows or select_rows(args.data, None, "calibration")  # which says what splits there are
    rows = [row for row in rows if row.text("model") == model] or rows
    records = records_from_rows(rows)
    prompts = [prompt_of(row, spec.chat_options).prompt for row in rows]
    survivals = survivals_with_progress(length_predictor, prompts, "predict", shown=args.progress)
    survival = spec.survival_of(survivals, model)
    longest, edges, calibration = spec.bins.max_length, np.asarray(spec.bins.to_list()), spec.calibration(model)
    taus = {candidate.tau for candidates in CANDIDATES.values() for candidate in candidates}
    taus = {tau for tau in taus if tau == Candidate("amin").tau or tau * (calibration.lengths.num_prompts + 1) >= 1}
    workloads = {}
    for tau in taus:
        bounds = lower_bound(spec.bins, survival, calibration.level(tau)).tolist()
        requests, lens = [], []
        for row, bound, curve, draws in zip(rows, bounds, survival, records.output_lens, strict=True):
            tokens, forecast = row.fields.get("num_prompt_tokens"), Forecast(edges, np.asarray(curve, dtype=np.float64))
            if not isinstance(tokens, int):
                row.fail("num_prompt_tokens", "must be a whole number to simulate with")
            for length in draws.tolist():
                facts = Request("r", tokens, longest, output_len_lower_bound=min(bound, longest), forecast=forecast)
                requests.append(facts)
                lens.append(min(length, longest))
        workloads[tau] = Workload(requests, lens)
    return workloads


def _figures(
    candidates: Sequence[Candidate], by_tau: "Mapping[float, Workload]", worker: "Worker", load: float | None, args: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each candidate by its name, a seed each, on the same requests."""
    import numpy as np
    from tqdm import tqdm

    from pipelines.simulate.resampling import resample, seconds_per_iteration, stretched
    from scheduler.metrics import summarize
    from scheduler.simulation import simulate

    some = resample(by_tau[candidates[0].tau], args.requests, None, args.kv_budget, np.random.default_rng(0))
    pace = 1.0 if load is None else seconds_per_iteration(worker, some)
    figures: dict[str, list[dict[str, Any]]] = {}
    bar = tqdm(total=len(candidates) * args.seeds, desc=candidates[0].policy, unit="run", disable=not args.progress)
    for candidate in candidates:
        for seed in range(args.seeds):
            drawn = resample(by_tau[candidate.tau], args.requests, load, args.kv_budget, np.random.default_rng(seed))
            options: dict[str, Any] = dict(candidate.options)
            result = simulate(candidate.policy, stretched(drawn, pace), worker, seed, **options)
            figures.setdefault(candidate.name, []).append(dict(summarize(result, worker.kv_cache)))
            bar.update()
    bar.close()
    return figures


def choose(candidates: Sequence[Candidate], figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> Candidate:
    """Return the candidate nearest to the default among those that are not told from the one of least mean latency.

    Told apart means: the 95 % interval of their difference on the same requests (Student's t) leaves out 0. One
    standard error, the usual rule, lets the best of many candidates win by chance too often.
    """
    import numpy as np

    from scheduler.metrics import interval_over_seeds

    latency = {c.name: np.array([run["mean_latency"] for run in figures[c.name]]) for c in candidates}
    best = min(candidates, key=lambda c: float(latency[c.name].mean()))

    def is_near(candidate: Candidate) -> bool:
        difference = latency[candidate.name] - latency[best.name]
        width: Any = (interval_over_seeds([{"difference": value} for value in difference]) or {})["difference"]
        return bool(difference.mean() <= width)

    near = [candidate for candidate in candidates if is_near(candidate)]
    return min(near, key=lambda c: (c.num_changes, float(latency[c.name].mean())))


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from scheduler.metrics import interval_over_seeds, mean_over_seeds

    names = ("mean_latency", "p99_latency", "num_evictions", "recomputed_share")
    kept = [{name: run[name] for name in names} for run in runs]
    return {"mean": mean_over_seeds(kept), "interval_95": interval_over_seeds(kept)}


def _row(candidate: Candidate, figures: Mapping[str, Any], default: str, *, is_chosen: bool) -> list[str]:
    from scheduler.metrics import interval_over_seeds, mean_over_seeds

    runs, means = figures[candidate.name], _means(figures[candidate.name])
    pairs = zip(runs, figures[default], strict=True)
    ratios: list[dict[str, Any]] = [{"ratio": run["mean_latency"] / other["mean_latency"]} for run, other in pairs]
    ratio, width = mean_over_seeds(ratios)["ratio"], (interval_over_seeds(ratios) or {"ratio": 0.0})["ratio"]
    return [
        candidate.policy,
        candidate.name,
        f"{means['mean']['mean_latency']:.4g} ±{means['interval_95']['mean_latency']:.2g}",
        f"{ratio:.3f} ±{width:.3f}",
        f"{means['mean']['p99_latency']:.4g}",
        f"{means['mean']['num_evictions']:.0f}",
        f"{means['mean']['recomputed_share']:.0%}",
        "chosen" if is_chosen else "",
    ]
