"""The plug-in in a real engine: the OpenAI-compatible server, on a CPU, with a random model of two layers."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from pipelines.collect.draws import PartialFile
from pipelines.collect.endpoint import collect_from
from pipelines.evaluate.endpoint.knock import find_servers
from pipelines.evaluate.endpoint.measure import measure, plan
from pipelines.settings.collect import CollectSettings
from pipelines.settings.evaluate import SERVED_MODEL, EvaluateSettings
from pipelines.settings.sampling import Sampling
from pipelines.settings.server import Servers
from predictor.errors import InputError

ROOT = Path(__file__).parents[4]
CHATS = [[{"role": "user", "content": f"number {i} and its friends"}] for i in range(8)]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Server:
    """Asks a vLLM server."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model

    def get(self, path: str) -> str:
        """Return what stands there."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def complete(self, prompt: str, max_tokens: int = 48, **options: Any) -> dict[str, Any]:
        """Return the answer to a completion request; `vllm_xargs` carries bounds."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **options}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            value: dict[str, Any] = json.loads(answer.read())
        return value

    def metric(self, name: str) -> float:
        """Return a metric's value, summed over its labels."""
        return sum(float(line.split()[-1]) for line in self.get("/metrics").splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with predictions, prefix caching as by default, room for a few requests and for one of two adapters."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "metrics").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "predictor": str(ROOT / "checkpoints/length-predictor-small"),
        "model": "average",
        "state": str(folder / "learnt.json"),
        "timeout": 5.0,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(tiny_model), "--dtype", "float32", "--enforce-eager", "--max-model-len", "384"]
    command += ["--block-size", "32", "--num-gpu-blocks-override", "25"]
    command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "8"]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in tiny_adapters.items())]
    command += ["--scheduler-cls", "pipelines.vllm_scheduler.PredictingScheduler"]
    command += ["--additional-config", json.dumps({"amin": settings})]
    environment = os.environ | ENVIRONMENT | {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            asked = Server(f"http://127.0.0.1:{port}", str(tiny_model))
            _wait_until_ready(asked, process, folder / "log")
            yield asked
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_ready(asked: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            asked.get("/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(log.read_text()[-4000:])


def test_a_burst_is_predicted_and_answered_as_without_the_policy(server: Server) -> None:
    """Thirty at once in room for six: every answer is whole, and the same prompt alone gets the same tokens."""
    prompts = [f"number {i} and its friends" for i in range(30)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(server.complete, prompts))
    assert all(answer["usage"]["completion_tokens"] == 48 for answer in answers)
    alone = server.complete(prompts[7])
    assert alone["choices"][0]["text"] == answers[7]["choices"][0]["text"]
    time.sleep(1.1)
    server.complete("one more")
    assert server.metric("amin_predicted_total") >= 31
    assert server.metric("amin_failures_total") == 0
    assert server.metric("amin_decisions_total") > 48
    assert server.metric("amin_bounds_covered_total") + server.metric("amin_bounds_missed_total") >= 31
    assert 0 <= server.metric("amin_coverage") <= 1


def test_draws_bounds_of_ones_own_and_stop_strings(server: Server) -> None:
    """With n = 3 there are three answers; a bound in `vllm_xargs` is taken; an answer ends with its stop string."""
    several = server.complete("three of them", n=3, temperature=0.9)
    assert len(several["choices"]) == 3
    plain = server.complete("stop somewhere", vllm_xargs={"output_len_lower_bound": 20})
    text = plain["choices"][0]["text"]
    stopped = server.complete("stop somewhere", stop=[text[len(text) // 2 :][:4]])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] < 48


def test_adapters_take_turns(server: Server) -> None:
    """Six requests for each of two adapters: each is answered by its own, as alone."""
    models = ["left", "right"] * 6  # in a batch with an adapter vLLM's CPU build applies it to the model's own, too

    def ask(model: str) -> str:
        answer = server.complete("turn and turn about", model=model)
        assert answer["usage"]["completion_tokens"] == 48
        return str(answer["choices"][0]["text"])

    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(ask, models))
    alone = {model: ask(model) for model in set(models)}
    assert together == [alone[model] for model in models]
    assert alone["left"] != alone["right"]
    assert server.metric("amin_failures_total") == 0


def test_grammars_are_compiled_beside_the_others(server: Server) -> None:
    """An answer that must be one of two words, in the midst of plain ones."""
    with ThreadPoolExecutor(9) as pool:
        plain = [pool.submit(server.complete, f"plain {i}") for i in range(8)]
        choice = pool.submit(server.complete, "yes or no", structured_outputs={"choice": ["yes", "no"]})
        answer = choice.result()["choices"][0]["text"]
        assert answer.replace(" ", "") in ("yes", "no")  # the tokenizer of the random model puts spaces between pieces
        assert all(each.result()["usage"]["completion_tokens"] == 48 for each in plain)


def test_lengths_are_collected_from_a_real_server(server: Server, tmp_path: Path) -> None:
    """Two draws of each prompt under the cap, as the server counts them, and the prompts' lengths."""
    settings = CollectSettings(
        prompts=tmp_path / "unread",
        out=tmp_path / "records.parquet",
        served_model=server.model,
        endpoint=f"{server.url}/v1",
        draws=2,
        max_new_tokens=24,
        sampling=Sampling(temperature=1.0),
    )
    partial = PartialFile(settings.out, {})
    answerer = collect_from(settings, CHATS, partial)
    ended = partial.read().ended
    assert set(ended) == {(i, d) for i in range(len(CHATS)) for d in range(2)}
    assert all(1 <= length <= 24 and is_cut == (length == 24) for length, is_cut in ended.values())
    assert all(size is not None and size > 4 for size in answerer.num_prompt_tokens)


def test_a_real_server_is_measured_from_outside(server: Server, tmp_path: Path) -> None:
    """Every request is answered, in the order of time; greedy answers are the same in every seed."""
    settings = EvaluateSettings(
        prompts=tmp_path / "unread",
        out=tmp_path,
        served_model=server.model,  # one of three: adapters are models to clients
        max_new_tokens=24,
        sampling=Sampling(temperature=0.0),
        servers=Servers(endpoint=f"{server.url}/v1"),
    )
    (found,) = asyncio.run(find_servers(settings, CHATS))
    assert found.model == server.model
    runs = [
        asyncio.run(measure(found, seed, plan(arrivals, len(CHATS), seed), CHATS, settings))
        for seed, arrivals in enumerate(("all-at-once", "poisson:20"))
    ]
    for run in runs:
        assert not any(sent.error for sent in run.requests)
        assert all(s.arrival_time < s.first_token_time <= s.finish_time and s.output_len <= 24 for s in run.requests)
    first, second = ({sent.prompt: (sent.output_len, sent.answer) for sent in run.requests} for run in runs)
    assert first == second
    with pytest.raises(InputError, match="it has 3 models"):
        asyncio.run(find_servers(replace(settings, served_model=SERVED_MODEL), CHATS))
    nobody = replace(settings.servers, endpoint=f"{server.url}/v2")
    with pytest.raises(InputError, match="no such model or path"):
        asyncio.run(find_servers(replace(settings, servers=nobody), CHATS))
