"""A probe in `amin evaluate`: what it refuses, what it writes, and that the simulator replays it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from predictor.bounds.bins import LengthBins
from scheduler.forecast import Forecast

CAP = 24


@pytest.fixture
def evaluate(chat_model: Path, exports: dict[str, Path], tmp_path: Path) -> Callable[..., int]:
    """A function that runs `amin evaluate` on a few prompts into `tmp_path / out` and returns its exit code."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt_id": f"p{i}", "prompt": "river " * (i % 5) + f"night {i}", "output_lens": [3]} for i in range(12)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*more: str) -> int:
        argv = ["evaluate", "--predictor", str(exports["fp32"]), "--served-model", str(chat_model)]
        argv += ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--max-new-tokens", str(CAP)]
        return main([*argv, "--device", "cpu", "--block-size", "4", "--kv-blocks", "40", "--seeds", "1", *more])

    return run


def test_renewals_reach_policies_and_the_workload_file(
    evaluate: Callable[..., int], make_probe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers are the model's own; renewals are counted, kept for --resume, written and simulated."""
    more = ("--policies", "fcfs,amin,amin-survival", "--probe", str(make_probe()), "--renew-every", "4")
    assert evaluate(*more) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    probe = results["probe"]
    assert probe["num_renewals"] > 12
    assert probe["num_failed_states"] == 0
    assert f"probe: {probe['num_renewals']} renewals in " in capsys.readouterr().out
    assert "renewal_share" not in results["policies"]["fcfs"]["mean"]
    lines = [json.loads(line) for line in (tmp_path / "out/workload.jsonl").read_text().splitlines()]
    assert any(line["output_len"] != 3 for line in lines), "recorded lengths have no tokens to be forced"
    renewed = [line for line in lines if "renewals" in line]
    assert renewed
    for line in renewed:
        assert all(1 <= out < line["output_len"] for out, _, _ in line["renewals"])
    argv = [
        "simulate",
        str(tmp_path / "out/workload.jsonl"),
        "--kv-budget",
        "160",
        "--policies",
        "amin",
        "--seeds",
        "1",
    ]
    assert main([*argv, "--eviction", "resume", "--out", str(tmp_path / "simulated"), "--no-progress"]) == 0
    assert evaluate(*more, "--resume") == 0
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again["probe"] == probe
    assert again["replay"] == results["replay"]


def test_prompts_that_wait_are_read_ahead(
    evaluate: Callable[..., int], make_probe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they tell is in the workload file after 0 tokens, counted, kept for --resume, replayed and simulated."""
    more = ("--policies", "fcfs,amin-survival", "--probe", str(make_probe()), "--kv-blocks", "16")
    ahead = (*more, "--look-ahead", "24")
    assert evaluate(*ahead) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    probe = results["probe"]
    assert 0 < probe["num_read_ahead"] <= 12
    assert 0 < probe["look_ahead_share"] < 1
    assert f"; {probe['num_read_ahead']} prompts read ahead in " in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out/workload.jsonl").read_text().splitlines()]
    at_first = [line for line in lines if line.get("renewals", [[1]])[0][0] == 0]
    assert len(at_first) == probe["num_read_ahead"]
    command = results["cost_fit"]["simulate_command"].split()
    assert command[command.index("--look-ahead") + 1] == "24"
    assert main([*command[1:], "--policies", "amin-survival", "--seeds", "1", "--no-progress"]) == 0
    assert evaluate(*ahead, "--resume") == 0
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again["probe"] == probe
    assert again["replay"] == results["replay"]
    assert evaluate(*more, "--resume") == 2
    assert "look_ahead" in capsys.readouterr().err


def test_a_state_that_is_no_number_leaves_the_forecast(
    evaluate: Callable[..., int], make_probe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is counted and said; the run goes on with the predictor's curve."""
    more = ("--policies", "amin-survival", "--probe", str(make_probe(bias=float("nan"))), "--limit", "4")
    assert evaluate(*more, "--kv-blocks", "16", "--look-ahead", "64") == 0
    probe = json.loads((tmp_path / "out/results.json").read_text())["probe"]
    assert probe["num_renewals"] == probe["num_read_ahead"] == 0
    assert probe["num_failed_states"] >= 4
    assert "states were not numbers" in capsys.readouterr().out
    assert "renewals" not in (tmp_path / "out/workload.jsonl").read_text()


@pytest.mark.parametrize("change", [{"revision": "r2"}, {"template": "t2"}, {"layers": (9,)}], ids=str)
def test_another_probe_is_refused_before_anything_is_generated(
    evaluate: Callable[..., int],
    make_probe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    """One line that names what differs; nothing is written."""
    assert evaluate("--probe", str(make_probe(**change))) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert next(iter(change)).removesuffix("s") in errors[0]
    assert not (tmp_path / "out/results.json").exists()


def test_a_missing_probe_or_too_fine_a_tau_is_refused(
    evaluate: Callable[..., int], make_probe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is loaded."""
    assert evaluate("--probe", str(tmp_path / "nothing")) == 2
    assert "no probe that can be read" in capsys.readouterr().err
    assert evaluate("--probe", str(make_probe()), "--tau", "0.0001") == 2
    assert "tau" in capsys.readouterr().err
    assert evaluate("--probe", str(make_probe()), "--policies", "fcfs,engine-fifo") == 2
    assert "--probe: none of --policies reads forecasts" in capsys.readouterr().err
    assert evaluate("--renew-every", "8") == 2
    assert "--renew-every: is for a probe; leave it out" in capsys.readouterr().err
    assert evaluate("--look-ahead", "8") == 2
    assert "--look-ahead: is for a probe; leave it out" in capsys.readouterr().err
    assert evaluate("--probe", str(make_probe()), "--look-ahead", "0") == 2
    assert "--look-ahead" in capsys.readouterr().err
    assert evaluate("--probe", str(make_probe()), "--sweep") == 2
    assert "--sweep: not with --probe" in capsys.readouterr().err


def test_the_forecast_of_the_whole_length_knows_that_the_answer_goes_on() -> None:
    """After t + 1 tokens the length exceeds them for certain; beyond, the ratios are the probe's."""
    from pipelines.probe.renewed_bounds import whole_length

    bins = LengthBins((0, 1, 2, 4, 8))
    forecast = whole_length(bins, np.array([1.0, 0.8, 0.4, 0.2, 0.1]), 16)
    assert forecast.edges.tolist() == [0, 17, 18, 20, 24]
    np.testing.assert_allclose(forecast.survival, [1.0, 1.0, 0.5, 0.25, 0.125])
    outlived = whole_length(bins, np.array([1.0, 0.0, 0.0, 0.0, 0.0]), 16)
    assert outlived.quantile(0.5) >= 17


def test_a_forecast_on_finer_edges_is_the_same() -> None:
    """What is linear between edges stays so."""
    forecast = Forecast(np.array([0, 4, 10]), np.array([1.0, 0.6, 0.0]))
    finer = forecast.on(np.arange(0, 13))
    for level in (0.1, 0.4, 0.7, 0.9):
        assert finer.quantile(level) == pytest.approx(forecast.quantile(level))
