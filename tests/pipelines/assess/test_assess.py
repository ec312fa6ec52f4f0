import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.assess.comparison import load_factor
from pipelines.assess.log import quick_skill, read_log
from pipelines.assess.verdict import seconds
from pipelines.cli import main
from scheduler.kv_cache import KvCache
from scheduler.request import Request
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import workload_from_columns


def _log(path: Path, count: int, rate: float | None, prompts: bool = False, scale: float = 200.0) -> Path:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1 / rate, count)) if rate else np.zeros(count)
    rows = []
    for i in range(count):
        kind = int(rng.integers(2))
        length = max(1, int(scale * (1, 8)[kind] / 4 * np.exp(0.4 * rng.standard_normal())))
        row: dict[str, Any] = {"num_prompt_tokens": 50, "output_len": length}
        if rate:
            row["arrival_time"] = float(times[i])
        if prompts:
            row["prompt"] = f"question {i}: " + ("answer in a word" if kind == 0 else "tell me the whole story of it")
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    return path


def assess(log: Path, out: Path, *more: str) -> dict[str, Any]:
    """Return assess.json of a run on a small cache of a deployment that exists."""
    words = ["--deployment", "llama-3.1-8b-h100", "--kv-budget", "8000", "--seeds", "2", "--no-progress", "--force"]
    assert main(["assess", str(log), "--out", str(out), *words, *more]) == 0
    return json.loads((out / "assess.json").read_text())


def test_it_says_where_it_does_not_pay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that nobody waits for has no queue to put in order, and the page and the terminal say so."""
    found = assess(_log(tmp_path / "log.jsonl", 300, 0.5), tmp_path / "out")
    assert found["pays"] == [False]
    assert "It does not pay here" in found["verdicts"][0]
    assert "It does not pay here" in capsys.readouterr().out
    page = (tmp_path / "out" / "assess.html").read_text()
    assert "It does not pay here" in page
    assert re.search(r"300 requests over \d+\.\d min", page)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)  # it opens without a network


@pytest.mark.parametrize(
    ("value", "text"), [(0.0057, "6 ms"), (94.0, "94.0 s"), (680.0, "11.3 min"), (604_800.0, "168.0 hours")]
)
def test_a_time_has_a_unit_that_suits_it(value: float, text: str) -> None:
    """From an iteration to a week's log."""
    assert seconds(value) == text


def test_it_says_what_it_brings_where_it_pays(tmp_path: Path) -> None:
    """Where a burst waits, the page gives latency, tail and the load that could be carried."""
    found = assess(_log(tmp_path / "log.jsonl", 600, 40.0), tmp_path / "out", "--no-grow", "--skill", "0.8")
    assert found["pays"] == [True]
    setting = found["settings"][0]
    ours = setting["policies"]["amin-survival"]
    assert ours["gain"] - ours["interval_95"] > 1
    assert setting["load_factor"] > 1
    assert "times the load" in found["verdicts"][1]
    assert f"{ours['gain']:.2f}" in found["verdicts"][0]
    assert re.search(r"(as long as now(; mind that before you switch)?|gain, too)\.$", found["verdicts"][0])


def test_no_more_load_is_promised_than_can_be_served() -> None:
    """A short log at load 0.9 has an end, so that its mean latency stays low at twice the load; the queue would not."""
    rng = np.random.default_rng(0)
    prompts, outputs = lmsys_shaped(400, rng)
    worker = Worker(KvCache(500, 16))
    plain = workload_from_columns([str(i) for i in range(400)], prompts, outputs, np.sort(rng.uniform(0, 100, 400)))
    free, bound = (load_factor("amin-survival", plain, worker, 0.8, 0, lambda: None, load) for load in (1.5, 0.9))
    assert free > 1 / 0.9
    assert 1 <= bound <= 1 / 0.9


def test_a_log_without_times_is_assessed_at_loads(tmp_path: Path) -> None:
    """Three assumed loads, and the gain grows with them."""
    found = assess(_log(tmp_path / "log.jsonl", 400, None), tmp_path / "out")
    assert [setting["load"] for setting in found["settings"]] == [0.7, 0.9, 1.1]
    gains = [setting["policies"]["hindsight-svf"]["gain"] for setting in found["settings"]]
    assert gains[0] < gains[2]
    assert found["skill"] == 0.4


def test_prompts_give_the_skill(tmp_path: Path) -> None:
    """A log with prompts that tell short from long has its own skill, and the page says how it was measured."""
    found = assess(_log(tmp_path / "log.jsonl", 600, 40.0, prompts=True), tmp_path / "out")
    assert 0.6 < found["skill"] < 1
    assert "quick fit" in dict(map(tuple, found["notes"]))["Predictions"]


def test_prompts_that_say_nothing_have_no_skill() -> None:
    """Lengths that no word tells are not explained, though the fit could learn every prompt by heart."""
    rng = np.random.default_rng(0)
    prompts = [f"p{i} " + " ".join(f"w{k}" for k in rng.integers(0, 400, 12)) for i in range(3000)]
    assert quick_skill(prompts, rng.lognormal(5, 1, 3000).astype(int).tolist()) < 0.05


def test_more_replicas_are_taken_where_the_log_needs_them(tmp_path: Path) -> None:
    """A log of several servers is spread over as many replicas as it takes, and the page says so."""
    found = assess(_log(tmp_path / "log.jsonl", 800, 200.0), tmp_path / "out")
    assert found["replicas"] > 1
    assert "times what 1 can serve" in dict(map(tuple, found["notes"]))["Replicas"]


def test_the_busiest_stretch_counts(tmp_path: Path) -> None:
    """Of a quiet log with a burst the burst is simulated, from time 0, and what no replica can hold is left out."""
    rows = [{"num_prompt_tokens": 10, "output_len": 10, "arrival_time": 10.0 * i} for i in range(200)]
    rows += [{"num_prompt_tokens": 7, "output_len": 10, "arrival_time": 700.0 + 0.01 * i} for i in range(100)]
    rows += [{"num_prompt_tokens": 10, "output_len": 10_000, "arrival_time": 1.0}]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    log, _ = read_log(path, Worker(KvCache(1000)), 100, None)
    assert (log.rows, log.too_large, log.has_times) == (301, 1, True)
    assert {request.num_prompt_tokens for request in log.workload.requests[1:99]} == {7}
    assert log.workload.requests[0].arrival_time == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--deployment is missing"),
        (["--deployment", "h100"], "llama-3.1-8b-h100"),
        (["--deployment", "llama-3.1-8b-h100", "--policy", "fifo"], "'fifo'"),
        (["--deployment", "llama-3.1-8b-h100", "--skill", "2"], "--skill: must be at least 0"),
        (["--deployment", "llama-3.1-8b-h100", "--kv-budget", "16"], "every request takes more than"),
    ],
)
def test_what_the_user_can_fix(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, nothing written."""
    log = _log(tmp_path / "log.jsonl", 100, 1.0)
    assert main(["assess", str(log), "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_a_skilled_forecast_explains_what_it_says_and_is_calibrated(share: float) -> None:
    """The medians explain that share of the variance of log length, and the lower bounds hold for nine in ten."""
    rng = np.random.default_rng(0)
    lens = np.maximum(1, np.rint(np.exp(6 + rng.standard_normal(20_000)))).astype(int).tolist()
    requests = [Request(f"r{i}", 10, 1_000_000) for i in range(len(lens))]
    made = synthesize(requests, lens, f"skill:{share}", rng, np.array([0, 100, 1000, 100_000]))
    centres = np.log([request.predicted_len() for request in made])
    error = np.log(lens) - centres
    assert 1 - error.var() / np.log(lens).var() == pytest.approx(share, abs=0.02)
    held = np.mean([n >= request.output_len_lower_bound for n, request in zip(lens, made, strict=True)])
    assert held == pytest.approx(1.0 if share == 1 else 0.9, abs=0.01)
    predicted = np.mean([request.forecast_or_bounds().survival[1] for request in made])
    assert predicted == pytest.approx(np.mean(np.array(lens) > 100), abs=0.02)
