import numpy as np
import pytest

from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult, Timeline
from scheduler.metrics import mean_over_seeds, summarize


def test_the_figures_of_a_run_worked_by_hand() -> None:
    """Latencies are counted from arrival, utilization and queue depth by time rather than by iteration."""
    result = RunResult(
        arrival_time=np.array([1.0, 2.0, 3.0]),
        first_token_time=np.array([2.0, 5.0, 5.0]),
        finish_time=np.array([5.0, 6.0, 12.0]),
        num_evictions=np.array([0, 2, 1]),
        num_recomputed_tokens=np.array([0, 7, 4]),
        timeline=Timeline(
            end=[2.0, 5.0, 12.0],
            duration=[1.0, 3.0, 4.0],
            num_waiting=[0, 2, 1],
            num_running=[1, 1, 2],
            kv_blocks=[2, 4, 8],
        ),
    )
    assert summarize(result, KvCache(10, 16)) == pytest.approx(
        {
            "total_latency": 17,
            "mean_latency": 17 / 3,
            "p50_latency": 4,
            "p99_latency": 4 + 0.98 * 5,
            "mean_ttft": 2,
            "makespan": 11,
            "num_evictions": 3,
            "num_recomputed_tokens": 11,
            "max_evictions_per_request": 2,
            "mean_kv_utilization": (2 + 12 + 32) / 8 / 10,
            "mean_queue_depth": (0 + 6 + 4) / 8,
        }
    )


def test_the_mean_over_seeds_is_taken_figure_by_figure() -> None:
    """The seed itself is no figure."""
    seeds = [{"seed": 0, "mean_latency": 1.0, "num_evictions": 2}, {"seed": 1, "mean_latency": 2.0, "num_evictions": 5}]
    assert mean_over_seeds(seeds) == {"mean_latency": 1.5, "num_evictions": 3.5}
