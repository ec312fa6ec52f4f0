from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.simulate.resampling import resample
from pipelines.simulate.workloads import DEFAULT_EDGES
from pipelines.studies.beyond.__main__ import run_cell
from pipelines.studies.beyond.cells import FORECASTS, MODELS, cells
from pipelines.studies.beyond.sources import WRONG_MODEL, source, with_upper_bounds
from pipelines.studies.beyond.tables import tables
from scheduler.latency_bounds import latency_lower_bound_with_arrivals, total_latency_lower_bound
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.workload import Workload, workload_from_columns


@pytest.fixture(scope="module")
def base() -> Workload:
    """Sixty requests with noisy forecasts."""
    rng = np.random.default_rng(0)
    prompts, lens = lmsys_shaped(60, rng)
    plain = workload_from_columns(["r"] * 60, prompts, lens, np.zeros(60), 512)
    requests = synthesize(plain.requests, lens.tolist(), "noise:0.4", rng, np.concatenate([[0], DEFAULT_EDGES]))
    return with_upper_bounds(Workload(requests, lens.tolist()))


def test_every_cell_has_a_name_of_its_own() -> None:
    """Results are kept by name and variants, so that two cells never share an entry."""
    names = [(cell.name, *cell.variants) for cell in cells()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("group", ["policies", "ablation", "forecasts", "seconds", "stylised", "tau"])
def test_a_cell_of_each_kind_is_measured_and_shown(base: Workload, group: str) -> None:
    """The tables have a row for each variant; hindsight's ratio to itself is 1."""
    workloads = {MODELS[0]: base, WRONG_MODEL: base}
    done = {}
    for cell in [cell for cell in cells() if cell.group == group][:3]:
        small = replace(cell, kv_budget=min(cell.kv_budget, 6000))
        draw, wrong = (source(name, workloads, Path()) for name in (cell.source, WRONG_MODEL))
        done[cell.name] = entry = run_cell(small, draw, wrong, 2, 40)
        assert set(entry["variants"]) == set(cell.variants)
        if "hindsight" in entry["variants"]:
            assert entry["variants"]["hindsight"]["mean"]["to_hindsight"] == 1
        assert all(v["mean"].get("to_bound", 1) >= 1 for v in entry["variants"].values())
    text = tables(done)
    assert all(name in text for cell in done.values() for name in cell["variants"])


def test_forecasts_change_what_they_say(base: Workload) -> None:
    """Each kind of forecast is another one, and none changes a length."""
    from pipelines.studies.beyond.cells import Variant
    from pipelines.studies.beyond.sources import changed

    medians = {}
    for kind in FORECASTS:
        other = changed(base, base, Variant(forecast=kind), 0)
        assert other.output_lens == base.output_lens
        medians[kind] = [request.forecast_or_bounds().quantile(0.5) for request in other.requests]
    assert medians["as predicted"] == medians["wrong model"]
    assert np.allclose(medians["2x too high"], 2 * np.array(medians["as predicted"]))
    assert np.allclose(medians["perfect"], base.output_lens, atol=1)
    assert len(set(medians["same for all"])) == 1


def test_the_bound_with_arrivals(base: Workload) -> None:
    """At once it is the volume bound; over time it is no more, and one request alone takes its own tokens."""
    prompts = [request.num_prompt_tokens for request in base.requests]
    at_once = total_latency_lower_bound(prompts, base.output_lens, 2000)
    assert latency_lower_bound_with_arrivals(prompts, base.output_lens, np.zeros(60), 2000) == pytest.approx(at_once)
    drawn = resample(base, 60, 1.2, 2000, np.random.default_rng(0))
    times = [request.arrival_time for request in drawn.requests]
    prompts = [request.num_prompt_tokens for request in drawn.requests]
    later = latency_lower_bound_with_arrivals(prompts, drawn.output_lens, times, 2000)
    assert sum(drawn.output_lens) <= later < total_latency_lower_bound(prompts, drawn.output_lens, 2000)
    assert latency_lower_bound_with_arrivals([10], [5], [3.0], 100) == 5
