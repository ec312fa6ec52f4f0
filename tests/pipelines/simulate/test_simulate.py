import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.gains import is_nil
from pipelines.simulate.sources import made_up
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
    argv = ["simulate", str(workload), "--kv-budget", "200", "--seeds", "2", "--out", str(out), "--force", *more]
    assert main(argv) == 0
    return json.loads((out / "results.json").read_text())


def test_the_files_of_the_contract(workload_file: Path, tmp_path: Path) -> None:
    """Every policy has its figures by seed, mean and interval; and every request a row."""
    results = simulate(workload_file, tmp_path / "out", "--max-new-tokens", "64")
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


def test_classes_have_a_table_of_their_own(
    workload_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where requests have classes: figures of each on the terminal and in the results, and a column of requests."""
    rows = [json.loads(line) for line in workload_file.read_text().splitlines()]
    told = tmp_path / "classes.jsonl"
    told.write_text("".join(json.dumps(row | {"class": ["chat", "batch"][i % 2]}) + "\n" for i, row in enumerate(rows)))
    results = simulate(told, tmp_path / "out", "--policies", "fcfs,svf", "--ttft-target", "9")
    for entry in results["policies"].values():
        assert list(entry["classes"]) == ["batch", "chat"]
        assert sum(each["num_evictions"] for each in entry["classes"].values()) == entry["mean"]["num_evictions"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line[:1] in (["batch"], ["chat"])] == [
        [each, name] for each in ("batch", "chat") for name in ("fcfs", "svf")
    ]
    table = pq.read_table(tmp_path / "out" / "requests.parquet")
    assert set(table.column("class").to_pylist()) == {"batch", "chat"}
    assert "group" not in table.column_names


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
    more = ["--kv-budget", "4000", "--predictions", "noise:0.4", "--max-new-tokens", "512"]
    results = simulate("lmsys-shaped:200", tmp_path / "out", *more)
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
    "too many made up": (["lmsys-shaped:99999999999999"], "a whole number N from 1 to 10000000"),
    "too many replicas": (["lmsys-shaped:5", "--replicas", "100000000"], "at most 4096, not 100000000"),
    "unknown policy": (["lmsys-shaped:9", "--policies", "amin,fifo"], "'fifo'"),
    "no seed": (["lmsys-shaped:9", "--seeds", "0"], "--seeds: must be at least 1, not 0"),
    "no budget": (["lmsys-shaped:9", "--kv-budget", "0"], "--kv-budget: must be at least 1, not 0"),
    "watermark": (["lmsys-shaped:9", "--watermark", "1"], "--watermark: must be at least 0"),
    "max running": (["lmsys-shaped:9", "--max-running", "0"], "--max-running: must be at least 1, not 0"),
    "max batch tokens": (
        ["lmsys-shaped:9", "--max-batch-tokens", "0"],
        "--max-batch-tokens: must be at least 1, not 0",
    ),
    "predictions": (["lmsys-shaped:9", "--predictions", "noise"], "--predictions"),
    "load": (["lmsys-shaped:9", "--load", "-1", "--arrivals", "poisson"], "--load: must be above 0"),
    "load that is none": (["lmsys-shaped:9", "--load", "nan"], "--load: must be a number"),
    "arrivals": (["lmsys-shaped:9", "--arrivals", "sometimes"], "sometimes"),
    "cost model": (["lmsys-shaped:9", "--cost-model", "nowhere.json"], "nowhere.json"),
    "bins": (["WORKLOAD", "--bins", "nowhere.json"], "nowhere.json"),
    "too small a budget": (["lmsys-shaped:99", "--kv-budget", "50"], "of 99 requests take more than the 50 tokens"),
    "no memory at all": (["lmsys-shaped:9"], "--kv-budget is missing; give it, or --deployment"),
    "unknown deployment": (["lmsys-shaped:9", "--deployment", "h100"], "llama-3.1-8b-h100"),
    "no cap to reserve": (["lmsys-shaped:9", "--policies", "fcfs-reserve"], "fcfs-reserve needs caps"),
    "nothing predicted": (["lmsys-shaped:9", "--policies", "sjf"], "sjf needs predictions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, workload_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line that says what is wrong, no output."""
    argv, message = BAD[case]
    argv = [str(workload_file) if word == "WORKLOAD" else word for word in argv]
    budget = [] if "--kv-budget" in argv or case == "no memory at all" else ["--kv-budget", "2000"]
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


def test_a_deployment_gives_what_no_option_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, blocks, slots, clock, eviction and replicas are its own; an option wins, and the output says so."""
    out, made = tmp_path / "out", ["lmsys-shaped:30", "--policies", "fcfs", "--seeds", "1"]
    assert main(["simulate", *made, "--deployment", "llama-3.3-70b-2x4xh100", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["kv_budget"], results["block_size"], results["replicas"]) == (454_016, 16, 2)
    assert results["limits"] == {"max_running": 256, "max_batch_tokens": 8192, "watermark": 0.0}
    assert results["eviction"] == "resume"
    assert results["cost_model"] == "llama-3.3-70b-2x4xh100"
    assert results["in_place_of_the_deployment"] == []
    assert "changed" not in capsys.readouterr().out
    more = ["--deployment", "llama-3.3-70b-2x4xh100", "--max-running", "4", "--replicas", "1"]
    assert main(["simulate", *made, *more, "--out", str(out), "--force"]) == 0
    assert "max running 4, not 256; replicas 1, not 2" in capsys.readouterr().out
    slower = json.loads((out / "results.json").read_text())
    latency = [each["policies"]["fcfs"]["mean"]["mean_latency"] for each in (results, slower)]
    assert latency[0] < latency[1]


def test_no_cap_is_made_from_true_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Upper bounds stay as given where nobody states a cap, so amax waits for them, as in the paper.

    300 requests of 10 or 80 tokens with upper bounds of up to 4 times: a cap of 128, made from the longest, cut them.
    """
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        length = int(rng.choice([10, 80]))
        upper = int(rng.integers(length, 4 * length + 1))
        facts = {"request_id": str(i), "num_prompt_tokens": 5, "output_len": length}
        rows.append(facts | {"output_len_lower_bound": 5, "output_len_upper_bound": upper})
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    totals = []
    for more in ([], ["--max-new-tokens", "1000"], ["--max-new-tokens", "128"]):
        results = simulate(path, tmp_path / "out", "--kv-budget", "2000", "--policies", "amax", *more)
        totals.append(results["policies"]["amax"]["mean"]["total_latency"])
    assert totals[0] == totals[1] > totals[2]
    capsys.readouterr()
    results = simulate(path, tmp_path / "out", "--kv-budget", "2000")
    assert "without fcfs-reserve, which needs caps" in capsys.readouterr().out
    assert set(results["policies"]) == set(POLICIES) - {"fcfs-reserve"}


def test_requests_above_the_budget_are_counted_and_may_be_left_out(
    workload_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All of them are named in one message, and with the option the others are served."""
    assert main(["simulate", str(workload_file), "--kv-budget", "60", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    count = int(error.split(" of 40 requests")[0].rsplit(" ", 1)[1])
    assert count > 1
    assert error.count("q") >= min(count, 5)
    results = simulate(workload_file, tmp_path / "out", "--kv-budget", "60", "--policies", "fcfs", "--skip-too-large")
    assert results["workload"]["num_requests"] == 40 - count
    assert f"{count} of 40 requests" in caplog.text


def test_replicas_share_the_load(tmp_path: Path) -> None:
    """Two replicas get twice the requests a time at a load, and the router is noted."""
    more = ["--kv-budget", "4000", "--policies", "fcfs", "--load", "0.9", "--predictions", "noise:0.4"]
    one = simulate("lmsys-shaped:200", tmp_path / "out", *more)
    routed = ["--replicas", "2", "--routing", "least-predicted-work", "--ttft-target", "50"]
    two = simulate("lmsys-shaped:200", tmp_path / "out", *more, *routed)
    assert two["routing"] == "least-predicted-work"
    spans = [each["policies"]["fcfs"]["mean"]["makespan"] for each in (one, two)]
    assert spans[1] < 0.8 * spans[0]
    assert 0 <= two["policies"]["fcfs"]["mean"]["attainment"] <= 1


@pytest.mark.parametrize(("source", "median"), [("reasoning:4000", 2500), ("reasoning-mixed:4000", 2000)])
def test_long_answers_are_made_up_by_name(source: str, median: int) -> None:
    """Their median is what it is said to be, they end at 32,768, and some get there."""
    lengths = made_up(source)
    assert lengths is not None
    assert np.median(lengths[1]) == pytest.approx(median, rel=0.15)
    assert lengths[1].max() > 25_000
    assert lengths[1].max() <= 32_768


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


def test_a_bound_on_overtaking_is_kept_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long requests of a class are overtaken as often as it allows; a text that is no bound is named."""
    rows = [
        {"request_id": f"r{i}", "num_prompt_tokens": 3, "output_len": n, "output_len_prediction": n, "class": kind}
        for i, (n, kind) in enumerate([(50, "batch"), (40, "batch"), *[(2, "chat")] * 60])
    ]
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--policies", "sjf", "--max-new-tokens", "60", "--max-running", "2"]
    free = simulate(path, tmp_path / "free", *more)["policies"]["sjf"]["classes"]
    bound = simulate(path, tmp_path / "bound", *more, "--max-overtakes", "batch=7")["policies"]["sjf"]["classes"]
    assert free["batch"]["max_overtaken"] == 60
    assert bound["batch"]["max_overtaken"] <= 7
    assert bound["batch"]["mean_ttft"] < free["batch"]["mean_ttft"]
    assert bound["chat"]["mean_ttft"] > free["chat"]["mean_ttft"]
    capsys.readouterr()
    argv = ["simulate", str(path), "--kv-budget", "200", "--out", str(tmp_path / "no"), *more, "--max-overtakes"]
    wrong = "; give a whole number"
    for text, message in (
        ("x", f"is 'x'{wrong}"),
        ("=3", f"is '=3'{wrong}"),
        ("chats=3", "'chats'; the workload has batch, chat"),
    ):
        assert main([*argv, text]) == 2
        assert message in capsys.readouterr().err


def test_prompts_are_read_ahead_where_their_states_tell_something(
    workload_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Renewals after 0 tokens change the order of those that wait; without any the option is refused in one line."""
    bins = tmp_path / "bins.json"
    bins.write_text("[0, 20, 40, 80]")
    common = ("--bins", str(bins), "--policies", "fcfs,sjf", "--arrivals", "all-at-once")
    plain = simulate(workload_file, tmp_path / "plain", *common)
    argv = ["simulate", str(workload_file), "--kv-budget", "200", "--out", str(tmp_path / "none"), *common]
    assert main([*argv, "--look-ahead", "64"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "--look-ahead: no request of " in errors[0]
    assert main([*argv, "--look-ahead", "64", "--predictions", "exact"]) == 2
    assert "--predictions takes their place" in capsys.readouterr().err
    told = tmp_path / "told.jsonl"
    rows = [json.loads(line) for line in workload_file.read_text().splitlines()]
    known = [[1.0, float(row["output_len"] > 20), float(row["output_len"] > 40), 0.0] for row in rows]
    lines = [{**row, "renewals": [[0, each, 1]]} for row, each in zip(rows, known, strict=True)]
    told.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = simulate(told, tmp_path / "read", *common, "--look-ahead", "64")["policies"]
    assert read["fcfs"]["mean"] == plain["policies"]["fcfs"]["mean"]
    assert read["sjf"]["mean"]["mean_latency"] != plain["policies"]["sjf"]["mean"]["mean_latency"]
