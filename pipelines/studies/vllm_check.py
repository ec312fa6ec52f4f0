"""vLLM's CPU build with its own scheduler and with ours, by HTTP: real tokens of a real model, measured from outside.

    make .venv-vllm/installed
    python -m pipelines.studies.vllm_check --out runs/vllm

One server a scheduler, each on the same few blocks of KV cache, prefix caching on. `amin evaluate --endpoint
--endpoint-b` asks vLLM's own and one of ours in turn: the same requests at the same times. Poisson arrivals come at
shares of the rate at which vLLM's own scheduler served all requests at once. In single precision, so that a draw with
the same seed is the same under every scheduler but for ties in the last digit.
"""

import argparse
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.evaluate.command import run as evaluate
from pipelines.served_model.gguf import bundled_file, converted
from pipelines.settings.evaluate import EvaluateSettings
from pipelines.settings.sampling import Sampling
from pipelines.settings.server import Servers

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
OWN = "vLLM's own"
BLOCK_SIZE = 32
"""Tokens; vLLM's attention on a CPU takes multiples of it."""
SECONDS_TO_START = 300.0
COUNTS = (
    "vllm:num_preemptions_total", "amin_recomputed_tokens_total", "amin_predicted_total", "amin_fallbacks_total",
    "amin_left_to_vllm_total", "amin_failures_total", "amin_bounds_covered_total", "amin_bounds_missed_total",
    "amin_decisions_total", "amin_decision_seconds_total",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A running server and what it calls itself in the tables."""

    name: str
    url: str

    def counts(self) -> dict[str, float]:
        """Return counters off its `/metrics`, summed over labels."""
        lines = _get(f"{self.url}/metrics").splitlines()
        found = {name: [float(line.split()[-1]) for line in lines if line.startswith(name)] for name in COUNTS}
        return {name: sum(values) for name, values in found.items() if values}


@contextmanager
def vllm_server(args: argparse.Namespace, model: Path, policy: str | None) -> Iterator[VllmServer]:
    """Yield a server, which is stopped at the end; `policy` None leaves vLLM its own scheduler."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = policy or OWN
    folder = args.out / "servers" / (policy or "own")
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    command = [str(args.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", str(model), "--served-model-name", "smollm2", "--dtype", "float32"]
    command += [
        "--enforce-eager",
        "--max-model-len",
        str(args.max_model_len),
        "--block-size",
        "16",
        "--enable-prefix-caching",
    ]
    command += ["--num-gpu-blocks-override", str(args.num_blocks + 1)]  # vLLM keeps one for itself
    if policy:
        settings = {"policy": policy, "predictor": str(args.predictor), "model": args.predictor_model}
        command += ["--scheduler-cls", "pipelines.vllm_scheduler.PredictingScheduler"]
        command += ["--additional-config", json.dumps({"amin": settings | {"timeout": args.timeout}})]
    environment = os.environ | ENVIRONMENT | {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        server = VllmServer(name, f"http://127.0.0.1:{port}")
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(server: VllmServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _get(f"{server.url}/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"{server.name} did not start; {log} ends with {log.read_text('utf-8', 'replace')[-2000:]}")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def compare(args: argparse.Namespace, a: VllmServer, b: VllmServer, arrivals: str, name: str) -> dict[str, Any]:
    """Return what `amin evaluate` found of two servers; it prints its table."""
    before = a.counts(), b.counts()
    print(f"\n{name}: a is {a.name}, b is {b.name}", flush=True)
    out = args.out / f"{b.name}-{name.replace(' ', '-')}"
    settings = EvaluateSettings(
        prompts=args.prompts,
        out=out,
        split=args.split,
        limit=args.num_requests,
        arrivals=arrivals,
        warm_up=0.0,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(temperature=args.temperature),
        seeds=args.seeds,
        seed=args.seed,
        resume=out.exists(),
        servers=Servers(endpoint=f"{a.url}/v1", endpoint_b=f"{b.url}/v1"),
    )
    evaluate(settings)
    for server, was in zip((a, b), before, strict=True):
        counts = {key: value - was.get(key, 0.0) for key, value in server.counts().items()}
        print(f"{server.name}: {', '.join(f'{key} {value:g}' for key, value in counts.items() if value)}", flush=True)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def check(args: argparse.Namespace) -> None:
    """Start the servers, then compare each of ours with vLLM's own, at once and at each load."""
    model = args.model or converted(bundled_file(), torch.float32)
    with ExitStack() as running:
        start = time.monotonic()
        own, *ours = [running.enter_context(vllm_server(args, model, policy)) for policy in (None, *args.policies)]
        print(f"{1 + len(ours)} servers started in {time.monotonic() - start:.0f} s", flush=True)
        capacity = args.capacity
        for server in ours:
            if not args.skip_at_once:
                found = compare(args, own, server, "all-at-once", "at once")
                capacity = capacity or found["servers"]["a"]["mean"]["requests_per_second"]
            for load in args.loads:
                compare(args, own, server, f"poisson:{load * capacity:.4f}", f"load {load:g}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that vLLM reads; default: the bundled SmolLM2 in float32")
    parser.add_argument("--prompts", type=Path, default=ROOT / "checkpoints/records.parquet")
    parser.add_argument("--split", default="test", help="only these prompts, which the predictor has not seen")
    parser.add_argument("--predictor", type=Path, default=ROOT / "checkpoints/length-predictor-small")
    parser.add_argument("--predictor-model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--policies", nargs="+", default=["amin-survival", "amin"])
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds that a request waits for its prediction")
    parser.add_argument("--num-requests", type=int, default=80)
    parser.add_argument("--num-blocks", type=int, default=80, help=f"of {BLOCK_SIZE} tokens")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--max-model-len", type=int, default=1024, help="must fit into the blocks")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--loads", nargs="*", type=float, default=[0.7, 0.9, 1.1])
    parser.add_argument("--capacity", type=float, help="requests a second at load 1; default: measured at once")
    parser.add_argument("--skip-at-once", action="store_true", help="with --capacity: the loads alone")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    args = parser.parse_args(argv)
    if args.skip_at_once and args.capacity is None:
        parser.error("--skip-at-once needs --capacity")
    args.out = args.out.absolute()
    return args


if __name__ == "__main__":
    check(parse())
