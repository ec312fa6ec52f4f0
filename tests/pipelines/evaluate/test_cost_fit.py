import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from pipelines.evaluate import sweep
from pipelines.evaluate.case import Case
from pipelines.evaluate.cost_fit import fit_cost_model, non_negative_least_squares
from pipelines.evaluate.replay import replay
from pipelines.evaluate.run import MeasuredRun, reads_predictions
from pipelines.results import PolicyRun
from pipelines.simulate.workload_file import write_workload
from scheduler.cost_model import CostModel
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload, read_workload

TRUE = CostModel(0.01, 1e-4, 5e-4, 2e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_fit_is_the_constrained_optimum(seed: int) -> None:
    """As scipy's, also where the unconstrained fit would be negative."""
    rng = np.random.default_rng(seed)
    design, target = rng.random((30, 4)), rng.normal(size=30) + rng.random()
    ours, theirs = non_negative_least_squares(design, target), nnls(design, target)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_a_linear_engine_is_found_again() -> None:
    """Coefficients of made-up iterations come back in spite of some noise."""
    rng = np.random.default_rng(0)
    work = np.column_stack([rng.integers(0, 200, 3000), rng.integers(1, 60, 3000), rng.integers(50, 9000, 3000)])
    seconds = 0.01 + work @ [1e-4, 5e-4, 2e-6] + rng.normal(scale=1e-3, size=3000)
    fitted = fit_cost_model(np.column_stack([seconds, work]))
    assert fitted.r_squared > 0.95
    assert fitted.cost_model.seconds_per_prefill_token == pytest.approx(1e-4, rel=0.05)
    assert fitted.cost_model.seconds_per_decoding_request == pytest.approx(5e-4, rel=0.05)
    assert fitted.cost_model.seconds_per_kv_token == pytest.approx(2e-6, rel=0.1)


def requests() -> list[Request]:
    """Thirty requests with forecasts, arriving over time."""
    rng = np.random.default_rng(1)
    edges = np.array([0, 10, 40])
    return [
        Request(f"r{i}", int(rng.integers(3, 20)), 40, 0.05 * i, int(rng.integers(1, 12)), 35, 15, forecast)
        for i, forecast in enumerate([Forecast(edges, np.array([1.0, 0.7, 0.1]))] * 30)
    ]


def measured(policy: str) -> MeasuredRun:
    """A run of the simulator that passes for a real one."""
    rng = np.random.default_rng(2)
    lens = rng.integers(1, 40, 30).tolist()
    worker = Worker(KvCache(30, 4), resume=True, cost_model=TRUE, max_batch_tokens=64)
    result = simulate(policy, Workload(requests(), lens), worker, 3)
    iterations = np.array([[0.01 + 1e-3 + 5e-3 + 2e-4, 10.0, 10.0, 100.0]])
    return MeasuredRun(PolicyRun(policy, 3, requests(), result), list(range(30)), result.arrival_time, iterations, 0)


@pytest.mark.parametrize("policy", ["fcfs", "amin", "amin-survival"])
def test_a_replay_of_what_the_model_made_is_exact(policy: str) -> None:
    """With the true cost model simulated over measured is 1."""
    worker = Worker(KvCache(30, 4), resume=True, cost_model=TRUE, max_batch_tokens=64)
    replayed = replay([measured(policy)], worker)[policy]
    assert replayed["simulated_over_measured"] == pytest.approx(1)
    assert replayed["iterations_over_measured"] == pytest.approx(1)


def test_the_map_is_of_the_policy_as_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its simulated cells are built with the options that the runs have."""
    monkeypatch.setattr(sweep, "MEASURED", ())
    monkeypatch.setattr(sweep, "NUM_SEEDS", 2)
    lens = np.random.default_rng(2).integers(1, 40, 30).tolist()
    worker = Worker(KvCache(30, 4), resume=True, cost_model=TRUE)
    cells = []
    for options in ({}, {"pack_level": 0.9}):
        built_with: dict[str, dict[str, Any]] = {"fcfs": {}, sweep.POLICY: options}
        case = Case(Any, [], [], [], requests(), lens, None, built_with)
        cells.append(sweep.sweep(Any, Any, case, lens, worker)["cells"])
    assert cells[0] != cells[1]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_only_policies_that_read_predictions_wait_for_them(policy: str) -> None:
    """Other bounds change nothing for those that `evaluate` does not let wait, and something for all others."""
    rng = np.random.default_rng(2)
    lens = rng.integers(1, 40, 30).tolist()
    worker = Worker(KvCache(20, 4))
    at_once = [Request(r.request_id, r.num_prompt_tokens, 40) for r in requests()]
    survival = np.sort(rng.random((30, 2)))[:, ::-1]
    edges = np.array([0, 10, 40])
    bounded = [
        Request(
            r.request_id, r.num_prompt_tokens, 40, 0.0, i % 13 + 1, 40 - i % 13, 14 + (7 * i) % 9,
            Forecast(edges, np.array([1.0, *survival[i]])),
        )
        for i, r in enumerate(at_once)
    ]  # fmt: skip
    plain, other = (simulate(policy, Workload(each, lens), worker, 0) for each in (at_once, bounded))
    assert (plain.finish_time == other.finish_time).all() != reads_predictions(policy)


def test_the_workload_file_is_what_simulate_reads(tmp_path: Path) -> None:
    """Bounds, forecasts, arrivals and lengths survive the way through the file."""
    path = tmp_path / "workload.jsonl"
    write_workload(path, Workload(requests(), [7] * 30))
    edges = np.array(json.loads((tmp_path / "workload.jsonl.bins.json").read_text()))
    workload = read_workload(path, edges=edges)
    assert workload.output_lens == [7] * 30
    for ours, theirs in zip(requests(), workload.requests, strict=True):
        assert ours.forecast is not None
        assert theirs.forecast is not None
        assert ours.forecast.survival.tolist() == theirs.forecast.survival.tolist()
        assert (ours.arrival_time, ours.output_len_lower_bound) == (theirs.arrival_time, theirs.output_len_lower_bound)
