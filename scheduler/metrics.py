"""Latency and memory figures of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.kv_cache import Ints, KvCache
from scheduler.loop import RunResult, Timeline

Figures = dict[str, float | list[float]]
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 0.975 quantile of Student's t with 1, 2, ... 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request is to keep: time to its first token, and time per output token after it; None for no target."""

    ttft: float | None = None
    tpot: float | None = None


def service(result: RunResult, targets: Targets) -> Figures:
    """Return `attainment`, the share of requests that keep all targets, and `goodput`, those per unit of time.

    Goodput as in DistServe (OSDI'24).
    """
    kept = kept_targets(result, targets)
    span = float(result.finish_time.max() - result.arrival_time.min())
    return {"attainment": float(kept.mean()), "goodput": float(kept.sum()) / span}


def kept_targets(result: RunResult, targets: Targets) -> NDArray[np.bool_]:
    """Return which requests keep all targets, shape [n]; an answer of one token keeps any for the time per token."""
    kept = np.ones(len(result.output_len), dtype=np.bool_)
    if targets.ttft is not None:
        kept &= result.first_token_time - result.arrival_time <= targets.ttft
    if targets.tpot is not None:
        further = result.finish_time - result.first_token_time
        kept &= further <= targets.tpot * (result.output_len - 1)
    return kept


def summarize(result: RunResult, kv_cache: KvCache) -> Figures:
    """Return the figures of one run; times in the executor's unit.

    Keys:
        total_latency, mean_latency, p50_latency, p99_latency: Completion - arrival.
        p99_latency_by_length_decile: Ten of them, of the shortest tenth of the answers first.
        mean_ttft, p99_ttft: First token - arrival.
        mean_tpot: Time per output token after the first, over requests with two or more; evictions included.
        mean_queueing_delay: First admission - arrival.
        max_slowdown: Largest ratio of a request's latency to what its tokens take at the mean duration of an
            iteration in this run: who starved most.
        makespan: Last completion - first arrival.
        throughput: Output tokens over the makespan.
        num_evictions, num_recomputed_tokens, max_evictions_per_request.
        recomputed_share: Recomputed tokens over output tokens.
        mean_kv_utilization: Weighted by the time of iterations; between the first and the last of an entry of the
            timeline, blocks are taken to grow evenly.
        mean_queue_depth: Weighted by time in which requests run or wait; those that wait for a prediction included.
    """
    latency = result.finish_time - result.arrival_time
    ttft = result.first_token_time - result.arrival_time
    duration = np.asarray(result.timeline.duration)
    busy = float(duration[np.asarray(result.timeline.num_iterations) > 0].sum())
    makespan = float(result.finish_time.max() - result.arrival_time.min())
    iteration = busy / float(np.sum(result.timeline.num_iterations))
    blocks = (np.asarray(result.timeline.kv_blocks) + np.asarray(result.timeline.first_kv_blocks)) / 2
    by_length = np.array_split(latency[np.argsort(result.output_len, kind="stable")], 10)
    longer = result.output_len > 1
    tpot = (result.finish_time - result.first_token_time)[longer] / (result.output_len[longer] - 1)
    return {
        "total_latency": float(latency.sum()),
        "mean_latency": float(latency.mean()),
        "p50_latency": float(np.quantile(latency, 0.5)),
        "p99_latency": float(np.quantile(latency, 0.99)),
        "p99_latency_by_length_decile": [float(np.quantile(tenth, 0.99)) for tenth in by_length if len(tenth)],
        "mean_ttft": float(ttft.mean()),
        "p99_ttft": float(np.quantile(ttft, 0.99)),
        "mean_tpot": float(tpot.mean()) if len(tpot) else 0.0,
        "mean_queueing_delay": float((result.admission_time - result.arrival_time).mean()),
        "max_slowdown": float((latency / (result.output_len * iteration)).max()),
        "makespan": makespan,
        "throughput": float(result.output_len.sum()) / makespan,
        "num_evictions": int(result.num_evictions.sum()),
        "num_recomputed_tokens": int(result.num_recomputed_tokens.sum()),
        "max_evictions_per_request": int(result.num_evictions.max()),
        "recomputed_share": float(result.num_recomputed_tokens.sum() / result.output_len.sum()),
        "mean_kv_utilization": float(duration @ blocks) / busy / kv_cache.num_blocks,
        "mean_queue_depth": float(duration @ np.asarray(result.timeline.num_waiting) / duration.sum()),
    }


def after_warm_up(result: RunResult, num_requests: int) -> RunResult:
    """Return the result without the first `num_requests` to arrive, and without the time before the next one."""
    if not num_requests:
        return result
    kept = after_first(result, num_requests)
    later = result.timeline.end > result.arrival_time[kept].min()
    timeline = Timeline(**{field.name: getattr(result.timeline, field.name)[later] for field in fields(Timeline)})
    columns = {field.name: getattr(result, field.name) for field in fields(RunResult) if field.name != "timeline"}
    return RunResult(**{name: column[kept] for name, column in columns.items()}, timeline=timeline)


def after_first(result: RunResult, num_requests: int) -> Ints:
    """Return the indices of all but the first `num_requests` to arrive."""
    return np.sort(np.argsort(result.arrival_time, kind="stable")[num_requests:])


def paired_with(reference: Sequence[Mapping[str, Any]], seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return by latency figure how a policy compares with a reference on the same requests, or None without a pair.

    Of each figure the mean over the seeds that both have of the reference's value over the policy's (`ratio`) and of
    the policy's minus the reference's (`difference`), with half the widths of their 95 % intervals (None for one seed).
    """
    by_seed = {figures["seed"]: figures for figures in reference}
    pairs = [(by_seed[figures["seed"]], figures) for figures in seeds if figures["seed"] in by_seed]
    if not pairs:
        return None
    compared: dict[str, Any] = {}
    for key in ("mean_latency", "p99_latency", "mean_ttft"):
        each = [{"ratio": theirs[key] / ours[key], "difference": ours[key] - theirs[key]} for theirs, ours in pairs]
        width = interval_over_seeds(each)
        entry = {**mean_over_seeds(each), **{f"{name}_interval_95": None for name in each[0]}}
        compared[key] = entry | {f"{name}_interval_95": value for name, value in (width or {}).items()}
    return compared


def mean_over_seeds(seeds: Sequence[Mapping[str, Any]]) -> Figures:
    """Return the mean of every figure over runs that differ in their seed."""
    return {key: _plain(np.mean([seed[key] for seed in seeds], axis=0)) for key in seeds[0] if key != "seed"}


def interval_over_seeds(seeds: Sequence[Mapping[str, Any]]) -> Figures | None:
    """Return half the width of the 95 % confidence interval of each mean (Student's t), or None for a single seed."""
    count = len(seeds)
    if count < 2:
        return None
    quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
    return {
        key: _plain(quantile * np.std([seed[key] for seed in seeds], axis=0, ddof=1) / math.sqrt(count))
        for key in seeds[0]
        if key != "seed"
    }


def _plain(value: Any) -> float | list[float]:
    plain: float | list[float] = np.asarray(value).tolist()
    return plain
