"""`amin evaluate --endpoint` against small servers in this process."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from pipelines.cli import main
from pipelines.evaluate.endpoint.figures import compare, server_figures
from pipelines.evaluate.endpoint.measure import Sent, Server, ServerRun, plan
from pipelines.evaluate.endpoint.stage import turns
from scheduler.metrics import Targets

PROMPTS = [f"prompt {'x' * i}" for i in range(6)]


class ModelServer:
    """Answers a prompt with as many tokens as it has words and x, or as `refuse` says; remembers what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models: Any = {"data": [{"id": "only"}]}
        self.refuse: Callable[[str], str] = lambda prompt: ""
        self.url = ""

    def app(self) -> web.Application:
        """What is served."""
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The requests of runs, without those that only try the server."""
        return [body for body in self.bodies if body["max_tokens"] > 8]

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(self.models)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        prompt = body["messages"][-1]["content"]
        problem = self.refuse(prompt) if body["max_tokens"] > 8 else ""
        if problem.isdigit():
            return web.Response(status=int(problem), text="not now")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        num_tokens = len(prompt.split()) + prompt.count("x")
        for k in range(num_tokens):
            await _say(response, {"choices": [{"delta": {"content": f"w{k} "}}]})
            if problem == "cut":
                assert request.transport is not None
                request.transport.close()
                return response
        await _say(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await _say(response, {"choices": [], "usage": {"completion_tokens": num_tokens + 1, "prompt_tokens": 5}})
        return response


async def _say(response: web.StreamResponse, event: Any) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@pytest.fixture
def servers(serve: Callable[[web.Application], str]) -> tuple[ModelServer, ModelServer]:
    """Two of them."""
    pair = ModelServer(), ModelServer()
    for each in pair:
        each.url = f"{serve(each.app())}/v1"
    return pair


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Six prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def evaluate(servers: tuple[ModelServer, ...], prompts: Path, out: Path, *more: str) -> int:
    """Exit code of `amin evaluate` on one server or two."""
    urls = ["--endpoint", servers[0].url, *(["--endpoint-b", servers[1].url] if len(servers) > 1 else [])]
    return main(["evaluate", *urls, "--prompts", str(prompts), "--out", str(out), *more])


def test_two_servers_get_the_same_requests(
    servers: tuple[ModelServer, ModelServer], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the same times with the same seeds of sampling; what they said is compared, and a report opens from disk."""
    out = tmp_path / "out"
    options = ["--arrivals", "poisson:500", "--seeds", "2", "--temperature", "0", "--ttft-target", "100"]
    assert evaluate(servers, prompts, out, *options) == 0
    a, b = ([(m["messages"], m["seed"]) for m in each.measured] for each in servers)
    assert sorted(map(str, a)) == sorted(map(str, b))
    assert len(a) == 12
    results = json.loads((out / "results.json").read_text())
    assert set(results["servers"]) == {"a", "b"}
    for entry in results["servers"].values():
        assert entry["served_model"] == "only"
        assert entry["errors"] == {}
        mean = entry["mean"]
        assert (mean["num_requests"], mean["num_failures"], mean["attainment"]) == (6, 0, 1)
        assert 0 < mean["mean_ttft"] <= mean["mean_latency"] <= mean["p99_latency"]
    assert (results["b_over_a"]["num_compared"], results["b_over_a"]["num_identical"]) == (12, 12)
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    by_server = [[(r["seed"], r["prompt"], r["arrival_time"]) for r in rows if r["server"] == name] for name in "ab"]
    assert by_server[0] == by_server[1]
    assert {r["output_len"] for r in rows} == {2, 4, 5, 6, 7, 8}
    assert "://" not in (out / "report.html").read_text().replace(servers[0].url, "").replace(servers[1].url, "")
    said = capsys.readouterr().out
    assert "12 of 12 answers were identical" in said
    assert "in mean latency" in said


def test_failures_are_counted_by_reason_and_not_tried_again(
    servers: tuple[ModelServer, ModelServer], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are in no latency; the comparison is over what both answered, and the report says so first."""
    servers[1].refuse = lambda prompt: {PROMPTS[1]: "503", PROMPTS[2]: "cut"}.get(prompt, "")
    assert evaluate(servers, prompts, tmp_path / "out", "--seeds", "1", "--ttft-target", "100") == 0
    assert len(servers[1].measured) == 6
    results = json.loads((tmp_path / "out/results.json").read_text())
    b = results["servers"]["b"]
    assert (b["mean"]["num_failures"], results["servers"]["a"]["mean"]["num_failures"]) == (2, 0)
    assert b["mean"]["attainment"] == pytest.approx(4 / 6)
    assert sum(b["errors"].values()) == 2
    assert b["errors"]["HTTP 503: not now"] == 1
    assert results["b_over_a"]["num_compared"] == 4
    said = capsys.readouterr().out
    assert "b: 1 requests FAILED: HTTP 503: not now" in said
    assert "REQUESTS FAILED (a 0, b 2 of 6 a run), and those that fail leave room for the others: b was" in said
    rows = pq.read_table(tmp_path / "out/requests.parquet").to_pylist()
    assert {row["prompt"] for row in rows if row["error"]} == {1, 2}


def test_an_interrupted_evaluation_goes_on(
    servers: tuple[ModelServer, ModelServer], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that goes down ends it in one line; finished runs stay as partial results and are not made again."""
    out = tmp_path / "out"
    servers[1].refuse = lambda prompt: "500"
    assert evaluate(servers, prompts, out, "--seeds", "2") == 2
    printed = capsys.readouterr()
    (error,) = [line for line in printed.err.splitlines() if line.startswith("amin evaluate: error")]
    assert "no request of seed 0 was answered (HTTP 500: not now)" in error
    assert "PARTIAL: 3 runs are missing" in printed.out
    assert json.loads((out / "results.json").read_text())["missing_runs"] == ["b seed 0", "b seed 1", "a seed 1"]
    servers[1].refuse = lambda prompt: ""
    assert evaluate(servers, prompts, out, "--seeds", "2", "--resume") == 0
    assert [len(each.measured) for each in servers] == [12, 18]
    assert "continuing: 1 of 4" in capsys.readouterr().out
    assert not json.loads((out / "results.json").read_text())["partial"]
    assert evaluate(servers, prompts, out, "--resume", "--max-new-tokens", "99", "--seeds", "2") == 2
    assert "made with max_new_tokens 512, now it is 99" in capsys.readouterr().err
    (out / "runs/a-1.parquet").write_bytes(b"PAR1")
    assert evaluate(servers, prompts, out, "--resume", "--seeds", "2") == 2
    assert "a-1.parquet: damaged" in capsys.readouterr().err


def test_a_server_is_tried_before_any_run(
    servers: tuple[ModelServer, ModelServer],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's name is the server's own where it has one; several, none, or nobody there are a line each."""
    monkeypatch.setenv("MY_KEY", "secret")
    assert evaluate(servers[:1], prompts, tmp_path / "one", "--seeds", "1", "--api-key-env", "MY_KEY") == 0
    assert {body["model"] for body in servers[0].bodies} == {"only"}
    assert set(servers[0].keys) == {"Bearer secret"}
    for models, problem in (
        ({"data": [{"id": "x"}, {"id": "y"}]}, "it has 2 models (x, y); name one with --served-model"),
        ({"data": 5}, "does not list its models"),
        ([], "does not list its models"),
    ):
        servers[1].models = models
        assert evaluate(servers, prompts, tmp_path / "two") == 2
        assert f"--endpoint-b {servers[1].url}: {problem}" in capsys.readouterr().err.replace("it does", "does")
    assert evaluate(servers, prompts, tmp_path / "two", "--served-model", "y", "--seeds", "1") == 0
    assert {body["model"] for body in servers[1].bodies} == {"y"}
    nobody = [
        "evaluate",
        "--endpoint",
        "http://127.0.0.1:9/v1",
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(nobody) == 2
    assert "--endpoint http://127.0.0.1:9/v1: Cannot connect" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--endpoint", "http://h/v1", "--predictor", "p"], "--predictor: not with --endpoint"),
        (["--endpoint", "http://h/v1", "--kv-blocks", "5"], "--kv-blocks: not with --endpoint"),
        (["--endpoint", "http://h/v1", "--policies", "fcfs"], "--policies: not with --endpoint"),
        (["--endpoint", "http://h/v1", "--sweep"], "--sweep: not with --endpoint"),
        (["--endpoint", "h:80"], "--endpoint: 'h:80' is not an address"),
        (["--endpoint-b", "http://h/v1", "--predictor", "p"], "--endpoint-b: only with --endpoint"),
        (["--ttft-target", "1", "--predictor", "p"], "--ttft-target: only with --endpoint"),
        ([], "--predictor is missing"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    options: list[str], problem: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is read."""
    assert main(["evaluate", "--prompts", str(prompts), "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_plan_is_the_same_for_every_server() -> None:
    """Every prompt once, in another order by seed, the first at once."""
    planned = plan("gamma:5:2", 50, 3)
    assert planned == plan("gamma:5:2", 50, 3)
    assert planned != plan("gamma:5:2", 50, 4)
    assert sorted(each.prompt for each in planned) == list(range(50))
    times = [each.arrival_time for each in planned]
    assert times == sorted(times)
    assert times[0] == 0
    assert len({each.seed for each in planned}) == 50


def test_the_server_that_begins_alternates() -> None:
    """A machine that slows down must not always hit the same one."""
    a, b = Server("a", "", ""), Server("b", "", "")
    assert [(server.name, seed) for server, seed in turns([a, b], [7, 8])] == [("a", 7), ("b", 7), ("b", 8), ("a", 8)]


def _run(server: str, seed: int, rng: np.random.Generator, scale: float = 1.0, num_failed: int = 0) -> ServerRun:
    sent = []
    for k in range(20):
        first, decode = scale * rng.uniform(0.1, 1), scale * rng.uniform(1, 5)
        length, error = int(rng.integers(2, 50)), "gone" if k < num_failed else ""
        sent.append(Sent(k, k / 2, 0.0, k / 2 + first, k / 2 + first + decode, length, 5, False, "", error))
    return ServerRun(server, seed, sent)


def test_figures_are_of_what_was_answered_after_the_warm_up() -> None:
    """By hand; goodput is what keeps both targets over the makespan."""
    run = _run("a", 0, np.random.default_rng(0), num_failed=3)
    figures = server_figures([run], 2, Targets(0.5, 0.2))
    (seed,) = figures["seeds"]
    rows = run.requests[3:]
    latency = [each.finish_time - each.arrival_time for each in rows]
    assert seed["mean_latency"] == pytest.approx(np.mean(latency))
    assert (seed["num_requests"], seed["num_failures"]) == (18, 1)
    makespan = max(each.finish_time for each in rows) - min(each.arrival_time for each in rows)
    assert seed["throughput"] == pytest.approx(sum(each.output_len for each in rows) / makespan)
    in_time = [
        each.first_token_time - each.arrival_time <= 0.5
        and each.finish_time - each.first_token_time <= 0.2 * (each.output_len - 1)
        for each in rows
    ]
    assert seed["goodput"] == pytest.approx(sum(in_time) / makespan)
    assert seed["attainment"] == pytest.approx(sum(in_time) / 18)
    assert figures["interval_95"] is None
    assert figures["errors"] == {"gone": 3}
    assert not any(isinstance(value, float) and math.isnan(value) for value in seed.values())


def test_a_server_compared_with_itself_is_as_fast() -> None:
    """And one that takes half of the time for everything is twice as fast, failures of either left out."""
    runs = [_run("a", seed, np.random.default_rng(seed)) for seed in range(3)]
    same = compare(runs, runs, 2, Targets())
    assert same is not None
    assert same["mean_latency"]["ratio"] == 1
    half = [_run("b", seed, np.random.default_rng(seed), scale=0.5, num_failed=4) for seed in range(3)]
    faster = compare(runs, half, 0, Targets())
    assert faster is not None
    assert faster["mean_latency"]["ratio"] == pytest.approx(2)
    assert faster["mean_ttft"]["ratio_interval_95"] == pytest.approx(0, abs=1e-9)
    assert (faster["num_compared"], faster["num_identical"]) == (48, 48)
    assert compare(runs, [_run("b", 9, np.random.default_rng(0))], 0, Targets()) is None
