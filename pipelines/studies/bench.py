"""`make bench`: how fast policies decide and the simulator runs, next to NVIDIA Dynamo's mocker if it is installed."""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.files import atomic_file, write_json
from pipelines.plots import cost_per_request
from pipelines.results import print_table
from pipelines.simulate.workloads import DEFAULT_EDGES
from pipelines.studies.decision_times import decision_times
from scheduler.kv_cache import KvCache
from scheduler.latency_bounds import volume
from scheduler.loop import RunResult
from scheduler.policies import POLICIES
from scheduler.simulation.arrivals import times_at_load
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

MOCKER = Path(__file__).with_name("mocker.py")


def lmsys_workload(count: int, load: float | None = None, kv_budget: int = 16_492, seed: int = 0) -> Workload:
    """Return LMSYS-shaped requests with noisy forecasts (sigma 0.4), at once or Poisson at a load."""
    rng = np.random.default_rng(seed)
    prompts, lens = lmsys_shaped(count, rng)
    times = np.zeros(count)
    if load is not None:
        times = times_at_load(
            "poisson", load, volume(prompts.astype(np.float64), lens.astype(np.float64)), kv_budget, rng
        )
    workload = workload_from_columns([f"r{i}" for i in range(count)], prompts, lens, times, 512)
    edges = np.concatenate([[0], DEFAULT_EDGES[DEFAULT_EDGES <= 512]]) if count <= 200_000 else None
    return Workload(synthesize(workload.requests, workload.output_lens, "noise:0.4", rng, edges), workload.output_lens)


def mocker_workload() -> Workload:
    """Return 2,000 requests of 369,000 output tokens: log-normal outputs up to 511, prompts with median 40."""
    rng = np.random.default_rng(0)
    raw = np.exp(5 + 0.8 * rng.standard_normal(2000))
    low, high = 0.0, 10.0
    for _ in range(60):  # the scale at which the clipped lengths have the sum asked for
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(np.rint(raw * middle), 1, 511).sum() < 369_000 else (low, middle)
    lens = np.clip(np.rint(raw * high), 1, 511).astype(np.int64)
    prompts = np.clip(np.rint(40 * np.exp(1.35 * rng.standard_normal(2000))), 1, 2000).astype(np.int64)
    workload = workload_from_columns([f"r{i}" for i in range(2000)], prompts, lens, np.zeros(2000), 512)
    edges = np.concatenate([[0], DEFAULT_EDGES[DEFAULT_EDGES <= 512]])
    return Workload(synthesize(workload.requests, workload.output_lens, "noise:0.4", rng, edges), workload.output_lens)


def throughput(names: Iterable[str], workload: Workload, worker: Worker, repeats: int) -> list[dict[str, Any]]:
    """Return simulated output tokens a CPU second, the median over repeats, and what the run says."""
    rows = []
    for name in names:
        seconds = []
        for _ in range(repeats):
            started = time.process_time()  # all on one core; other processes do not count
            result = simulate(name, workload, worker, 0)
            seconds.append(time.process_time() - started)
        tokens_per_second = sum(workload.output_lens) / statistics.median(seconds)
        rows.append({"policy": name, "seconds": seconds, "tokens_per_second": tokens_per_second, **outcome(result)})
    return rows


def outcome(result: RunResult) -> dict[str, float]:
    """Return makespan and mean latency, in iterations, and evictions."""
    return {
        "makespan": float(result.finish_time.max()),
        "mean_latency": float((result.finish_time - result.arrival_time).mean()),
        "num_evictions": int(result.num_evictions.sum()),
    }


def against_mocker(python: Path, workload: Workload, worker: Worker, repeats: int) -> list[dict[str, Any]]:
    """Return per engine the mocker's figures and ours, iterations of 10 ms on both sides.

    The mocker's engines know each output length and take it for max_new_tokens; so do our policies here.
    """
    known = [
        replace(
            request,
            max_new_tokens=length,
            output_len_lower_bound=min(length, request.output_len_lower_bound),
            output_len_upper_bound=None,
        )
        for request, length in zip(workload.requests, workload.output_lens, strict=True)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        lines = [
            {"timestamp": 0, "input_length": request.num_prompt_tokens, "output_length": length}
            for request, length in zip(workload.requests, workload.output_lens, strict=True)
        ]
        trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for engine, policy in {"vllm": "fcfs", "sglang": "sglang", "trtllm": "fcfs-reserve"}.items():
            command = [str(python), str(MOCKER), str(trace), "--engine", engine, "--repeats", str(repeats)]
            command += ["--blocks", str(worker.kv_cache.num_blocks), "--block-size", str(worker.kv_cache.block_size)]
            mocker = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours = throughput([policy], Workload(known, workload.output_lens), worker, repeats)[0]
            rows.append({"engine": engine, "mocker": mocker, "policy": policy, "ours": ours})
    return rows


def million(name: str, count: int) -> dict[str, Any]:
    """Return processor time and peak memory of a run of `count` requests at load 0.9, in this process.

    With prefix caching, so that what every request leaves is kept until it is overwritten.
    """
    started = time.process_time()
    workload = lmsys_workload(count, load=0.9)
    made = time.process_time()
    result = simulate(name, workload, Worker(KvCache(16_492), prefix_caching=True), 0)
    return {
        "policy": name,
        "requests": count,
        "seconds_to_make": made - started,
        "seconds_to_simulate": time.process_time() - made,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **outcome(result),
    }


def cost_by_waiting(names: Sequence[str], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return microseconds per request of whole runs in which all requests wait from the start."""
    rows = []
    for size in sizes:
        workload = lmsys_workload(size)
        for name in names:
            started = time.process_time()
            simulate(name, workload, Worker(KvCache(600, 16)), 0)
            rows.append({"policy": name, "requests": size, "us": (time.process_time() - started) / size * 1e6})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run all benchmarks, print the tables, write `bench.json` and the figure."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for bench.json and the figure")
    parser.add_argument("--mocker", type=Path, help="Python of an environment with ai-dynamo (make bench makes one)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full sizes, for a quick look")
    parser.add_argument("--million", metavar="POLICY", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    count = max(1000, int(1_000_000 * args.scale))
    if args.million:
        print(json.dumps(million(args.million, count)))
        return
    results = _measure(args.scale, args.mocker, count)
    write_json(args.out / "bench.json", results)
    with atomic_file(args.out / "cost_per_request.png") as aside:
        aside.write_bytes(cost_per_request(results["cost_by_waiting"]))
    print(f"\nall figures: {args.out / 'bench.json'}")


def _measure(scale: float, mocker: Path | None, count: int) -> dict[str, Any]:
    workload, worker = mocker_workload(), Worker(KvCache(600, 16), resume=True)
    repeats = 7 if scale >= 1 else 1
    return {
        "decisions": _decisions(scale),
        "throughput": _throughputs(workload, worker, repeats),
        "mocker": _against_mocker(mocker, workload, worker, repeats),
        "million": _millions(scale, count),
        "cost_by_waiting": _costs(scale),
    }


def _decisions(scale: float) -> dict[str, Any]:
    found = {}
    for most_running, most_waiting in ((256, 10_000), (4096, 100_000)):
        num_running, num_waiting = max(4, int(most_running * scale)), int(most_waiting * scale)
        print(f"\na decision with about {num_running} running and {num_waiting} waiting, microseconds")
        rows = decision_times(POLICIES, lmsys_workload(num_waiting * 3 // 2), num_running, num_waiting)
        found[f"{num_running}/{num_waiting}"] = rows
        _show(rows, ("policy", "mean_running", "median_us", "p99_us", "median_us_when_it_acts"))
    return found


def _throughputs(workload: Workload, worker: Worker, repeats: int) -> dict[str, Any]:
    found = {}
    title = "2,000 requests at once, 369,000 tokens, 600 blocks of 16"
    for eviction in ("resume", "restart"):
        print(f"\nsimulated output tokens a second, {eviction}: {title}")
        rows = throughput(POLICIES, workload, replace(worker, resume=eviction == "resume"), repeats)
        found[eviction] = rows
        _show(rows, ("policy", "tokens_per_second", "makespan", "mean_latency", "num_evictions"))
    return found


def _against_mocker(
    python: Path | None, workload: Workload, worker: Worker, repeats: int
) -> list[dict[str, Any]] | None:
    if python is None or not python.exists():
        print("\nDynamo's mocker is not installed; `make bench` installs it")
        return None
    rows = against_mocker(python, workload, worker, repeats)
    print("\nDynamo's mocker on the same trace, iterations of 10 ms; it is told every output length, and so are we")
    _show([_mocker_row(row) for row in rows])
    return rows


def _millions(scale: float, count: int) -> list[dict[str, Any]]:
    """Return the figures of long runs, each in a process of its own, whose peak memory is then its own too."""
    rows = []
    for name in ("fcfs", "amin"):
        command = [sys.executable, "-m", "pipelines.studies.bench", "--million", name, "--scale", str(scale)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"\n{count} LMSYS-shaped requests, Poisson arrivals at load 0.9, M = 16,492")
    _show(rows, ("policy", "seconds_to_simulate", "peak_gib", "mean_latency", "num_evictions"))
    return rows


def _costs(scale: float) -> list[dict[str, Any]]:
    sizes = [int(n * scale) for n in (1_000, 3_000, 10_000, 30_000, 100_000)]
    rows = cost_by_waiting(("fcfs", "amin", "amax", "svf"), [n for n in sizes if n >= 100])
    print("\nmicroseconds per request of a whole run, by the number that wait from the start")
    _show(rows)
    return rows


def _mocker_row(row: Mapping[str, Any]) -> dict[str, Any]:
    mocker, ours = row["mocker"], row["ours"]
    return {
        "engine / policy": f"{row['engine']} / {row['policy']}",
        "its tokens/s": mocker["tokens_per_second"],
        "ours": ours["tokens_per_second"],
        "its makespan": mocker["makespan"] / 0.01,
        "ours ": ours["makespan"],
        "its latency": mocker["mean_latency"] / 0.01,
        "ours  ": ours["mean_latency"],
        "its preemptions": mocker["num_preemptions"],
        "ours   ": ours["num_evictions"],
    }


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    header = list(columns or rows[0])
    print_table(header, [[_text(row.get(column)) for column in header] for row in rows])


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"


if __name__ == "__main__":
    main()
