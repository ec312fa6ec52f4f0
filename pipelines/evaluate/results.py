"""`results.json` of `amin evaluate`."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from pipelines.evaluate.case import Case
from pipelines.evaluate.run import MeasuredRun, reads_predictions
from pipelines.results import policy_figures
from pipelines.served_model.loading import ServedModel
from pipelines.settings.evaluate import EvaluateSettings
from scheduler.kv_cache import KvCache


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
        "identical_outputs": _identical(runs) if settings.decoding == "greedy" else None,
        "environment": environment(served),
        "policies": policies,
    }


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
