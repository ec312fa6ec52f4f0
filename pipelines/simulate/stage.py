"""Simulate a workload under every policy asked for; needs no torch."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.errors import InputError

if TYPE_CHECKING:
    from scheduler.worker import Worker
    from scheduler.workload import Workload

HELP = "simulate a workload under several policies (no torch)"
EPILOG = """examples:
  amin simulate workload.jsonl --kv-budget 16492 --policies all --out out
  amin simulate lmsys-shaped:2000 --kv-budget 16492 --predictions noise:0.4 --policies all --out out
  amin simulate azure_conv.parquet --kv-budget 100000 --load 0.9 --predictions noise:0.4 --out out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    add_worker_arguments(parser)
    parser.add_argument("--policies", default="all", help="names separated by commas, or all")
    parser.add_argument(
        "--arrivals",
        help="all-at-once, poisson:RATE, gamma:RATE:CV (requests per iteration or second), or a file with a time a "
        "line; default: the workload's own. With --load: poisson, gamma:CV or a file",
    )
    parser.add_argument(
        "--load",
        type=float,
        help="arrival rate as a share of what the KV cache can serve on the iteration clock; stretches a trace",
    )
    parser.add_argument(
        "--predictions",
        help="make predictions from true lengths: interval:LOW:HIGH, bins:WIDTH:COUNT, relative:X, exact, or "
        "noise:SIGMA[:TAU] (log-normal forecast); default: the workload's own",
    )
    parser.add_argument(
        "--scheduling", type=Path, help="what amin tune wrote, or its folder: the levels that policies are built with"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs per policy; they differ in random arrivals, predictions and ties"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and requests.parquet")


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is simulated: the workload and the worker that serves it."""
    parser.add_argument(
        "workload",
        help="JSONL, a line per request (docs/architecture.md); a public trace (Azure, Mooncake) or records, in JSONL, "
        "CSV or parquet; or lmsys-shaped:N, N made-up requests with lengths like chats of LMSYS-Chat-1M",
    )
    parser.add_argument("--kv-budget", type=int, required=True, help="tokens that the KV cache holds")
    parser.add_argument("--block-size", type=int, default=1, help="tokens per KV block; 1 is the paper")
    parser.add_argument(
        "--cost-model",
        default="iteration",
        help="iteration: each takes 1 (the paper); or a JSON file of seconds (docs/architecture.md)",
    )
    parser.add_argument(
        "--eviction",
        choices=["restart", "resume"],
        default="restart",
        help="whether evicted requests keep their tokens",
    )
    parser.add_argument(
        "--bins",
        type=Path,
        help="JSON list of length-bin edges that the field survival is on; default: "
        "WORKLOAD.bins.json where there is one",
    )
    parser.add_argument(
        "--time-unit",
        choices=["s", "ms", "us", "ns"],
        help="what numbers in the workload's column of times count; default: as found and printed",
    )
    parser.add_argument("--max-running", type=int, help="most requests that run at once (vLLM's max_num_seqs)")
    parser.add_argument(
        "--max-batch-tokens", type=int, help="most tokens of one iteration; longer prefills are split (chunked prefill)"
    )
    parser.add_argument(
        "--watermark", type=float, default=0.0, help="share of the KV cache that an admission leaves free"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help="cap of requests without their own; by default the largest output_len, rounded up to a power of two",
    )


def run(args: argparse.Namespace) -> None:
    """Run every policy and seed, write the results, print the table."""
    from tqdm import tqdm

    from pipelines.results import PolicyRun, policy_figures, print_table, table, write_results
    from pipelines.scheduling import policy_options
    from pipelines.simulate.workloads import iteration_time, read_base, with_arrivals_and_predictions
    from scheduler.latency_bounds import total_latency_lower_bound
    from scheduler.simulation import simulate

    names = policy_names(args.policies)
    if args.seeds < 1:
        raise InputError(f"--seeds is {args.seeds}, must be >= 1")
    worker = make_worker(args)
    base = read_base(args)
    options = {name: policy_options(args.scheduling, name) for name in names}
    iteration = iteration_time(worker, base, args.load)
    runs: list[PolicyRun] = []
    with tqdm(total=len(base.requests) * len(names) * args.seeds, desc="simulate", unit="request") as bar:
        for seed in range(args.seeds):
            workload = with_arrivals_and_predictions(base, args, seed, iteration)
            for name in names:
                result = simulate(
                    name, workload, worker, seed, lambda finished: bar.update(len(finished)) and None, **options[name]
                )
                runs.append(PolicyRun(name, seed, workload.requests, result))
    prompt_tokens = [request.num_prompt_tokens for request in workload.requests]
    bound = None
    if worker.cost_model is None and all(request.arrival_time == 0 for request in workload.requests):
        bound = total_latency_lower_bound(prompt_tokens, workload.output_lens, args.kv_budget)
    policies = policy_figures(runs, worker.kv_cache, bound)
    results = {
        **_setting(args, workload),
        "total_latency_lower_bound": bound,
        "environment": _environment(),
        "policies": policies,
    }
    write_results(args.out, results, runs)
    unit = "iterations" if worker.cost_model is None else "seconds"
    count = len(prompt_tokens)
    print(f"{count} requests, KV budget {args.kv_budget} tokens, {args.eviction}, {args.seeds} seeds; times in {unit}")
    print_table(*table(policies))
    _print_notes(results, count)


def make_worker(args: argparse.Namespace) -> "Worker":
    """Return the worker that the options describe; InputError for one out of its range."""
    from scheduler.cost_model import CostModel
    from scheduler.kv_cache import KvCache
    from scheduler.worker import Worker

    kv_cache = KvCache.from_budget(args.kv_budget, args.block_size)
    if not 0 <= args.watermark < 1:
        raise InputError(f"--watermark is {args.watermark}, must be a share of the cache in [0, 1)")
    return Worker(
        kv_cache,
        resume=args.eviction == "resume",
        max_running=args.max_running,
        watermark_blocks=int(args.watermark * kv_cache.num_blocks),
        cost_model=None if args.cost_model == "iteration" else CostModel.read(Path(args.cost_model)),
        max_batch_tokens=args.max_batch_tokens,
    )


def _setting(args: argparse.Namespace, workload: "Workload") -> dict[str, Any]:
    import numpy as np

    lower = np.array([request.output_len_lower_bound for request in workload.requests])
    lens = np.array(workload.output_lens)
    return {
        "workload": {
            "file": Path(args.workload).name,
            "num_requests": len(workload.requests),
            "num_prompt_tokens": sum(request.num_prompt_tokens for request in workload.requests),
            "num_output_tokens": sum(workload.output_lens),
            "arrivals": args.arrivals,
            "load": args.load,
            "predictions": args.predictions,
        },
        "kv_budget": args.kv_budget,
        "block_size": args.block_size,
        "cost_model": args.cost_model,
        "eviction": args.eviction,
        "scheduling": None if args.scheduling is None else str(args.scheduling),
        "limits": {name: getattr(args, name) for name in ("max_running", "max_batch_tokens", "watermark")},
        "bounds": {"coverage": float((lower <= lens).mean()), "tightness": float(lower.mean() / lens.mean())},
    }


def _environment() -> dict[str, Any]:
    import platform
    import sys

    import numpy

    return {
        "command": "amin " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def _print_notes(results: Mapping[str, Any], count: int) -> None:
    bound, bounds = results["total_latency_lower_bound"], results["bounds"]
    coverage, tightness = bounds["coverage"], bounds["tightness"]
    print(f"lower bounds: coverage {coverage:.3f}, tightness {tightness:.2f} (mean bound / mean length; last seed)")
    if bound is not None:
        print(f"no schedule has a mean latency below {bound / count:.1f} (volume bound)")


def policy_names(text: str) -> Sequence[str]:
    """Return the policies that a comma-separated option names; InputError for an unknown one."""
    from scheduler.policies import POLICIES

    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InputError(f"--policies: unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    return list(dict.fromkeys(names))
