"""Simulate a workload on the iteration clock under every policy asked for; needs no torch."""

import argparse
from pathlib import Path
from typing import Any

from scheduler.errors import InputError

HELP = "simulate a workload under several policies (iteration clock)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("workload", type=Path, help="JSONL, a line per request (docs/architecture.md)")
    parser.add_argument("--kv-budget", type=int, required=True, help="tokens that the KV cache holds")
    parser.add_argument("--policies", default="all", help="names separated by commas, or all")
    parser.add_argument("--block-size", type=int, default=1, help="tokens per KV block; 1 is the paper")
    parser.add_argument("--cost-model", choices=["iteration"], default="iteration", help="what an iteration takes: 1")
    parser.add_argument(
        "--eviction",
        choices=["restart", "resume"],
        default="restart",
        help="whether evicted requests keep their tokens",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help="cap of lines without their own; by default the largest output_len, rounded up to a power of two",
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs per policy; they differ in random ties")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and requests.parquet")


def run(args: argparse.Namespace) -> None:
    """Run every policy and seed, write the results, print the table."""
    import numpy as np
    from tqdm import tqdm

    from pipelines.results import PolicyRun, policy_figures, print_table, table, write_results
    from scheduler.executor import SimulatedExecutor
    from scheduler.kv_cache import KvCache
    from scheduler.latency_bounds import total_latency_lower_bound
    from scheduler.loop import Loop
    from scheduler.policies import make_policy
    from scheduler.workload import read_workload

    names = policy_names(args.policies)
    if args.seeds < 1:
        raise InputError(f"--seeds is {args.seeds}, must be >= 1")
    kv_cache = KvCache.from_budget(args.kv_budget, args.block_size)
    workload = read_workload(args.workload, args.max_new_tokens)
    requests, resume = workload.requests, args.eviction == "resume"
    runs = []
    for name, seed in tqdm([(n, s) for s in range(args.seeds) for n in names], desc="simulate", unit="run"):
        rng = np.random.default_rng(seed)
        policy = make_policy(name, kv_cache, rng, resume=resume, output_lens=workload.output_lens)
        executor = SimulatedExecutor(kv_cache, workload.output_lens)
        result = Loop(policy, executor, requests, kv_cache, resume=resume).run()
        runs.append(PolicyRun(name, seed, requests, result))

    prompt_tokens = [request.num_prompt_tokens for request in requests]
    at_once = all(request.arrival_time == 0 for request in requests)
    bound = total_latency_lower_bound(prompt_tokens, workload.output_lens, args.kv_budget) if at_once else None
    policies = policy_figures(runs, kv_cache)
    results: dict[str, Any] = {
        "workload": {
            "file": args.workload.name,
            "num_requests": len(requests),
            "num_prompt_tokens": sum(prompt_tokens),
            "num_output_tokens": sum(workload.output_lens),
        },
        "kv_budget": args.kv_budget,
        "block_size": args.block_size,
        "cost_model": args.cost_model,
        "eviction": args.eviction,
        "total_latency_lower_bound": bound,
        "policies": policies,
    }
    write_results(args.out, results, runs)
    print(f"{len(requests)} requests, KV budget {args.kv_budget} tokens, {args.eviction}; times in iterations")
    print_table(*table(policies))
    if bound is not None:
        print(f"no schedule has a mean latency below {bound / len(requests):.1f} (volume bound)")


def policy_names(text: str) -> list[str]:
    """Return the policies that a comma-separated option names; InputError for an unknown one."""
    from scheduler.policies import POLICIES

    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InputError(f"--policies: unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    return list(dict.fromkeys(names))
