"""Simulate a workload under every policy asked for; needs no torch."""

import platform
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.results import PolicyRun, policy_figures, print_tables, write_results
from pipelines.scheduling import policy_options
from pipelines.settings.simulate import SimulateSettings
from pipelines.simulate.workers import described, make_worker, setting, unit
from pipelines.simulate.workloads import (
    arriving_at,
    iteration_time,
    lacks,
    read_base,
    served_tokens,
    states_caps,
    with_predictions,
    with_times,
)
from scheduler.errors import InputError
from scheduler.latency_bounds import total_latency_lower_bound
from scheduler.metrics import Targets
from scheduler.policies import POLICIES
from scheduler.policies.siblings.with_siblings import siblings_among
from scheduler.simulation.replicas import simulate_replicas
from scheduler.worker import Worker
from scheduler.workload import Workload


def run(settings: SimulateSettings) -> None:
    """Run every policy and seed, write the results, print the table."""
    names = policy_names(settings.policies)
    worker = make_worker(settings.worker)
    base = read_base(settings.source, worker.kv_cache)
    most = {"max_overtakes": limits_by_class(settings.max_overtakes, {r.service_class for r in base.requests})}
    groups = {"sibling_correlation": settings.sibling_correlation} if siblings_among(base.requests) else {}
    options = {name: {**policy_options(settings.scheduling, name), **most, **groups} for name in names}
    _require_states(settings, base)
    workloads = _workloads(settings, base, worker)
    names = _served(names, next(iter(workloads)), worker, is_asked=settings.policies != "all")
    runs = _runs(settings, names, workloads, worker, options)
    workload = workloads[-1]
    prompt_tokens = [request.num_prompt_tokens for request in workload.requests]
    bound = None
    is_at_once = all(request.arrival_time == 0 for request in workload.requests)
    if worker.cost_model is None and is_at_once and settings.worker.replicas == 1:
        bound = total_latency_lower_bound(prompt_tokens, workload.output_lens, settings.worker.tokens())
    targets = Targets(settings.ttft_target, settings.tpot_target)
    policies = policy_figures(runs, worker.kv_cache, bound, targets)
    results = {
        **_setting(settings, workload),
        "total_latency_lower_bound": bound,
        "environment": _environment(),
        "policies": policies,
    }
    write_results(settings.out, results, runs)
    print(
        f"{len(prompt_tokens)} requests, {described(settings.worker)}, {settings.seeds} seeds; {unit(settings.worker)}"
    )
    print_tables(policies)
    _print_notes(results, len(prompt_tokens))


def _require_states(settings: SimulateSettings, base: Workload) -> None:
    """Raise InputError where prompts are to be read ahead and no request says what that would tell."""
    if settings.look_ahead and settings.predictions is not None:
        raise InputError("--look-ahead: tells renewals of the workload, and --predictions takes their place; give one")
    if settings.look_ahead and not any(each[0].num_generated == 0 for each in base.renewals.values()):
        raise InputError(
            f"--look-ahead: no request of {settings.source.workload} has renewals after 0 tokens; leave it out"
        )


def _workloads(settings: SimulateSettings, base: Workload, worker: Worker) -> list[Workload]:
    """Return the workload of each seed: random arrivals and predictions differ between seeds, and nothing else."""
    iteration = iteration_time(worker, base, settings.load)
    tokens = served_tokens(base, worker, settings.worker.replicas)
    workloads = []
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        timed = arriving_at(base, settings.arrivals, settings.load, tokens, rng)
        if iteration != 1.0:
            timed = with_times(timed, [request.arrival_time * iteration for request in timed.requests])
        workloads.append(with_predictions(timed, settings.predictions, rng))
    return workloads


def _served(names: Sequence[str], workload: Workload, worker: Worker, *, is_asked: bool) -> Sequence[str]:
    """Return the policies that have what they read for; InputError for one that the user named and that lacks it."""
    has_caps = states_caps(workload, worker.kv_cache)
    missing = {name: reason for name in names if (reason := lacks(name, workload, has_caps=has_caps)) is not None}
    for name, reason in missing.items():
        if is_asked:
            raise InputError(f"policy {name} needs {reason}")
        print(f"without {name}, which needs {reason}")
    return [name for name in names if name not in missing]


def _runs(
    settings: SimulateSettings,
    names: Sequence[str],
    workloads: Sequence[Workload],
    worker: Worker,
    options: Mapping[str, Mapping[str, Any]],
) -> list[PolicyRun]:
    runs: list[PolicyRun] = []
    total = sum(len(workload.requests) for workload in workloads) * len(names)
    with tqdm(total=total, desc="simulate", unit="request", disable=not settings.progress) as bar:
        for seed, workload in enumerate(workloads):
            for name in names:
                result = simulate_replicas(
                    name,
                    workload,
                    worker,
                    seed,
                    replicas=settings.worker.replicas,
                    routing=settings.routing,
                    on_finish=lambda finished: bar.update(len(finished)) and None,
                    look_ahead=settings.look_ahead,
                    **options[name],
                )
                runs.append(PolicyRun(name, seed, workload.requests, result))
    return runs


def _setting(settings: SimulateSettings, workload: Workload) -> dict[str, Any]:
    lower = np.array([request.output_len_lower_bound for request in workload.requests])
    lens = np.array(workload.output_lens)
    return {
        "workload": {
            "file": Path(settings.source.workload).name,
            "num_requests": len(workload.requests),
            "num_prompt_tokens": sum(request.num_prompt_tokens for request in workload.requests),
            "num_output_tokens": sum(workload.output_lens),
            "arrivals": settings.arrivals,
            "load": settings.load,
            "predictions": settings.predictions,
        },
        **setting(settings.worker),
        "routing": settings.routing if settings.worker.replicas > 1 else None,
        "targets": {"ttft": settings.ttft_target, "tpot": settings.tpot_target},
        "sibling_correlation": settings.sibling_correlation if siblings_among(workload.requests) else None,
        "max_overtakes": settings.max_overtakes,
        "look_ahead": settings.look_ahead,
        "scheduling": None if settings.scheduling is None else str(settings.scheduling),
        "bounds": {"coverage": float((lower <= lens).mean()), "tightness": float(lower.mean() / lens.mean())},
    }


def _environment() -> dict[str, Any]:
    return {
        "command": "amin " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _print_notes(results: Mapping[str, Any], count: int) -> None:
    bound, bounds = results["total_latency_lower_bound"], results["bounds"]
    coverage, tightness = bounds["coverage"], bounds["tightness"]
    print(f"lower bounds: coverage {coverage:.3f}, tightness {tightness:.2f} (mean bound / mean length; last seed)")
    if bound is not None:
        print(f"no schedule has a mean latency below {bound / count:.1f} (volume bound)")


def limits_by_class(text: str | None, classes: Set[str]) -> dict[str, int] | None:
    """Return the limits of `--max-overtakes`, by class, "" for all; InputError for a wrong text or no such class."""
    if text is None:
        return None
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, sign, count = part.strip().rpartition("=")
        if not count.isdecimal() or name in limits or bool(sign) != bool(name):
            raise InputError(f"--max-overtakes is {text!r}; give a whole number, or CLASS=NUMBER,... each class once")
        if name and name not in classes:
            there = ", ".join(sorted(classes - {""})) or "none"
            raise InputError(f"--max-overtakes: no request has the class {name!r}; the workload has {there}")
        limits[name] = int(count)
    return limits


def policy_names(text: str) -> Sequence[str]:
    """Return the policies that a comma-separated option names; InputError for an unknown one."""
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InputError(f"--policies: unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    return list(dict.fromkeys(names))
