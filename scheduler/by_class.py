"""What each class of requests got: its latencies, its evictions, and how often it was overtaken."""

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.kv_cache import Ints
from scheduler.loop import Floats, RunResult
from scheduler.metrics import Figures, Targets, kept_targets

BLOCK = 512


def by_class(result: RunResult, classes: Sequence[str], targets: Targets) -> dict[str, Figures]:
    """Return the figures of each class in order of its name; times in the executor's unit.

    Args:
        result: Of n requests.
        classes: Of each of them, n names; "" is a class as any other.
        targets: For attainment, where there are any.

    Keys:
        num_requests, mean_latency, p99_latency, mean_ttft, p99_ttft, num_evictions, max_evictions_per_request: as in
            `scheduler.metrics.summarize`, of the class alone.
        recomputed_share: Recomputed tokens over output tokens.
        mean_overtaken, max_overtaken: Requests that arrived later and were admitted before, to their first admission.
        attainment: Share of requests that keep all targets.
    """
    latency, ttft = (each - result.arrival_time for each in (result.finish_time, result.first_token_time))
    overtaken, in_time = num_overtaken(result), kept_targets(result, targets)
    numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
    of_each = np.array([numbers[name] for name in classes])
    figures: dict[str, Figures] = {}
    for name, number in numbers.items():
        mine = of_each == number
        lost, born = result.num_recomputed_tokens[mine].sum(), result.output_len[mine].sum()
        figures[name] = {
            "num_requests": int(mine.sum()),
            "mean_latency": float(latency[mine].mean()),
            "p99_latency": float(np.quantile(latency[mine], 0.99)),
            "mean_ttft": float(ttft[mine].mean()),
            "p99_ttft": float(np.quantile(ttft[mine], 0.99)),
            "num_evictions": int(result.num_evictions[mine].sum()),
            "max_evictions_per_request": int(result.num_evictions[mine].max()),
            "recomputed_share": float(lost / born),
            "mean_overtaken": float(overtaken[mine].mean()),
            "max_overtaken": int(overtaken[mine].max()),
        }
        if targets != Targets():
            figures[name]["attainment"] = float(in_time[mine].mean())
    return figures


def classes_over_seeds(seeds: Sequence[Mapping[str, Figures]]) -> dict[str, Figures]:
    """Return the mean of every class's figures over the seeds in which it occurs."""
    names = sorted({name for seed in seeds for name in seed})
    found = {name: [seed[name] for seed in seeds if name in seed] for name in names}
    return {
        name: {key: float(np.mean([figures[key] for figures in each])) for key in each[0]}
        for name, each in found.items()
    }


def num_overtaken(result: RunResult) -> Ints:
    """Return how many that arrived later were admitted before each request, for the first time; shape [n].

    Of equal arrivals the one that stands first in the workload came first; of equal admissions none is before.
    """
    order = np.argsort(result.arrival_time, kind="stable")
    counts = np.empty(len(order), dtype=np.int64)
    counts[order] = _later_and_less(result.admission_time[order])
    return counts


def _later_and_less(values: Floats) -> Ints:
    """Return for each value how many after it are less; pairs of blocks, each twice as long as before."""
    size = len(values)
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, size, BLOCK):
        block = values[start : start + BLOCK]
        counts[start : start + BLOCK] = np.triu(block[:, None] > block[None, :]).sum(axis=1)
    width = BLOCK
    while width < size:
        for start in range(0, size - width, 2 * width):
            later = np.sort(values[start + width : start + 2 * width])
            counts[start : start + width] += later.searchsorted(values[start : start + width])
        width *= 2
    return counts
