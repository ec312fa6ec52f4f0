"""vLLM servers that differ in their scheduler alone."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.probe.vllm_probe import WORKER

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
OWN = "own"
"""Name of the server with vLLM's own scheduler; the others are named as their policy."""
WITH_PROBE = "+probe"
"""After the policy in the name of a server that renews its forecasts by a probe."""
BLOCK_SIZE = 32
"""Tokens; vLLM's attention on a CPU takes multiples of it."""
SECONDS_TO_START = 300.0
COUNTS = {
    "iterations": "vllm:iteration_tokens_total_count",
    "preemptions": "vllm:num_preemptions_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "predicted": "amin_predicted_total",
    "fallbacks": "amin_fallbacks_total",
    "left_to_vllm": "amin_left_to_vllm_total",
    "failures": "amin_failures_total",
    "covered": "amin_bounds_covered_total",
    "missed": "amin_bounds_missed_total",
    "decisions": "amin_decisions_total",
    "decision_seconds": "amin_decision_seconds_total",
    "renewals": "amin_renewals_total",
    "renewal_seconds": "amin_renewal_seconds_total",
    "unrenewed": "amin_unrenewed_total",
}
"""What is read off a server's /metrics, by our name for it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What all servers share.

    Attributes:
        model: Folder that vLLM reads.
        num_blocks: KV cache for requests, in blocks of `BLOCK_SIZE` tokens.
        max_model_len: Tokens of a request, prompt included; they fit into the blocks.
        predictor: Folder that `amin export` wrote, and the served model that it predicts for.
        predictor_model: See `predictor`.
        probe: Folder of a probe of the model, for servers whose name ends with `WITH_PROBE`.
        timeout: Seconds that a request waits for its prediction.
        python: Interpreter of the environment with vLLM.
        out: Folder for logs and metrics.
    """

    model: Path
    num_blocks: int
    max_model_len: int
    predictor: Path
    predictor_model: str | None
    probe: Path | None
    timeout: float
    python: Path
    out: Path

    def command(self, port: int, policy: str) -> list[str]:
        """Return the command that starts a server."""
        command = [str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--model", str(self.model), "--served-model-name", "smollm2"]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(self.max_model_len)]
        command += ["--block-size", str(BLOCK_SIZE), "--enable-prefix-caching"]
        command += ["--num-gpu-blocks-override", str(self.num_blocks + 1)]  # vLLM keeps one for itself
        if policy != OWN:
            name = policy.removesuffix(WITH_PROBE)
            settings = {"policy": name, "predictor": str(self.predictor), "timeout": self.timeout}
            settings |= {"model": self.predictor_model} if self.predictor_model else {}
            if name != policy:
                settings |= {"probe": str(self.probe)}
                command += ["--worker-cls", WORKER]
            command += ["--scheduler-cls", "pipelines.vllm_scheduler.PredictingScheduler"]
            command += ["--additional-config", json.dumps({"amin": settings})]
        return command


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A running server: its name in the tables, its address, its first process."""

    name: str
    url: str
    pid: int

    def counts(self) -> dict[str, float]:
        """Return counters off its /metrics, summed over labels; those that it has."""
        lines = _get(f"{self.url}/metrics").splitlines()
        found = {
            name: [float(line.split()[-1]) for line in lines if line.startswith((f"{metric}{{", f"{metric} "))]
            for name, metric in COUNTS.items()
        }
        return {name: sum(values) for name, values in found.items() if values}


@contextmanager
def running_server(options: Options, policy: str) -> Iterator[VllmServer]:
    """Yield a server, which is stopped at the end.

    Raises:
        RuntimeError: It does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = options.out / policy
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    for old in (folder / "metrics").iterdir():  # of a run before, whose counts would be added
        old.unlink()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            options.command(port, policy), cwd=ROOT, env=_environment(folder / "metrics"), stdout=log, stderr=log
        )
    try:
        server = VllmServer(policy, f"http://127.0.0.1:{port}", process.pid)
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _environment(metrics: Path) -> Mapping[str, str]:
    return os.environ | ENVIRONMENT | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}


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
