from pathlib import Path

import numpy as np
import pytest

from pipelines.simulate.workload_file import write_workload
from pipelines.studies.sibling_correlation import correlation, main
from scheduler.forecast import Forecast
from scheduler.request import Request
from scheduler.simulation.synthesis import log_normal_survival
from scheduler.workload import Workload


@pytest.mark.parametrize("true", [0.0, 0.3, 0.8])
def test_the_correlation_of_normal_groups_is_found(true: float) -> None:
    """Of groups of two to twelve, within what 2,000 of them leave open."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 13, 2000)
    groups = [
        np.sqrt(true) * rng.standard_normal() + np.sqrt(1 - true) * rng.standard_normal(size) for size in sizes.tolist()
    ]
    assert correlation(groups) == pytest.approx(true, abs=0.03)


def test_a_workload_of_groups_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through its forecasts, as a user would run it."""
    rng = np.random.default_rng(0)
    edges = np.unique(np.concatenate([[0], np.geomspace(1, 20_000, 60).astype(int)]))
    forecast = Forecast(edges, log_normal_survival([300.0], 0.8, edges)[0])
    shared = np.repeat(rng.standard_normal(300), 5)
    scores = np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.standard_normal(1500)
    lens = np.clip(np.rint(300 * np.exp(0.8 * scores)), 1, 19_000).astype(int).tolist()
    requests = [Request(f"r{i}", 1, 20_000, forecast=forecast, group=f"g{i // 5}") for i in range(1500)]
    write_workload(tmp_path / "w.jsonl", Workload(requests, lens))
    main([str(tmp_path / "w.jsonl")])
    out = capsys.readouterr().out
    assert "300 groups, 1500 requests" in out
    assert float(out.split("correlation ")[1].split()[0]) == pytest.approx(0.6, abs=0.06)
