import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.gains import is_nil
from pipelines.studies.bench import main as bench
from scheduler.policies import POLICIES

CONTRACT = {
    "seed", "total_latency", "mean_latency", "p50_latency", "p99_latency", "mean_ttft", "makespan", "num_evictions",
    "num_recomputed_tokens", "max_evictions_per_request", "mean_kv_utilization",
}  # fmt: skip


@pytest.fixture(scope="module")
def workload_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty requests with bounds that the true lengths keep."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("workload") / "workload.jsonl"
    rows = []
    for i in range(40):
        length = int(rng.integers(1, 60))
        rows.append(
            {
                "request_id": f"q{i}",
                "num_prompt_tokens": int(rng.integers(0, 20)),
                "output_len": length,
                "output_len_lower_bound": max(1, length // 2),
                "output_len_upper_bound": 2 * length,
                "arrival_time": i // 4,
                "survival": [1.0, 0.8, 0.4, 0.0],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulate(workload: Path | str, out: Path, *more: str) -> dict[str, Any]:
    """Return results.json of a run that succeeds."""
    assert main(["simulate", str(workload), "--kv-budget", "200", "--seeds", "2", "--out", str(out), *more]) == 0
    return json.loads((out / "results.json").read_text())


def test_the_files_of_the_contract(workload_file: Path, tmp_path: Path) -> None:
    """Every policy has its figures by seed, mean and interval; and every request a row."""
    results = simulate(workload_file, tmp_path / "out")
    assert set(results["policies"]) == set(POLICIES)
    for entry in results["policies"].values():
        assert [seed["seed"] for seed in entry["seeds"]] == [0, 1]
        assert set(entry["seeds"][0]) >= CONTRACT
        assert set(entry["mean"]) == set(entry["interval_95"]) == set(entry["seeds"][0]) - {"seed"}
    assert results["total_latency_lower_bound"] is None  # they do not arrive at once
    assert results["bounds"]["coverage"] == 1
    table = pq.read_table(tmp_path / "out" / "requests.parquet")
    assert table.num_rows == 40 * 2 * len(POLICIES)
    assert table.column_names == [
        "policy", "seed", "request_id", "arrival_time", "admission_time", "first_token_time", "finish_time",
        "output_len", "num_evictions", "num_recomputed_tokens",
    ]  # fmt: skip
    assert table.column("request_id").to_pylist()[:2] == ["q0", "q1"]


def test_bins_bring_the_forecasts(workload_file: Path, tmp_path: Path) -> None:
    """With the edges of the field survival the policies that use a distribution decide otherwise than by bounds."""
    bins = tmp_path / "bins.json"
    bins.write_text("[0, 10, 30, 60]")
    for name in ("tie", "amin-survival"):
        more = ["--policies", name, "--arrivals", "all-at-once"]
        without = simulate(workload_file, tmp_path / "without", *more)["policies"][name]["mean"]
        using = simulate(workload_file, tmp_path / "with", *more, "--bins", str(bins))["policies"][name]["mean"]
        assert without["mean_latency"] != using["mean_latency"]


def test_all_at_once_has_a_bound_that_every_policy_respects(tmp_path: Path) -> None:
    """Made-up requests, made-up predictions: all policies run, none beats the volume bound."""
    results = simulate("lmsys-shaped:200", tmp_path / "out", "--kv-budget", "4000", "--predictions", "noise:0.4")
    assert set(results["policies"]) == set(POLICIES)
    ratios = {name: entry["mean"]["ratio_to_lower_bound"] for name, entry in results["policies"].items()}
    assert all(ratio >= 1 for ratio in ratios.values())
    assert ratios["hindsight-svf"] < ratios["fcfs"] < ratios["fcfs-reserve"]
    assert results["policies"]["fcfs"]["interval_95"]["mean_latency"] == 0  # nothing in it is random
    assert results["policies"]["amin"]["interval_95"]["mean_latency"] > 0


def test_a_cost_model_a_load_and_the_limits_of_an_engine(tmp_path: Path) -> None:
    """Times come in seconds, and a limit on what runs at once makes everyone wait longer."""
    cost = tmp_path / "cost.json"
    cost.write_text('{"seconds_per_iteration": 0.01, "seconds_per_prefill_token": 1e-5, "seconds_per_kv_token": 1e-7}')
    engine = ["--cost-model", str(cost), "--block-size", "16", "--max-batch-tokens", "256", "--eviction", "resume"]
    more = ["--kv-budget", "16000", "--policies", "fcfs,amin", "--predictions", "noise:0.4", "--arrivals", "gamma:40:2"]
    free = simulate("lmsys-shaped:300", tmp_path / "free", *engine, *more)
    limited = simulate("lmsys-shaped:300", tmp_path / "limited", *engine, *more, "--max-running", "8")
    for name in ("fcfs", "amin"):
        latency = free["policies"][name]["mean"]["mean_latency"]
        assert 1 < latency < limited["policies"][name]["mean"]["mean_latency"]
    assert free["cost_model"] == str(cost)


def test_a_trace_is_replayed_at_a_load(tmp_path: Path) -> None:
    """The same trace waits longer at a higher load, and keeps its order."""
    trace = tmp_path / "azure.csv"
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.exponential(1, 200))
    lines = [
        f"2023-11-16 18:{int(t // 60):02}:{t % 60:010.7f},{rng.integers(1, 90)},{rng.integers(1, 60)}" for t in seconds
    ]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    queues = []
    for load in ("0.3", "0.9"):
        results = simulate(trace, tmp_path / load, "--kv-budget", "1500", "--load", load, "--policies", "fcfs")
        queues.append(results["policies"]["fcfs"]["mean"]["mean_queueing_delay"])
    assert queues[0] < queues[1]
    arrivals = pq.read_table(tmp_path / "0.9" / "requests.parquet").column("arrival_time").to_pylist()[:200]
    assert arrivals == sorted(arrivals)


BAD = {
    "no such file": (["nowhere.jsonl"], "nowhere.jsonl"),
    "made-up count": (["lmsys-shaped:0"], "lmsys-shaped:N with a whole number"),
    "unknown policy": (["lmsys-shaped:9", "--policies", "amin,fifo"], "'fifo'"),
    "no seed": (["lmsys-shaped:9", "--seeds", "0"], "--seeds is 0"),
    "no budget": (["lmsys-shaped:9", "--kv-budget", "0"], "kv_budget is 0"),
    "watermark": (["lmsys-shaped:9", "--watermark", "1"], "--watermark is 1.0"),
    "max running": (["lmsys-shaped:9", "--max-running", "0"], "max_running is 0"),
    "max batch tokens": (["lmsys-shaped:9", "--max-batch-tokens", "0"], "max_batch_tokens is 0"),
    "predictions": (["lmsys-shaped:9", "--predictions", "noise"], "--predictions"),
    "load": (["lmsys-shaped:9", "--load", "-1", "--arrivals", "poisson"], "load is -1"),
    "load without arrivals": (["lmsys-shaped:9", "--load", "1"], "arrive at the same time"),
    "arrivals": (["lmsys-shaped:9", "--arrivals", "sometimes"], "sometimes"),
    "cost model": (["lmsys-shaped:9", "--cost-model", "nowhere.json"], "nowhere.json"),
    "bins": (["WORKLOAD", "--bins", "nowhere.json"], "nowhere.json"),
    "too small a budget": (["lmsys-shaped:99", "--kv-budget", "50"], "request 'r"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, workload_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line that says what is wrong, no output."""
    argv, message = BAD[case]
    argv = [str(workload_file) if word == "WORKLOAD" else word for word in argv]
    budget = [] if "--kv-budget" in argv else ["--kv-budget", "2000"]
    assert main(["simulate", *argv, *budget, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object with seconds_per_iteration"),
        ('{"seconds_per_iteration": 0}', "seconds_per_iteration is 0, must be above 0"),
        ('{"seconds_per_iteration": "1"}', "seconds_per_iteration is '1', must be a number of seconds from 0 to 1e+06"),
        ('{"seconds_per_iteration": 1, "seconds_per_kv_token": -1}', "seconds_per_kv_token is -1"),
        ('{"seconds_per_iteration": 1, "speed": 2}', "unknown field 'speed'"),
    ],
)
def test_a_wrong_cost_model_is_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has the file, the field and its value."""
    path = tmp_path / "cost.json"
    path.write_text(text)
    argv = ["simulate", "lmsys-shaped:9", "--kv-budget", "2000", "--cost-model", str(path)]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_the_benchmarks_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a five-hundredth of the size every policy is timed, and the figures and the plot are written."""
    bench(["--out", str(tmp_path), "--scale", "0.002"])
    results = json.loads((tmp_path / "bench.json").read_text())
    for rows in results["decisions"].values():
        assert {row["policy"] for row in rows} == set(POLICIES)
        assert all(row["median_us"] > 0 for row in rows)
    for rows in results["throughput"].values():
        assert {row["policy"] for row in rows} == set(POLICIES)
    assert [row["requests"] for row in results["million"]] == [2000, 2000]
    assert (tmp_path / "cost_per_request.png").stat().st_size > 1000
    assert "the mocker is not installed" in capsys.readouterr().out.replace("Dynamo's", "the")


def test_a_load_is_a_load_in_seconds_too(tmp_path: Path) -> None:
    """With a cost model that makes every iteration a hundredth of a second, everything takes a hundredth as long."""
    cost_model = tmp_path / "cost.json"
    cost_model.write_text('{"seconds_per_iteration": 0.01}')
    argv = ["simulate", "lmsys-shaped:200", "--kv-budget", "4000", "--predictions", "noise:0.4", "--seeds", "2"]
    argv += ["--policies", "fcfs,amin", "--load", "0.95", "--arrivals", "poisson"]
    found = []
    for name, more in (("iterations", []), ("seconds", ["--cost-model", str(cost_model)])):
        assert main([*argv, *more, "--out", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name / "results.json").read_text())["policies"])
    for policy in ("fcfs", "amin"):
        plain, timed = (each[policy]["mean"] for each in found)
        assert plain["num_evictions"] > 0
        assert timed["num_evictions"] == pytest.approx(plain["num_evictions"], rel=0.1)
        assert timed["mean_latency"] == pytest.approx(0.01 * plain["mean_latency"], rel=0.05)


def test_the_map_shows_where_a_policy_pays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell per load and noise, with intervals; nothing to gain where nobody waits, much under overload."""
    argv = ["map", "lmsys-shaped:150", "--kv-budget", "4000", "--loads", "0.3,1.5", "--noise", "0,0.4", "--seeds", "4"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    cells = json.loads((tmp_path / "out" / "map.json").read_text())["cells"]
    assert [(cell["load"], cell["noise"]) for cell in cells] == [(0.3, 0), (0.3, 0.4), (1.5, 0), (1.5, 0.4)]
    assert [is_nil(cell) for cell in cells] == [True, True, False, False]
    assert cells[2]["gain"]["mean_latency"] > 1.2
    assert (tmp_path / "out" / "map.png").stat().st_size > 1000
    assert "~1.0" in capsys.readouterr().out
    assert main([*argv[:-2], "--seeds", "1", "--out", str(tmp_path / "bad")]) == 2
    wrong = (("--loads", "high"), ("--loads", ".9,.90"), ("--loads", "0"), ("--noise", "-1"), ("--policy", "fifo"))
    for option, value in wrong:
        capsys.readouterr()
        assert main([*argv, option, value, "--out", str(tmp_path / "bad")]) == 2
        assert capsys.readouterr().err.startswith(f"amin map: error: {option}")
    assert not (tmp_path / "bad").exists()
