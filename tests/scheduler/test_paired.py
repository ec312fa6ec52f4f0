import numpy as np
import pytest

from scheduler.kv_cache import KvCache
from scheduler.metrics import after_warm_up, paired_with, summarize
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

KEYS = ("mean_latency", "p99_latency", "mean_ttft")


def figures(seed: int, value: float) -> dict[str, float]:
    """Figures of a seed, all the same."""
    return {"seed": seed, **dict.fromkeys(KEYS, value)}


def test_pairs_are_of_one_seed() -> None:
    """Ratios are taken within a seed, and a seed that only one of them has is left out."""
    reference = [figures(0, 10.0), figures(1, 40.0), figures(7, 1.0)]
    compared = paired_with(reference, [figures(1, 20.0), figures(0, 5.0), figures(2, 1.0)])
    assert compared is not None
    entry = compared["mean_latency"]
    assert (entry["ratio"], entry["ratio_interval_95"]) == (2.0, 0.0)
    assert entry["difference"] == -12.5
    assert entry["difference_interval_95"] == pytest.approx(12.706 * np.std([-5, -20], ddof=1) / np.sqrt(2))


def test_one_pair_has_no_interval_and_none_no_comparison() -> None:
    """None stands for what there is not."""
    compared = paired_with([figures(0, 10.0)], [figures(0, 5.0)])
    assert compared is not None
    assert compared["p99_latency"]["ratio_interval_95"] is None
    assert paired_with([figures(0, 10.0)], [figures(1, 5.0)]) is None


def test_the_warm_up_is_left_out() -> None:
    """The first to arrive and the time before the next one do not count; without a warm-up nothing changes."""
    requests = [Request(f"r{i}", 3, 10, arrival_time=float(20 * (3 - i))) for i in range(4)]
    kv_cache = KvCache(40)
    result = simulate("fcfs", Workload(requests, [2, 4, 6, 8]), Worker(kv_cache), 0)
    later = after_warm_up(result, 1)
    assert later.arrival_time.tolist() == [60.0, 40.0, 20.0]
    assert later.output_len.tolist() == [2, 4, 6]
    assert later.timeline.end.min() > 20
    assert summarize(later, kv_cache)["mean_latency"] == 4.0
    assert summarize(result, kv_cache)["throughput"] == pytest.approx(20 / 62)
    assert after_warm_up(result, 0) is result
