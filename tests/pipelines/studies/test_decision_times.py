"""Times of decisions."""

import numpy as np

from pipelines.studies.decision_times import decision_times
from scheduler.workload import Workload, workload_from_columns


def test_a_request_larger_than_a_small_cache_is_served_too() -> None:
    """A quick look runs few requests at a time: the cache still holds the largest one, and decisions are counted."""
    lens = np.array([300, *[20] * 29])
    prompts = np.array([2000, *[10] * 29])
    workload = workload_from_columns([f"r{i}" for i in range(30)], prompts, lens, np.zeros(30), 512)
    rows = decision_times(["fcfs", "fcfs-reserve"], Workload(workload.requests, workload.output_lens), 4, 20)
    assert [row["policy"] for row in rows] == ["fcfs", "fcfs-reserve"]
    assert all(row["decisions"] > 0 and row["median_us"] > 0 for row in rows)
