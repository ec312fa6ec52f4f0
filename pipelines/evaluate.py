"""Evaluate predictor and policies together, in real generation with a real model under KV pressure."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.errors import InputError

if TYPE_CHECKING:
    from pipelines.evaluation_run import Case
    from pipelines.served_model import ServedModel

HELP = "generate with a real model under several policies, driven by the predictor's bounds"
DEFAULT_POLICIES = "fcfs,fcfs-reserve,amax,amin,amin-eviction,hindsight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--predictor", type=Path, required=True, help="run folder or export")
    parser.add_argument("--served-model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL or parquet with prompts, or records")
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--policies", default=DEFAULT_POLICIES, help="names separated by commas, or all")
    parser.add_argument(
        "--arrivals", default="all-at-once", help="all-at-once, poisson:RATE (per second), or FILE with a time a line"
    )
    parser.add_argument(
        "--kv-blocks",
        type=int,
        help="size of the KV cache (default: 15 percent of what all requests hold at their peak)",
    )
    parser.add_argument("--block-size", type=int, default=16, help="tokens per block")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="cap of an answer in tokens")
    parser.add_argument(
        "--max-batch-tokens", type=int, default=512, help="most tokens of one iteration; longer prefills are split"
    )
    parser.add_argument("--tau", type=float, default=0.1, help="probability that an answer is shorter than its bound")
    parser.add_argument(
        "--eviction", choices=["restart", "resume"], default="resume", help="whether evicted requests keep their tokens"
    )
    parser.add_argument(
        "--decoding",
        choices=["forced", "greedy", "sample"],
        default="forced",
        help="forced: every policy generates the lengths of one reference draw (the records' first, or made first); "
        "greedy: likeliest tokens, checked to be the same under every policy; sample: free, lengths differ",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs per policy; they differ in order, arrivals and ties")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for results.json, requests.parquet, report.html"
    )


def run(args: argparse.Namespace) -> None:
    """Predict, generate under every policy, write results and report."""
    import torch

    from pipelines.evaluation_run import default_blocks, generate_under, prepare
    from pipelines.report import write_report
    from pipelines.results import policy_figures, print_table, table, write_results
    from pipelines.served_model import load_served_model
    from pipelines.simulate import policy_names
    from scheduler.kv_cache import KvCache

    names = policy_names(args.policies)
    _check(args, names)
    torch.manual_seed(args.seed)
    served = load_served_model(args.served_model, args.max_new_tokens, args.device, greedy=args.decoding == "greedy")
    case = prepare(args, served)
    kv_cache = KvCache(args.kv_blocks or default_blocks(case, args.block_size), args.block_size)
    seeds = range(args.seed, args.seed + args.seeds)
    generate_under("fcfs", args.seed, args, served, case, kv_cache, warm_up=True)
    runs, identical = [], dict[str, int]()
    for seed in seeds:
        for name in names:
            policy_run, same = generate_under(name, seed, args, served, case, kv_cache)
            runs.append(policy_run)
            identical[name] = min(same, identical.get(name, same))
    policies = policy_figures(runs, kv_cache)
    results = {
        "workload": {
            "file": args.prompts.name,
            "num_requests": len(case.requests),
            "num_prompt_tokens": sum(len(prompt) for prompt in case.prompts),
            "num_output_tokens": sum(case.output_lens) if case.output_lens else None,
            "arrivals": args.arrivals,
            "decoding": args.decoding,
        },
        "kv_budget": kv_cache.num_blocks * kv_cache.block_size,
        "block_size": kv_cache.block_size,
        "cost_model": "wall clock, seconds",
        "eviction": args.eviction,
        "total_latency_lower_bound": None,
        "bounds": _bound_figures(args, case),
        "identical_outputs": identical if args.decoding == "greedy" else None,
        "environment": _environment(served),
        "policies": policies,
    }
    write_results(args.out, results, runs)
    write_report(args.out, results, runs, [r.output_len_lower_bound for r in case.requests], case.output_lens)
    print(f"{len(case.requests)} requests, {kv_cache.num_blocks} blocks of {kv_cache.block_size}; times in seconds")
    print_table(*table(policies))
    if args.decoding == "greedy":
        for name, same in identical.items():
            print(f"{name}: tokens identical to the unconstrained run for {same} of {len(case.requests)} requests")
    print(f"report: {args.out / 'report.html'}")


def _check(args: argparse.Namespace, names: Sequence[str]) -> None:
    from scheduler.policies import CLAIRVOYANT

    for name in ("seeds", "block_size", "max_new_tokens", "max_batch_tokens"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be >= 1")
    if args.kv_blocks is not None and args.kv_blocks < 1:
        raise InputError(f"--kv-blocks is {args.kv_blocks}, must be >= 1")
    if args.decoding == "sample" and CLAIRVOYANT & set(names):
        raise InputError(
            f"--policies: {', '.join(CLAIRVOYANT & set(names))} needs true lengths: not with --decoding sample"
        )


def _bound_figures(args: argparse.Namespace, case: "Case") -> dict[str, Any]:
    """Return coverage and tightness of the bounds used, on the reference lengths."""
    import numpy as np

    lower = np.array([request.output_len_lower_bound for request in case.requests])
    figures: dict[str, Any] = {
        "tau": args.tau,
        "mean_bound": float(lower.mean()),
        "predict_ms_per_prompt": case.predict_ms,
    }
    if case.output_lens is not None:
        lens = np.array(case.output_lens)
        figures |= {"coverage": float((lower <= lens).mean()), "tightness": float(lower.mean() / lens.mean())}
    return figures


def _environment(served: "ServedModel") -> dict[str, Any]:
    import os
    import platform
    import sys

    import numpy
    import torch
    import transformers

    device = served.model.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "command": "amin " + " ".join(sys.argv[1:]),
        "served_model": served.name,
        "hardware": hardware,
        "dtype": str(served.model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }
