import numpy as np
import pytest

from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult, Timeline
from scheduler.metrics import interval_over_seeds, mean_over_seeds, summarize


def test_the_figures_of_a_run_worked_by_hand() -> None:
    """Latencies are counted from arrival, utilization and queue depth by time rather than by iteration."""
    result = RunResult(
        arrival_time=np.array([1.0, 2.0, 3.0]),
        admission_time=np.array([1.0, 4.0, 3.0]),
        first_token_time=np.array([2.0, 5.0, 5.0]),
        finish_time=np.array([5.0, 6.0, 12.0]),
        output_len=np.array([4, 1, 3]),
        num_evictions=np.array([0, 2, 1]),
        num_recomputed_tokens=np.array([0, 7, 4]),
        timeline=Timeline(
            end=np.array([2.0, 5.0, 12.0]),
            duration=np.array([1.0, 3.0, 4.0]),
            num_iterations=np.array([1, 3, 2]),
            num_waiting=np.array([0, 2, 1]),
            num_running=np.array([1, 1, 2]),
            kv_blocks=np.array([2, 5, 8]),
            first_kv_blocks=np.array([2, 3, 8]),
        ),
    )
    figures = summarize(result, KvCache(10, 16))
    assert figures.pop("p99_latency_by_length_decile") == [4, 9, 4]
    assert figures == pytest.approx(
        {
            "total_latency": 17,
            "mean_latency": 17 / 3,
            "p50_latency": 4,
            "p99_latency": 4 + 0.98 * 5,
            "mean_ttft": 2,
            "p99_ttft": 2 + 0.98 * 1,
            "mean_tpot": (3 / 3 + 7 / 2) / 2,
            "mean_queueing_delay": 2 / 3,
            "max_slowdown": 4 / (8 / 6),
            "makespan": 11,
            "throughput": 8 / 11,
            "num_evictions": 3,
            "num_recomputed_tokens": 11,
            "max_evictions_per_request": 2,
            "recomputed_share": 11 / 8,
            "mean_kv_utilization": (2 + 12 + 32) / 8 / 10,
            "mean_queue_depth": (0 + 6 + 4) / 8,
        }
    )


def test_the_mean_over_seeds_is_taken_figure_by_figure() -> None:
    """The seed itself is no figure; a list is taken element by element."""
    seeds = [
        {"seed": 0, "mean_latency": 1.0, "by_decile": [2, 4]},
        {"seed": 1, "mean_latency": 2.0, "by_decile": [5, 5]},
    ]
    assert mean_over_seeds(seeds) == {"mean_latency": 1.5, "by_decile": [3.5, 4.5]}


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Of 4,000 sets of five normal figures about 95 % have an interval with the true mean in it: 0.95 +- 4 * 0.0034."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(4000):
        seeds = [{"seed": i, "x": value} for i, value in enumerate(rng.normal(3, 2, 5).tolist())]
        covered += abs(mean_over_seeds(seeds)["x"] - 3) <= interval_over_seeds(seeds)["x"]
    assert covered / 4000 == pytest.approx(0.95, abs=4 * 0.0034)


def test_a_single_seed_has_no_interval() -> None:
    """Nothing is known of its spread."""
    assert interval_over_seeds([{"seed": 0, "x": 1.0}]) is None
