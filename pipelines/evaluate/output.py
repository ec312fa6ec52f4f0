"""What `amin evaluate` writes and prints once its runs are there, or as many as an interruption left."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pipelines.evaluate.case import Case
from pipelines.evaluate.cost_fit import FittedCost, fit_cost_model
from pipelines.evaluate.replay import replay
from pipelines.evaluate.report import write_report
from pipelines.evaluate.run import ENGINE_FIFO, MeasuredRun, reads_predictions
from pipelines.evaluate.sweep import sweep
from pipelines.files import write_json
from pipelines.probe.use import is_mixed
from pipelines.results import policy_figures, print_tables, write_results
from pipelines.served_model.loading import ServedModel
from pipelines.settings.evaluate import EvaluateSettings
from pipelines.simulate.workload_file import write_workload
from predictor.probe.probe import Probe
from scheduler.kv_cache import KvCache
from scheduler.worker import Worker
from scheduler.workload import Workload


def write_all(
    settings: EvaluateSettings,
    served: ServedModel,
    case: Case,
    kv_cache: KvCache,
    runs: Sequence[MeasuredRun],
    missing: Sequence[str],
) -> None:
    """Write results and report of the finished runs, marked as partial where some are `missing`; print the table."""
    results = evaluation_results(settings, served, case, kv_cache, runs)
    results |= {"partial": bool(missing), "missing_runs": list(missing)}
    iterations = np.concatenate([measured.iterations for measured in runs])
    shown = _bounds_and_lens(case, runs)
    if len(iterations) and not missing:  # an interruption is not made to wait for the simulator
        fitted = fit_cost_model(iterations)
        resume = settings.eviction == "resume"
        worker = Worker(
            kv_cache, resume=resume, cost_model=fitted.cost_model, max_batch_tokens=settings.max_batch_tokens
        )
        replayed = replay(runs, worker, case.policy_options, settings.look_ahead)
        results |= {"cost_fit": _write_inputs(settings, worker, fitted, runs), "replay": replayed}
    policy_runs = [measured.run for measured in runs]
    write_results(settings.out, results, policy_runs)
    write_report(settings.out, results, policy_runs, *shown)
    if settings.sweep and "cost_fit" in results:
        results["sweep"] = sweep(settings, served, case, shown[1], worker)
        write_results(settings.out, results, policy_runs)
        write_report(settings.out, results, policy_runs, *shown)
    print(f"{len(case.facts)} requests, {kv_cache.num_blocks} blocks of {kv_cache.block_size}; times in seconds")
    print_tables(results["policies"])
    for name, same in (results["identical_outputs"] or {}).items():
        print(f"{name}: tokens identical to the unconstrained run for {same} of {len(case.facts)} requests")
    if results["probe"] is not None:
        print(_in_words(results["probe"]))
    if results.get("replay"):
        ratios = [f"{name} {entry['simulated_over_measured']:.2f}" for name, entry in results["replay"].items()]
        print(f"simulated over measured mean latency: {', '.join(ratios)}")
    if missing:
        print(f"PARTIAL: {len(missing)} runs are missing; --resume continues")
    print(f"report: {settings.out / 'report.html'}")


def _write_inputs(
    settings: EvaluateSettings, worker: Worker, fitted: FittedCost, runs: Sequence[MeasuredRun]
) -> dict[str, Any]:
    """Write cost model and workload for `amin simulate`; return the fit and the command that reads them."""
    write_json(settings.out / "cost_model.json", asdict(fitted.cost_model))
    shown = _with_predictions(runs)
    workload = settings.out / "workload.jsonl"
    write_workload(workload, Workload(list(shown.run.requests), shown.run.result.output_len.tolist(), shown.renewals))
    bins = ["--bins", f"{workload}.bins.json"] if shown.run.requests[0].forecast is not None else []
    command = [
        "amin", "simulate", str(workload), *bins, "--kv-budget", str(worker.kv_cache.kv_budget), "--block-size",
        str(worker.kv_cache.block_size), "--cost-model", str(settings.out / "cost_model.json"),
        "--eviction", settings.eviction, "--max-batch-tokens", str(settings.max_batch_tokens),
        *_look_ahead(settings, shown),
        "--out", str(settings.out / "simulation"),
    ]  # fmt: skip
    return {
        "coefficients": asdict(fitted.cost_model),
        "num_iterations": fitted.num_iterations,
        "r_squared": fitted.r_squared,
        "simulate_command": shlex.join(command),
    }


def _look_ahead(settings: EvaluateSettings, shown: MeasuredRun) -> list[str]:
    """Return the option of `amin simulate`, which refuses it where no prompt was read ahead."""
    is_told = any(each[0].num_generated == 0 for each in shown.renewals.values())
    return ["--look-ahead", str(settings.look_ahead)] if is_told else []


def _with_predictions(runs: Sequence[MeasuredRun]) -> MeasuredRun:
    """Return a run whose requests carry predictions, or else the first of our loop."""
    ours = [measured for measured in runs if measured.run.policy != ENGINE_FIFO]
    return next((measured for measured in ours if reads_predictions(measured.run.policy)), ours[0])


def _bounds_and_lens(case: Case, runs: Sequence[MeasuredRun]) -> tuple[list[int], list[int]]:
    """Return the lower bounds, and the reference lengths or those of the first run."""
    bounds = [request.output_len_lower_bound for request in case.requests]
    if case.output_lens is not None:
        return bounds, case.output_lens
    lens = dict(zip(runs[0].order, runs[0].run.result.output_len.tolist(), strict=True))
    return bounds, [lens[i] for i in range(len(bounds))]


def evaluation_results(
    settings: EvaluateSettings, served: ServedModel, case: Case, kv_cache: KvCache, runs: Sequence[MeasuredRun]
) -> dict[str, Any]:
    """Return what `results.json` holds of the runs that have finished, at least one."""
    policies = policy_figures([measured.run for measured in runs], kv_cache)
    return {
        "workload": {
            "file": settings.prompts.name,
            "num_requests": len(case.facts),
            "num_warm_up": runs[0].run.num_warm_up,
            "num_prompt_tokens": sum(len(prompt) for prompt in case.prompts),
            "num_output_tokens": sum(case.output_lens) if case.output_lens else None,
            "arrivals": settings.arrivals,
            "decoding": settings.decoding,
        },
        "kv_budget": kv_cache.kv_budget,
        "block_size": kv_cache.block_size,
        "cost_model": "wall clock, seconds",
        "eviction": settings.eviction,
        "total_latency_lower_bound": None,
        "bounds": bound_figures(settings, case, runs),
        "probe": _probe_figures(settings, runs),
        "identical_outputs": _identical(runs) if settings.decoding == "greedy" else None,
        "environment": {**environment(served), "attention": _attention(runs)},
        "policies": policies,
    }


def _attention(runs: Sequence[MeasuredRun]) -> str:
    """Return which attention the newest run had; one of an earlier version does not say."""
    return next((measured.attention for measured in reversed(runs) if measured.attention), "")


def bound_figures(settings: EvaluateSettings, case: Case, runs: Sequence[MeasuredRun]) -> dict[str, Any]:
    """Return coverage and tightness of the bounds as the policies got them, fallbacks included.

    Where no policy has run that asks the predictor, of the bounds it gives without a time limit.
    """
    used = [measured for measured in runs if reads_predictions(measured.run.policy)]
    pairs = [
        (request.output_len_lower_bound, length)
        for measured in used
        for request, length in zip(measured.run.requests, measured.run.result.output_len.tolist(), strict=True)
    ]
    if not pairs and case.output_lens is not None:
        pairs = list(zip((r.output_len_lower_bound for r in case.requests), case.output_lens, strict=True))
    figures: dict[str, Any] = {
        "tau": settings.tau,
        "model": case.bounds.model,
        "mean_bound": float(np.mean([request.output_len_lower_bound for request in case.requests])),
        "timeout_ms": None if settings.arrivals == "all-at-once" else settings.predict_timeout,
        "fallback_share": _mean(used, "fallback_share"),
        "mean_prediction_delay": _mean(used, "mean_prediction_delay"),
    }
    if pairs:
        lower, lens = np.array(pairs).T
        figures |= {"coverage": float((lower <= lens).mean()), "tightness": float(lower.mean() / lens.mean())}
    return figures


def _probe_figures(settings: EvaluateSettings, runs: Sequence[MeasuredRun]) -> dict[str, Any] | None:
    """Return what a probe did in the runs under policies that read predictions; None without one, or such runs."""
    used = [measured for measured in runs if "renewal_share" in measured.run.extra]
    if not used:
        return None
    held = [
        renewal.output_len_lower_bound <= length
        for measured in used
        for index, length in enumerate(measured.run.result.output_len.tolist())
        for renewal in measured.renewals.get(index, ())
    ]
    return {
        "folder": str(settings.probe),
        "renew_every": settings.renew_every,
        "look_ahead": settings.look_ahead,
        "num_read_ahead": sum(int(measured.run.extra.get("num_read_ahead", 0)) for measured in used),
        "look_ahead_share": _mean(used, "look_ahead_share") if settings.look_ahead else None,
        "with_predictor": is_mixed(Probe.load(Path(str(settings.probe))), settings.predictor),
        "num_renewals": sum(int(measured.run.extra["num_renewals"]) for measured in used),
        "num_failed_states": sum(int(measured.run.extra["num_failed_states"]) for measured in used),
        "share_of_time": _mean(used, "renewal_share"),
        "coverage": float(np.mean(held)) if held else None,
    }


def _in_words(probe: Mapping[str, Any]) -> str:
    """Return what a probe did, in a line."""
    both = " with the predictor" if probe["with_predictor"] else ""
    text = f"probe{both}: {probe['num_renewals']} renewals in {probe['share_of_time']:.2%} of the time"
    if probe["coverage"] is not None:
        text += f", renewed bounds reached by {probe['coverage']:.1%}"
    if probe["look_ahead"] is not None:
        text += f"; {probe['num_read_ahead']} prompts read ahead in {probe['look_ahead_share']:.2%}"
    failed = probe["num_failed_states"]
    return text + (f"; {failed} states were not numbers: those requests kept their forecasts" if failed else "")


def _mean(used: Sequence[MeasuredRun], name: str) -> float | None:
    return float(np.mean([measured.run.extra[name] for measured in used])) if used else None


def _identical(runs: Sequence[MeasuredRun]) -> Mapping[str, int]:
    fewest = dict[str, int]()
    for measured in runs:
        name = measured.run.policy
        fewest[name] = min(measured.num_identical, fewest.get(name, measured.num_identical))
    return fewest


def environment(served: ServedModel) -> dict[str, Any]:
    """Return what the runs depend on besides their settings."""
    device = served.model.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "command": shlex.join(["amin", *sys.argv[1:]]),
        "served_model": served.name,
        "chat_template": served.tokenizer.chat_template is not None,
        "hardware": hardware,
        "dtype": str(served.model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
