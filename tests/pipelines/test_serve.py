"""`amin serve` and `pipelines.studies.load` as processes: connections, signals, exit codes."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.serve import warn_of_strangers
from pipelines.studies.load import load, open_load
from pipelines.studies.load_client import Client

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(
    export: Path, *options: str, interpreter: tuple[str, ...] = ("-m", "pipelines.cli")
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running sidecar and its port; it is killed at the end if it still runs."""
    command = [sys.executable, *interpreter, "serve", str(export), "--port", "0", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"amin serve: http://127\.0\.0\.1:(\d+) ", line)
        assert found, line + process.stdout.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def port(exports: dict[str, Path]) -> Iterator[int]:
    """The port of a sidecar shared by the tests that leave it running; it must still answer at the end."""
    with serving(exports["fp32"], "--max-connections", "400", "--deadline-ms", "60000") as (process, port):
        yield port
        assert process.poll() is None
        assert get(port, "/readyz") == '{"status":"ready"}'


def get(port: int, path: str) -> str:
    """The body of a GET."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        body: str = response.read().decode()
    return body


def body_of(**fields: object) -> bytes:
    """A request of one prompt."""
    return json.dumps({"prompt": "Write a story", **fields}).encode()


async def post_once(port: int, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer on a connection of its own."""
    return await post_to(port, "/v1/predict", body)


def test_hundreds_of_connections_at_once_are_answered(port: int) -> None:
    """300 connections with two requests each: an answer for everyone."""
    outcome = asyncio.run(load(("127.0.0.1", port), [body_of(deadline_ms=60_000)] * 600, 300))
    assert len(outcome.latencies) == 600
    assert not outcome.errors
    assert outcome.answers.total() == 600
    assert outcome.answers["model"] > 0


def test_an_open_loop_does_not_wait_for_answers(port: int) -> None:
    """Requests come at their times; each is answered."""
    outcome = asyncio.run(open_load(("127.0.0.1", port), [body_of(deadline_ms=60_000)] * 60, 300.0))
    assert len(outcome.latencies) == 60
    assert not outcome.errors


def test_idle_connections_make_room(port: int) -> None:
    """More of them than may be open: requests, probes and metrics are answered meanwhile."""

    async def crowd() -> tuple[int, int]:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(600)]
        crowded, _ = await post_once(port, body_of())
        probes = [await asyncio.to_thread(get, port, path) for path in ("/healthz", "/metrics")]
        ended = sum(reader.at_eof() for reader, _ in idle)
        for _, writer in idle:
            writer.close()
        assert all(probes)
        return crowded, ended

    status, ended = asyncio.run(crowd())
    assert status == 200
    assert 150 <= ended <= 250


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n", b"400"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /\xff\xfe?\x00 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused(port: int, sent: bytes, status: bytes) -> None:
    """On the wire, below the application."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(1000).split()[1] == status


def test_a_body_that_breaks_off_leaves_nothing_behind(port: int) -> None:
    """Fifty times; the module's fixture looks whether the server still answers."""
    head = (
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head + b'{"prompt": ')
    assert "Traceback" not in get(port, "/metrics")


def test_the_load_generator_counts_everything(port: int, records_file: Path, tmp_path: Path) -> None:
    """Answers, fallbacks and errors add up to the requests, and so does the histogram."""
    command = [
        sys.executable,
        "-m",
        "pipelines.studies.load",
        str(records_file),
        "--port",
        str(port),
        "--requests",
        "300",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path / "load.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "load.json").read_text())
    assert figures["predicted"] + sum(figures["fallbacks"].values()) == 300
    assert sum(figures["histogram_ms"]["counts"]) == 300
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"] <= figures["latency_ms"]["max"]
    assert "p99 ms" in done.stdout


def test_the_load_generator_says_when_nobody_answers(records_file: Path, tmp_path: Path) -> None:
    """Errors are counted and the exit code is 1; 2 for a file that is none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for file, code in ((records_file, 1), (tmp_path / "none.jsonl", 2)):
        command = [sys.executable, "-m", "pipelines.studies.load", str(file), "--port", str(port), "--requests", "10"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "10 ConnectionRefusedError" in done.stdout or "none.jsonl" in done.stderr


def test_silent_connections_end(exports: dict[str, Path]) -> None:
    """Those that say nothing, and those that stop in the middle of a head or after an answer."""
    with serving(exports["fp32"], "--silence", "0.5") as (_, port):
        for said in (b"", b"POST /v1/pre", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(said)
                with suppress(ConnectionResetError):
                    while connection.recv(1000):
                        pass
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            assert connection.recv(1000).split()[1] == b"408"


def test_more_connections_than_files_are_no_flood_of_tracebacks(exports: dict[str, Path]) -> None:
    """With 256 files, 400 connections that stay open: who asks is answered, and nothing is logged."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
    run = f"{limit} sys.argv[0] = 'amin'; runpy.run_module('pipelines.cli', run_name='__main__')"
    with serving(exports["fp32"], interpreter=("-c", run)) as (process, port):
        idle = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(400)]
        try:
            assert get(port, "/healthz") == '{"status":"ok"}'
            assert asyncio.run(post_once(port, body_of(deadline_ms=60_000)))[0] == 200
        finally:
            for connection in idle:
                connection.close()
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_a_key_by_file_or_environment_and_a_warning_without_one(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond loopback anyone can steer the bounds: said on stderr, unless there is a key."""
    (tmp_path / "key").write_text("secret\n")
    with serving(exports["fp32"], "--api-key-file", str(tmp_path / "key")) as (_, port):
        assert asyncio.run(post_once(port, body_of()))[0] == 401
    monkeypatch.setitem(ONE_THREAD, "AMIN_API_KEY", "secret")
    with serving(exports["fp32"]) as (_, port):
        assert asyncio.run(post_once(port, body_of()))[0] == 401


def post(port: int, path: str, **body: object) -> dict[str, Any]:
    """The answer to a JSON body."""
    status, answer = asyncio.run(post_to(port, path, json.dumps(body).encode()))
    assert status == 200, answer
    return json.loads(answer)


async def post_to(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer on a connection of its own."""
    async with Client("127.0.0.1", port, 1) as client:
        return await client.post(path, body)


def test_a_client_is_who_connects_whatever_its_headers_say(exports: dict[str, Path]) -> None:
    """`--max-client-share` counts addresses; a header with another one in each report does not get around it."""
    with serving(exports["fp32"], "--max-client-share", "0.05") as (_, port):
        for number in range(8):
            report = {"output_len_lower_bound": 50, "num_tokens": 1}
            headers = {"Content-Type": "application/json", "X-Forwarded-For": f"10.0.0.{number}"}
            body = json.dumps({"reports": [report]}).encode()
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/v1/feedback", body, headers), timeout=60
            ).close()
        counted = re.search(r"^amin_answers\{.*\} (\d+)", get(port, "/metrics"), re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) == 5


def test_what_was_learnt_survives_a_restart(exports: dict[str, Path], tmp_path: Path) -> None:
    """Answers of one token lower the bound; the next process begins with it. A spoilt file is one line, before."""
    state = tmp_path / "state.json"
    bounds = []
    for _ in range(2):
        with serving(exports["fp32"], "--state", str(state), "--deadline-ms", "60000") as (process, port):
            asked = post(port, "/v1/predict", prompt="Write a story")["predictions"][0]
            bounds.append(asked["output_len_lower_bound"])
            report = {"output_len_lower_bound": 50, "num_tokens": 1}
            post(port, "/v1/feedback", reports=[report] * 500)
            process.terminate()
            assert process.wait(60) == 0
    assert bounds[1] == 1 < bounds[0]
    state.write_text(state.read_text()[:100])
    assert main(["serve", str(exports["fp32"]), "--port", "0", "--state", str(state)]) == 2


def test_nobody_is_told_to_remove_a_folder(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state is a file; a folder in its place is refused as one."""
    assert main(["serve", str(exports["fp32"]), "--port", "0", "--state", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"amin serve: error: {tmp_path}: is a folder; name a file\n"


def test_a_new_predictor_is_taken_up_without_a_restart(exports: dict[str, Path], tmp_path: Path) -> None:
    """At SIGHUP; one that cannot be read leaves all as it is."""
    folder = tmp_path / "serving"
    shutil.copytree(exports["fp32"], folder)
    with serving(folder, "--deadline-ms", "60000") as (process, port):
        assert process.stdout is not None
        shutil.copytree(exports["int8"], folder, dirs_exist_ok=True)
        process.send_signal(signal.SIGHUP)
        assert "has been read again" in process.stdout.readline()
        assert post(port, "/v1/predict", prompt="Write a story")["predictions"][0]["source"] == "model"
        (folder / "model.onnx").write_bytes(b"spoilt")
        process.send_signal(signal.SIGHUP)
        assert "stays as it is" in process.stdout.readline()
        assert post(port, "/v1/predict", prompt="Write a story")["predictions"][0]["source"] == "model"


def test_a_stranger_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Loopback addresses and a key need no warning."""
    for host, key in (("127.0.0.1", None), ("::1", None), ("0.0.0.0", "secret")):
        warn_of_strangers("amin serve", host, key)
    assert capsys.readouterr().err == ""
    warn_of_strangers("amin serve", "0.0.0.0", None)
    assert "anyone there can" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_what_is_in_flight(number: signal.Signals, exports: dict[str, Path]) -> None:
    """No request loses its answer; the process ends with 0 and says nothing more."""
    with serving(exports["fp32"], "--max-wait-ms", "1000") as (process, port):

        async def ask_and_stop() -> tuple[int, bytes]:
            asking = asyncio.create_task(post_once(port, body_of(deadline_ms=60_000)))
            while not asking.done() and "\namin_queue_prompts 1.0\n" not in await asyncio.to_thread(
                get, port, "/metrics"
            ):
                pass  # it is on its way, or on a busy machine answered already
            process.send_signal(number)
            return await asking

        status, answer = asyncio.run(ask_and_stop())
        assert status == 200
        assert json.loads(answer)["predictions"][0]["source"] == "model"
        assert process.stdout is not None
        assert process.wait(60) == 0
        assert process.stdout.read() == ""


def test_a_kept_connection_does_not_hold_up_the_end(exports: dict[str, Path]) -> None:
    """Idle clients are disconnected."""
    serve = serving(exports["fp32"], "--silence", "3600")
    with serve as (process, port), socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in idle.recv(1000)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--port 70000", "--port: must be at least 0 and at most 65535, not 70000"),
        ("--host 203.0.113.7", "cannot listen there"),
        ("--tau 0", "--tau: must be above 0 and below 1"),
        ("--tau 0.001", "calibration prompts"),
        ("--max-batch 0", "--max-batch: must be at least 1"),
        ("--deadline-ms nan", "--deadline-ms: must be a number"),
        ("--max-client-share 3", "--max-client-share: must be above 0 and at most 1"),
        ("--threads -1", "--threads: must be at least 0 and at most 4096"),
    ],
)
def test_bad_options_end_with_2_and_one_line(
    options: str,
    says: str,
    exports: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is served."""
    monkeypatch.delattr("uvicorn.Server.run")
    assert main(["serve", str(exports["fp32"]), "--port", "0", *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_a_port_in_use_and_a_spoilt_export_end_with_2(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(exports["fp32"]), "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err
    for name in ("manifest.json", "model.onnx", "tokenizer.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in exports["fp32"].iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
        assert main(["serve", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert "not a folder written by `amin export`" in capsys.readouterr().err
