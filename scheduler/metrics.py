"""Latency and memory figures of a run."""

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult


def summarize(result: RunResult, kv_cache: KvCache) -> dict[str, float]:
    """Return the figures of one run; times in the executor's unit.

    Keys: total_latency, mean_latency, p50_latency, p99_latency (completion - arrival), mean_ttft (first token -
    arrival), makespan (last completion - first arrival), num_evictions, num_recomputed_tokens,
    max_evictions_per_request, mean_kv_utilization and mean_queue_depth (both weighted by time).
    """
    latency = result.finish_time - result.arrival_time
    duration = np.asarray(result.timeline.duration)
    busy = float(duration.sum())
    return {
        "total_latency": float(latency.sum()),
        "mean_latency": float(latency.mean()),
        "p50_latency": float(np.quantile(latency, 0.5)),
        "p99_latency": float(np.quantile(latency, 0.99)),
        "mean_ttft": float((result.first_token_time - result.arrival_time).mean()),
        "makespan": float(result.finish_time.max() - result.arrival_time.min()),
        "num_evictions": int(result.num_evictions.sum()),
        "num_recomputed_tokens": int(result.num_recomputed_tokens.sum()),
        "max_evictions_per_request": int(result.num_evictions.max()),
        "mean_kv_utilization": float(duration @ result.timeline.kv_blocks) / busy / kv_cache.num_blocks,
        "mean_queue_depth": float(duration @ result.timeline.num_waiting) / busy,
    }


def mean_over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every figure over runs that differ in their seed."""
    return {key: float(np.mean([figures[key] for figures in seeds])) for key in seeds[0] if key != "seed"}
