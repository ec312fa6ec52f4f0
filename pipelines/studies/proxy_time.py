"""What `amin proxy` adds to a request, next to asking the engine directly in the same run.

    python -m pipelines.studies.proxy_time checkpoints/length-predictor-small --prompts checkpoints/prompts.jsonl

A made-up engine that answers immediately, the proxy and the client are processes of their own on this machine. One
connection a way, each prompt by every way in turn: directly, through the proxy, and through the proxy as a request of
which nothing can be predicted. So a busy machine slows all ways alike. The proxy's processor time does not count waits.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipelines.files import write_json
from pipelines.results import print_table
from pipelines.serve import listen
from predictor.records.records import read_prompts
from predictor.sidecar.hints import MEDIAN_HEADER

NUM_WARM_UP = 50
WAYS = ("direct", "proxied", "proxied, nothing to predict")
HEADERS = {"Content-Type": "application/json"}


async def answer(request: Request) -> JSONResponse:
    """Answer at once, in OpenAI's form, and say whether a hint came along."""
    await request.body()
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "well"}}
    hinted = MEDIAN_HEADER in request.headers
    return JSONResponse({"choices": [choice], "usage": {"completion_tokens": 100}, "hinted": hinted})


def run_engine(listener: socket.socket) -> None:
    """Serve the made-up engine until the process ends."""
    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


@contextmanager
def engine() -> Iterator[str]:
    """Yield the URL of an engine in a process of its own."""
    listener = listen("127.0.0.1", 0)
    process = multiprocessing.get_context("fork").Process(target=run_engine, args=(listener,), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


@contextmanager
def proxy(upstream: str, args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield the URL and the process id of `amin proxy`."""
    command = [sys.executable, "-m", "pipelines.cli", "proxy", "--upstream", upstream, "--predictor"]
    command += [str(args.predictor), "--engine", "vllm", "--port", "0", "--deadline-ms", str(args.deadline_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2], process.pid
        finally:
            process.terminate()


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(connection: HTTPConnection, body: bytes) -> tuple[float, bool]:
    """Return the seconds of a request, and whether the engine was told a hint."""
    start = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, HEADERS)
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}: {content[:200]!r}")
    return seconds, bool(json.loads(content)["hinted"])


def measure(direct: str, proxied: str, prompts: Sequence[str], pid: int) -> dict[str, Any]:
    """Return seconds by way, shape [n] each, the share with a hint, and the proxy's processor time a request."""
    connections = [HTTPConnection(url.removeprefix("http://")) for url in (direct, proxied, proxied)]
    seconds: list[list[float]] = [[], [], []]
    num_hinted, before = 0, 0.0
    for k, prompt in enumerate(prompts):
        if k == NUM_WARM_UP:
            before = processor_seconds(pid)
        text, nothing = (
            json.dumps({"model": "m", "max_tokens": 512, "messages": [{"role": "user", "content": content}]}).encode()
            for content in (prompt, [{"type": "image_url", "image_url": {"url": prompt}}])
        )
        for way, body in enumerate((text, text, nothing)):
            taken, is_hinted = ask(connections[way], body)
            if k >= NUM_WARM_UP:
                seconds[way].append(taken)
                num_hinted += is_hinted
    count = len(seconds[0])
    used = (processor_seconds(pid) - before) / (2 * count)
    return {"seconds": [np.array(way) for way in seconds], "hinted": num_hinted / count, "processor_seconds": used}


def summarize(measured: dict[str, Any]) -> dict[str, Any]:
    """Return quantiles in milliseconds by way, and of what each way takes more than the direct one, pair by pair."""
    ms = [1000 * way for way in measured["seconds"]]
    levels = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    rows = {
        name: {key: float(np.quantile(way, q)) for key, q in levels.items()} for name, way in zip(WAYS, ms, strict=True)
    }
    more = {
        name: {key: float(np.quantile(way - ms[0], q)) for key, q in levels.items()}
        for name, way in zip(WAYS[1:], ms[1:], strict=True)
    }
    return {
        "requests": len(ms[0]),
        "ms": rows,
        "more_than_direct_ms": more,
        "hinted": measured["hinted"],
        "proxy_processor_ms": 1000 * measured["processor_seconds"],
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures."""
    rows = [[name, *(f"{value:.2f}" for value in row.values())] for name, row in figures["ms"].items()]
    rows += [
        [f"{name}: more than direct", *(f"{value:.2f}" for value in row.values())]
        for name, row in figures["more_than_direct_ms"].items()
    ]
    print_table(["ms", "p50", "p90", "p99"], rows)
    print(
        f"{figures['requests']} requests a way; {figures['hinted']:.1%} of those proxied were hinted; the proxy used "
        f"{figures['proxy_processor_ms']:.2f} ms of processor time a request"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictor", type=Path, help="folder that amin export wrote")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL or parquet with prompt or messages")
    parser.add_argument("--requests", type=int, default=1000, help="by each way")
    parser.add_argument("--deadline-ms", type=float, default=10.0, help="of the proxy")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    args = parser.parse_args()
    prompts = [row.prompt for row in read_prompts(args.prompts)]
    prompts *= -(-(args.requests + NUM_WARM_UP) // len(prompts))
    with engine() as direct, proxy(direct, args) as (proxied, pid):
        figures = summarize(measure(direct, proxied, prompts[: args.requests + NUM_WARM_UP], pid))
    show(figures)
    if args.out is not None:
        write_json(args.out, figures)


if __name__ == "__main__":
    main()
