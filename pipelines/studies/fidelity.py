"""Simulated engines compared with AISimulate's, on the same traces and clocks, while the KV cache is oversubscribed.

python -m pipelines.studies.fidelity --out fidelity --python .venv-aisimulate/bin/python
"""

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.deployment.fit import fit_clock
from pipelines.deployment.measured_kernels import ask
from pipelines.files import atomic_file, write_json
from pipelines.simulate.resampling import arriving, volumes
from pipelines.studies.beyond.tables import markdown
from scheduler.cost_model import CostModel
from scheduler.kv_cache import KvCache
from scheduler.metrics import summarize
from scheduler.simulation.arrivals import poisson_arrivals
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import lmsys_shaped
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

MODEL, HARDWARE = "meta-llama/Meta-Llama-3.1-8B", "h100_sxm"
SLOTS, MAX_BATCH_TOKENS = 256, 8192
OVERSUBSCRIPTION = (0.7, 1.0, 1.4, 2.0)
SHARE_OF_THROUGHPUT = 0.9
"""Of the requests that AISimulate's vLLM served a second when all came at once: the rate of the timed arrivals."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine of AISimulate's, the policy that stands for it here, and its usual block size."""

    name: str
    policy: str
    block_size: int


ENGINES = (Engine("vllm", "fcfs", 16), Engine("sglang", "sglang", 1), Engine("trtllm", "fcfs-reserve", 32))
FIGURES = ("mean_latency", "p99_latency", "mean_ttft", "throughput", "recomputed_share")


def chats(count: int, seed: int = 0) -> Workload:
    """Return LMSYS-shaped requests, all at once, each capped at its true length, which AISimulate tells its engines."""
    prompts, lens = lmsys_shaped(count, np.random.default_rng(seed))
    return workload_from_columns([f"r{i}" for i in range(count)], prompts, lens, np.zeros(count), lens)


def kv_tokens_at(workload: Workload, oversubscription: float) -> int:
    """Return the KV cache of which the full slots hold `oversubscription` times as much on average.

    A slot holds a request for o iterations and volume(request) token-iterations, so it holds sum(volume) / sum(o).
    """
    held = SLOTS * volumes(workload).sum() / sum(workload.output_lens)
    return int(held / oversubscription)


def theirs(python: Path, folder: Path, engine: Engine, workload: Workload, num_blocks: int) -> Mapping[str, float]:
    """Return the figures of AISimulate's engine; times in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_trace(folder / "trace.jsonl", workload, engine.block_size)
    (folder / "config.yaml").write_text(json.dumps(_config(engine, num_blocks)))  # JSON is YAML
    words = ["-m", "aisimulate", "predict", "-c", "config.yaml", "--output-dir", "out", "--overwrite"]
    done = subprocess.run(
        [str(python.absolute()), *words],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"aisimulate predict: {done.stderr[-2000:]}")
    found = json.loads((folder / "out" / "prediction.json").read_text())
    assert found["completed_requests"] == len(workload.requests)
    recomputed = found["committed_prefill_tokens"] - found["total_input_tokens"]
    return {
        "mean_latency": found["mean_e2e_latency_ms"] / 1000,
        "p99_latency": found["p99_e2e_latency_ms"] / 1000,
        "mean_ttft": found["mean_ttft_ms"] / 1000,
        "throughput": found["output_throughput_tok_s"],
        "recomputed_share": recomputed / found["total_output_tokens"],
    }


def _config(engine: Engine, num_blocks: int) -> dict[str, Any]:
    """Return what `aisimulate predict` reads: one replica that replays trace.jsonl."""
    source = {
        "type": "trace", "paths": ["trace.jsonl"], "format": "mooncake", "block_size": engine.block_size
    }  # fmt: skip
    cache = {
        "block_size": engine.block_size, "prefix_caching": False, "capacity": {"type": "fixed", "blocks": num_blocks}
    }  # fmt: skip
    limits = {"max_sequences": SLOTS, "max_batched_tokens": MAX_BATCH_TOKENS}
    return {
        "traffic": {"source": source, "load": {"type": "trace_timestamps"}},
        "engine": {
            "mode": "aggregated",
            "model": MODEL,
            "hardware": HARDWARE,
            "backend": engine.name,
            "context_length": 8192,
            "workers": {"aggregated": {"scheduler": limits, "kv_cache": cache}},
        },
    }


def _write_trace(path: Path, workload: Workload, block_size: int) -> None:
    """Write a Mooncake trace in which no two requests share a block."""
    first, lines = 0, []
    for request, output_len in zip(workload.requests, workload.output_lens, strict=True):
        blocks = -(-request.num_prompt_tokens // block_size)
        row = {
            "timestamp": round(request.arrival_time * 1000),
            "input_length": request.num_prompt_tokens,
            "output_length": output_len,
            "hash_ids": list(range(first, first + blocks)),
        }
        lines.append(json.dumps(row) + "\n")
        first += blocks
    path.write_text("".join(lines), encoding="utf-8")


def ours(engine: Engine, workload: Workload, num_blocks: int, clock: CostModel) -> Mapping[str, float]:
    """Return the same figures of the policy that stands for the engine."""
    worker = Worker(KvCache(num_blocks, engine.block_size), True, SLOTS, 0, MAX_BATCH_TOKENS, clock)
    figures: Mapping[str, Any] = summarize(simulate(engine.policy, workload, worker, 0), worker.kv_cache)
    return {name: figures[name] for name in FIGURES}


def compare(python: Path, out: Path, count: int) -> list[dict[str, Any]]:
    """Return a row for each engine, oversubscription and kind of arrivals."""
    at_once = chats(count)
    rng = np.random.default_rng(1)
    query = {"model": MODEL, "hardware": HARDWARE, "tensor_parallel": 1, "max_running": SLOTS}
    query |= {"max_batch_tokens": MAX_BATCH_TOKENS, "apart": True}
    rows = []
    for engine in tqdm(ENGINES, desc="fidelity", unit="engine"):
        kernels = ask(python, query | {"engine": engine.name, "block_size": engine.block_size})
        clock, error = fit_clock(kernels.iterations)
        for times in OVERSUBSCRIPTION:
            num_blocks = kv_tokens_at(at_once, times) // engine.block_size
            cell = {"engine": kernels.engine, "policy": engine.policy, "oversubscription": times}
            cell |= {"clock_error": error.median, "num_blocks": num_blocks}
            measured = theirs(python, out / f"{engine.name}-{times}-at-once", engine, at_once, num_blocks)
            rate = SHARE_OF_THROUGHPUT * measured["throughput"] * count / sum(at_once.output_lens)
            timed = arriving(at_once, np.round(poisson_arrivals(count, rate, rng), 3))
            rows.append(
                cell | {"arrivals": "at once", "theirs": measured, "ours": ours(engine, at_once, num_blocks, clock)}
            )
            measured = theirs(python, out / f"{engine.name}-{times}-timed", engine, timed, num_blocks)
            rows.append(
                cell | {"arrivals": f"{rate:.1f}/s", "theirs": measured, "ours": ours(engine, timed, num_blocks, clock)}
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparison in markdown: AISimulate's figure, and by how much ours is off."""
    header = ["engine", "oversubscribed", "arrivals", "mean s", "p99 s", "TTFT s", "tokens/s", "recomputed"]
    lines = []
    for row in rows:
        cells = [_beside(row, name) for name in FIGURES[:-1]]
        cells.append(f"{row['theirs']['recomputed_share']:.0%}, {row['ours']['recomputed_share']:.0%}")
        lines.append([row["engine"], f"{row['oversubscription']:g}", row["arrivals"], *cells])
    return markdown(header, lines)


def _beside(row: Mapping[str, Any], name: str) -> str:
    their, our = row["theirs"][name], row["ours"][name]
    return f"{their:.4g} ({our / their - 1:+.1%})"


def main() -> None:
    """Run the study, write `fidelity.json` and `fidelity.md`, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--python", type=Path, required=True, help="interpreter that has AISimulate")
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    rows = compare(args.python, args.out, args.requests)
    write_json(args.out / "fidelity.json", rows)
    with atomic_file(args.out / "fidelity.md") as aside:
        aside.write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
