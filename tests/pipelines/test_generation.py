import functools
import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop, RunResult
from scheduler.policies import POLICIES, make_policy
from scheduler.request import Request
from scheduler.worker import Worker

CAP = 40


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty prompts of different lengths, half of them in the split test."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt_id": f"p{i}", "prompt": "river " * (i % 5) + f"night {i}", "split": "test" if i % 2 else "train"}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count_calls(
    patch: pytest.MonkeyPatch, owner: Any, name: str, interrupt_after: float = math.inf
) -> list[tuple[Any, ...]]:
    """The arguments of each call of `owner.name` as they come; after so many calls the user interrupts the next."""
    original, calls = getattr(owner, name), list[tuple[Any, ...]]()

    def counted(*arguments: Any, **more: Any) -> Any:
        if len(calls) == interrupt_after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original(*arguments, **more)

    patch.setattr(owner, name, counted)
    return calls


def run_policy(
    chat_model: Path, name: str, num_blocks: int, *, resume: bool = False, forced: list[int] | None = None
) -> tuple[dict[int, Any], RunResult]:
    """The outputs and the outcome of one policy on twenty made-up prompts, greedily."""
    from pipelines.served_model.loading import load_served_model
    from pipelines.settings.sampling import Sampling
    from scheduler.integrations.transformers_cb import TransformersExecutor

    rng = np.random.default_rng(0)
    served = load_served_model(str(chat_model), CAP, "cpu", sampling=Sampling(temperature=0.0), exact=True)
    prompts = [rng.integers(4, len(served.tokenizer), int(n)).tolist() for n in rng.integers(3, 30, 20)]
    lower = rng.integers(1, CAP, 20)
    even = Forecast(np.array([0, CAP]), np.array([1.0, 0.0]))
    requests = [
        Request(f"r{i}", len(prompt), CAP, output_len_lower_bound=int(bound), forecast=even)
        for i, (prompt, bound) in enumerate(zip(prompts, lower, strict=True))
    ]
    worker = Worker(KvCache(num_blocks, 4), resume=resume, max_batch_tokens=48)
    executor = TransformersExecutor(served.model, prompts, worker, served.generation_config, forced_lens=forced)
    lens = forced or [CAP] * 20
    policy = make_policy(name, worker, np.random.default_rng(0), output_lens=lens)
    result = Loop(policy, executor, requests).run()
    executor.close()
    return executor.outputs, result


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_greedy_tokens_do_not_depend_on_the_policy(chat_model: Path, name: str, resume: bool) -> None:
    """Evictions included, every policy gives the tokens of a run in which nothing waits."""
    free, unconstrained = run_policy(chat_model, "fcfs", 800)
    outputs, result = run_policy(chat_model, name, 60, resume=resume)
    assert unconstrained.num_evictions.sum() == 0
    assert outputs == free
    if name in ("fcfs", "amin", "amin-eviction"):
        assert result.num_evictions.sum() > 0
    assert max(result.timeline.kv_blocks) <= 60


@pytest.mark.parametrize("resume", [False, True])
def test_forced_lengths_are_generated_exactly(chat_model: Path, resume: bool) -> None:
    """Each answer has its reference length, whatever was evicted."""
    forced = np.random.default_rng(1).integers(1, CAP, 20).tolist()
    outputs, result = run_policy(chat_model, "amin", 24, resume=resume, forced=forced)
    assert [len(outputs[i].tokens) for i in range(20)] == forced
    assert result.num_evictions.sum() > 0
    assert (result.first_token_time <= result.finish_time).all()


def collect(chat_model: Path, prompts: Path, out: Path, *more: str) -> int:
    """Exit code of `amin collect`."""
    argv = ["collect", "--served-model", str(chat_model), "--prompts", str(prompts), "--out", str(out)]
    return main([*argv, "--draws", "2", "--max-new-tokens", "12", "--device", "cpu", *more])


def test_collect_records_every_draw(chat_model: Path, prompts_file: Path, tmp_path: Path) -> None:
    """A row per prompt, two draws each; a draw is cut exactly when it fills the cap without an end token."""
    out = tmp_path / "records.parquet"
    assert collect(chat_model, prompts_file, out) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"p{i}" for i in range(20)]
    assert {row["split"] for row in rows} == {"train", "test"}
    for row in rows:
        assert row["model"] == "random-chat"
        assert len(row["output_lens"]) == len(row["is_truncated"]) == 2
        assert all(length == 12 for length, cut in zip(row["output_lens"], row["is_truncated"], strict=True) if cut)
    assert list(tmp_path.iterdir()) == [out]


def snapshot_each_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `amin collect` keep all there is after each iteration."""
    monkeypatch.setattr("pipelines.served_model.answers.SECONDS_BETWEEN_SNAPSHOTS", 0.0)
    monkeypatch.setattr("pipelines.served_model.answers.MAX_SHARE_OF_SNAPSHOTS", math.inf)


def test_an_interrupted_collect_goes_on_where_it_was(
    chat_model: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that had ended are kept, those that had begun are continued: what is redrawn depends on no length."""
    import pipelines.collect.draws

    snapshot_each_iteration(monkeypatch)
    out, partial = tmp_path / "records.parquet", tmp_path / "records.parquet.partial.json"
    kept: list[dict[str, Any]] = []
    while not out.exists():
        with monkeypatch.context() as patch:
            count_calls(patch, pipelines.collect.draws.PartialFile, "keep", interrupt_after=5)
            max_running = "1" if len(kept) % 2 else "8"  # with 1, most of what had begun waits
            assert collect(chat_model, prompts_file, out, "--max-running", max_running) in (0, 130)
        if partial.exists():
            kept.append(json.loads(partial.read_text()))
    rows = pq.read_table(out).to_pylist()
    assert len(kept) > 3
    for before, after in pairwise(kept):
        begun = {(prompt, draw): tokens for prompt, draw, tokens in after["begun"]}
        ended = {(prompt, draw): length for prompt, draw, length, _ in after["ended"]}
        for prompt, draw, tokens in before["begun"]:
            key = prompt, draw
            assert begun[key][: len(tokens)] == tokens if key in begun else ended[key] >= len(tokens)
    for before in kept:
        assert before["begun"]
        for prompt, draw, length, is_truncated in before["ended"]:
            assert (rows[prompt]["output_lens"][draw], rows[prompt]["is_truncated"][draw]) == (length, is_truncated)
        for prompt, draw, tokens in before["begun"]:
            assert rows[prompt]["output_lens"][draw] >= len(tokens)
    assert not partial.exists()


def test_interruptions_do_not_change_the_lengths(
    chat_model: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redrawing what had not ended would leave too few long answers: the mean of 400 tells."""
    import pipelines.collect.draws

    snapshot_each_iteration(monkeypatch)
    often_ending = tmp_path / "often-ending"
    shutil.copytree(chat_model, often_ending)
    generation = json.loads((chat_model / "generation_config.json").read_text())
    ends = {"eos_token_id": [1, *range(10, 40)]}  # a random model takes one token in nine of these
    (often_ending / "generation_config.json").write_text(json.dumps({**generation, **ends}))
    settings, lengths = ("--draws", "20", "--max-running", "100"), []
    for name, interrupt_after in (("whole", 10**6), ("interrupted", 7)):
        out = tmp_path / f"{name}.parquet"
        while not out.exists():
            with monkeypatch.context() as patch:
                count_calls(patch, pipelines.collect.draws.PartialFile, "keep", interrupt_after=interrupt_after)
                assert collect(often_ending, prompts_file, out, *settings) in (0, 130)
        lengths.append(np.array([row["output_lens"] for row in pq.read_table(out).to_pylist()]).ravel())
    difference = lengths[1].mean() - lengths[0].mean()
    assert lengths[0].std() > 2.0
    assert abs(difference) < 3.5 * np.sqrt(sum(each.var() / each.size for each in lengths))


def test_collect_refuses_to_mix_settings(
    chat_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of another seed are not continued, and a damaged file is said to be one."""
    out, partial = tmp_path / "records.parquet", tmp_path / "records.parquet.partial.json"
    partial.write_text(
        json.dumps({"settings": {"seed": 7}, "ended": [], "begun": [], "cut": [], "num_prompt_tokens": []})
    )
    assert collect(chat_model, prompts_file, out) == 2
    assert "holds answers made with" in capsys.readouterr().err
    for damaged in ("{", "[]", '{"settings": 1, "ended": [[1]], "begun": []}'):
        partial.write_text(damaged)
        assert collect(chat_model, prompts_file, out) == 2
        assert "damaged" in capsys.readouterr().err


def evaluate(chat_model: Path, export: Path, prompts: Path, out: Path, *more: str) -> int:
    """Exit code of `amin evaluate`."""
    argv = ["evaluate", "--predictor", str(export), "--served-model", str(chat_model), "--prompts", str(prompts)]
    settings = ["--max-new-tokens", "24", "--block-size", "4", "--device", "cpu", "--out", str(out)]
    return main([*argv, *settings, *more])


@pytest.mark.parametrize("decoding", ["forced", "greedy"])
def test_evaluate_writes_results_and_a_report(
    chat_model: Path, exports: dict[str, Path], prompts_file: Path, tmp_path: Path, decoding: str
) -> None:
    """The files of the contract, one report that needs no network, identical tokens when greedy, figures by class."""
    out, prompts = tmp_path / "evaluation", tmp_path / "classes.jsonl"
    rows = [
        json.loads(line) | {"class": f"tenant {i % 2}"} for i, line in enumerate(prompts_file.read_text().splitlines())
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--kv-blocks", "40", "--decoding", decoding, "--seeds", "2"]
    more += ["--policies", "amin,fcfs,engine-fifo,hindsight"]
    assert evaluate(chat_model, exports["fp32"], prompts, out, *more) == 0
    results = json.loads((out / "results.json").read_text())
    for entry in results["policies"].values():
        assert {name: each["num_requests"] for name, each in entry["classes"].items()} == {
            "tenant 0": 10,
            "tenant 1": 10,
        }
    assert set(results["policies"]) == {"amin", "fcfs", "engine-fifo", "hindsight"}
    seed = results["policies"]["amin"]["seeds"][1]
    contract = {
        "seed", "total_latency", "mean_latency", "p50_latency", "p99_latency", "mean_ttft", "makespan", "num_evictions",
        "num_recomputed_tokens", "max_evictions_per_request", "mean_kv_utilization",
    }  # fmt: skip
    assert contract <= set(seed)
    assert results["kv_budget"] == 160
    if decoding == "greedy":
        assert results["identical_outputs"] == dict.fromkeys(results["policies"], 20)
    else:
        assert {len({s["num_output_tokens"] for s in p["seeds"]}) for p in results["policies"].values()} == {1}
    requests = pq.read_table(out / "requests.parquet")
    assert requests.num_rows == 20 * 2 * len(results["policies"])
    assert requests.column_names == [
        "policy", "seed", "request_id", "class", "arrival_time", "admission_time", "first_token_time", "finish_time",
        "output_len", "num_evictions", "num_recomputed_tokens",
    ]  # fmt: skip
    page = (out / "report.html").read_text()
    assert "<h2>Classes</h2>" in page
    text = re.sub(r"data:image/png;base64,[^\"]*", "", page)  # a picture may spell anything
    assert "http" not in text.split("<h2>Environment")[0]
    assert page.count("data:image/png") == 6


def test_interrupted_reference_answers_go_on_where_they_were(
    chat_model: Path,
    exports: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that had begun too, token by token; with other settings they are refused, with --force made again."""
    import pipelines.collect.draws

    snapshot_each_iteration(monkeypatch)
    base = ["--kv-blocks", "40", "--decoding", "greedy", "--seeds", "1", "--policies", "fcfs"]
    run = functools.partial(evaluate, chat_model, exports["fp32"], prompts_file)
    assert run(tmp_path / "whole", *base) == 0
    out, reference = tmp_path / "out", tmp_path / "out/runs/reference.partial.json"
    kept: list[dict[str, Any]] = []
    for more in ([], ["--resume"], ["--resume"]):
        with monkeypatch.context() as patch:
            count_calls(patch, pipelines.collect.draws.PartialFile, "keep", interrupt_after=6)
            assert run(out, *base, *more) == 130
        kept.append(json.loads(reference.read_text()))
    sizes = [sum(len(tokens) for *_, tokens in before["begun"]) for before in kept]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert run(out, *base) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert run(out, *base, "--resume", "--seed", "7") == 2
    assert "holds answers made with seed 0, now it is 7" in capsys.readouterr().err
    assert run(out, *base, "--resume") == 0
    cases = [json.loads((folder / "runs/case.json").read_text()) for folder in (tmp_path / "whole", out)]
    assert cases[0] == cases[1]
    for before in kept:
        for i, _, tokens in before["begun"]:
            assert cases[1]["reference"][i][: len(tokens)] == tokens
    assert not reference.exists()
    assert "identical_outputs" in (out / "results.json").read_text()


def test_evaluate_takes_the_levels_that_were_tuned(
    chat_model: Path, exports: dict[str, Path], prompts_file: Path, tmp_path: Path
) -> None:
    """A tau and the options of a policy."""
    file = tmp_path / "scheduling.json"
    options = {"reserve_sd": 100.0, "max_reserve": 0.9}
    file.write_text(json.dumps({"policies": {"amin": {"tau": 0.25}, "amin-survival": {"options": options}}}))
    more = ["--kv-blocks", "60", "--seeds", "1", "--policies", "amin-survival", "--scheduling", str(file)]
    assert evaluate(chat_model, exports["fp32"], prompts_file, tmp_path / "tuned", *more) == 0
    results = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert results["bounds"]["tau"] == 0.25
    assert results["policies"]["amin-survival"]["mean"]["mean_kv_utilization"] < 0.5
    assert results["replay"]["amin-survival"]["simulated_mean_latency"] > 0


def test_the_engine_alone_serves_the_same_tokens(chat_model: Path) -> None:
    """Under pressure the engine's own scheduler evicts too, and a request's clock runs from its arrival."""
    from pipelines.served_model.loading import load_served_model
    from pipelines.settings.sampling import Sampling
    from scheduler.integrations.transformers_fifo import EngineFifo

    rng = np.random.default_rng(0)
    served = load_served_model(str(chat_model), CAP, "cpu", sampling=Sampling(temperature=0.0), exact=True)
    prompts = [rng.integers(4, len(served.tokenizer), int(n)).tolist() for n in rng.integers(3, 30, 20)]
    requests = [Request(f"r{i}", len(prompt), CAP, 1e-6 * i) for i, prompt in enumerate(prompts)]
    engine = EngineFifo(served.model, prompts, requests, KvCache(60, 4), served.generation_config, max_batch_tokens=48)
    result = engine.run()
    engine.close()
    assert engine.outputs == run_policy(chat_model, "fcfs", 800)[0]
    assert result.num_evictions.sum() > 0
    assert (result.arrival_time <= result.admission_time).all()
    assert (result.admission_time < result.first_token_time).all()
    assert (result.first_token_time <= result.finish_time).all()
    assert result.output_len.tolist() == [len(engine.outputs[i].tokens) for i in range(20)]
    assert max(result.timeline.kv_blocks) <= 60


def test_evaluate_takes_arrivals_and_splits(
    chat_model: Path, exports: dict[str, Path], prompts_file: Path, tmp_path: Path
) -> None:
    """Arrival times shift with the rate, only the split asked for is run, and the warm-up is not counted."""
    out = tmp_path / "evaluation"
    more = ["--arrivals", "poisson:50", "--split", "test", "--policies", "amin,fcfs", "--decoding", "sample"]
    more += ["--seeds", "1"]
    assert evaluate(chat_model, exports["int8"], prompts_file, out, *more) == 0
    arrivals = pq.read_table(out / "requests.parquet").column("arrival_time").to_pylist()
    assert len(arrivals) == 20
    assert min(arrivals) > 0
    results = json.loads((out / "results.json").read_text())
    assert (results["workload"]["num_requests"], results["workload"]["num_warm_up"]) == (10, 1)
    assert results["bounds"]["timeout_ms"] == 50
    amin, fcfs = (results["policies"][name]["mean"] for name in ("amin", "fcfs"))
    assert amin["mean_prediction_delay"] > 0 == fcfs["mean_prediction_delay"]
    assert amin["prediction_share"] > 0 == fcfs["prediction_share"]


def test_an_interrupted_evaluation_is_partial_and_continues(
    chat_model: Path,
    exports: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished runs are kept and not made again; other settings are refused; the results say what is missing."""
    import pipelines.evaluate.stage
    import pipelines.evaluate.sweep

    out = tmp_path / "out"
    monkeypatch.setattr(pipelines.evaluate.sweep, "NUM_SEEDS", 2)
    monkeypatch.setattr(pipelines.evaluate.sweep, "FEWEST_REQUESTS", 30)
    base = ["--kv-blocks", "40", "--policies", "fcfs,amin", "--seeds", "2"]
    run_evaluation = functools.partial(evaluate, chat_model, exports["fp32"], prompts_file, out, *base)
    with monkeypatch.context() as patch:
        count_calls(patch, pipelines.evaluate.stage, "run_policy", interrupt_after=3)  # warm-up, fcfs, amin
        assert run_evaluation() == 130
    results = json.loads((out / "results.json").read_text())
    assert results["partial"]
    assert results["missing_runs"] == ["amin seed 1", "fcfs seed 1"]
    assert "Partial results" in (out / "report.html").read_text()
    before = results["policies"]["amin"]["seeds"][0]
    assert run_evaluation() == 2
    assert "--resume" in capsys.readouterr().err
    assert run_evaluation("--tau", "0.2", "--resume") == 2
    assert "made with tau 0.1, now it is 0.2" in capsys.readouterr().err
    kept = prompts_file.read_text()
    prompts_file.write_text(kept.replace("night 3", "night 33"))
    assert run_evaluation("--resume") == 2
    assert "made with contents of prompts" in capsys.readouterr().err
    prompts_file.write_text(kept)

    calls = count_calls(monkeypatch, pipelines.evaluate.stage, "run_policy")
    assert run_evaluation("--resume") == 0
    assert [arguments[:2] for arguments in calls] == [("fcfs", 0), ("amin", 1), ("fcfs", 1)]
    results = json.loads((out / "results.json").read_text())
    assert not results["partial"]
    assert results["policies"]["amin"]["seeds"][0] == before
    paired = results["policies"]["amin"]["versus_fcfs"]["mean_latency"]
    assert paired["ratio_interval_95"] > 0
    assert results["policies"]["fcfs"]["versus_fcfs"]["mean_latency"]["ratio"] == 1

    workload = out / "workload.jsonl"
    argv = ["simulate", str(workload), "--bins", f"{workload}.bins.json", "--cost-model", str(out / "cost_model.json")]
    argv += ["--kv-budget", "160", "--block-size", "4", "--policies", "amin", "--out", str(tmp_path / "simulated")]
    assert main(argv) == 0
    assert set(results["replay"]) == {"fcfs", "amin"}

    assert run_evaluation() == 2  # nothing that is there is lost
    assert "is there already; go on with --resume" in capsys.readouterr().err
    run = out / "runs" / "amin-1.npz"
    whole = run.read_bytes()
    for damaged in (b"", whole[:2000], b"PK"):
        run.write_bytes(damaged)
        assert run_evaluation("--resume") == 2
        assert "amin-1.npz: damaged" in capsys.readouterr().err
    run.write_bytes(whole)

    assert run_evaluation("--resume", "--sweep") == 0
    cells = json.loads((out / "results.json").read_text())["sweep"]["cells"]
    assert sum(cell.get("measured_gain", 0) > 0 and cell["replayed_gain"] > 0 for cell in cells) == 2
    assert all(cell["gain"]["mean_latency"] > 0 for cell in cells)
    assert (out / "map.png").exists()


def test_a_bound_beyond_the_cache_is_no_length(
    chat_model: Path, exports: dict[str, Path], prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that fit are served, replayed and mapped, whatever was predicted of them."""
    import pipelines.evaluate.sweep
    from predictor.bounds.calibration import PitCalibration

    monkeypatch.setattr(PitCalibration, "level", lambda *_: 0.999)
    monkeypatch.setattr(pipelines.evaluate.sweep, "NUM_SEEDS", 2)
    monkeypatch.setattr(pipelines.evaluate.sweep, "FEWEST_REQUESTS", 30)
    monkeypatch.setattr(pipelines.evaluate.sweep, "MEASURED", ())
    rows = [{**json.loads(line), "output_lens": [3]} for line in prompts_file.read_text().splitlines()]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--max-new-tokens", "200", "--kv-blocks", "12", "--policies", "fcfs,amin,amin-survival", "--seeds", "1"]
    assert evaluate(chat_model, exports["fp32"], records, tmp_path / "out", *more, "--sweep") == 0
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["sweep"]["cells"]
    assert {cell["kv_blocks"] for cell in cells} >= {12, 18, 24}
    lines = [json.loads(line) for line in (tmp_path / "out" / "workload.jsonl").read_text().splitlines()]
    assert all(line["num_prompt_tokens"] + line["output_len_lower_bound"] <= 48 for line in lines)
    assert any(line["num_prompt_tokens"] + line["output_len_lower_bound"] == 48 for line in lines)


def test_out_of_memory_is_one_line(
    chat_model: Path,
    exports: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what to lower."""
    import torch

    import pipelines.evaluate.stage

    def exhaust(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipelines.evaluate.stage, "run_policy", exhaust)
    assert evaluate(chat_model, exports["fp32"], prompts_file, tmp_path / "out") == 2
    assert "out of memory on the device: lower --kv-blocks" in capsys.readouterr().err


def test_a_model_without_a_chat_template_gets_the_prompts_as_they_are(
    chat_model: Path, exports: dict[str, Path], prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, not hidden; one without an end token is refused."""
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(chat_model, plain)
    (plain / "chat_template.jinja").unlink()
    more = ["--policies", "fcfs", "--seeds", "1", "--kv-blocks", "40"]
    assert evaluate(plain, exports["fp32"], prompts_file, tmp_path / "out", *more) == 0
    assert "plain has no chat template" in capsys.readouterr().out
    assert not json.loads((tmp_path / "out" / "results.json").read_text())["environment"]["chat_template"]
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((plain / name).read_text())
        values.pop("eos_token_id", None), values.pop("eos_token", None)
        (plain / name).write_text(json.dumps(values))
    assert evaluate(plain, exports["fp32"], prompts_file, tmp_path / "none", *more) == 2
    assert "has no end token" in capsys.readouterr().err


BAD = {
    "missing file": (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    "unknown policy": (["--policies", "amin,sjfx"], "sjfx"),
    "budget too small": (["--kv-blocks", "3"], "do not fit the KV budget of 12 tokens"),
    "prompt beyond the context": (["--max-new-tokens", "250"], "row 1: the prompt has"),
    "hindsight cannot sample": (["--decoding", "sample"], "hindsight"),
    "arrivals": (["--arrivals", "poisson:-1"], "poisson:-1"),
    "not a model": (["--served-model", "no-such-model"], "no-such-model"),
    "not a predictor": (["--predictor", "no-such-predictor"], "no-such-predictor"),
    "no prompt": (["--split", "calibration"], "calibration"),
    "unknown served model of the predictor": (["--predictor-model", "gpt-9"], "'gpt-9' is not known"),
    "predict timeout": (["--predict-timeout", "0"], "--predict-timeout: must be above 0"),
    "endless predict timeout": (["--predict-timeout", "inf"], "--predict-timeout: must be"),
    "small pages": (["--block-size", "1"], "--block-size: must be at least 4"),
    "not a model in the file": (["--model", "gpt-9"], "gpt-9"),
    "warm-up": (["--warm-up", "0.9"], "--warm-up: must be"),
    "levels, before the model": (
        ["--scheduling", "missing.json", "--tau", "0.2", "--served-model", "no-such-model"],
        "missing.json: No such file or directory; amin tune writes it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    chat_model: Path,
    exports: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    """Exit code 2, one line that says what is wrong, no output folder."""
    more, message = BAD[case]
    assert evaluate(chat_model, exports["fp32"], prompts_file, tmp_path / "out", *more) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amin evaluate: error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_hub_name_without_a_network_is_bad_input(
    exports: dict[str, Path],
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line says what a hub model needs."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert evaluate(Path("nobody/no-model"), exports["fp32"], prompts_file, tmp_path / "out") == 2
    assert "needs a network" in capsys.readouterr().err
