"""Evaluate predictor and policies together, in real generation with a real model under KV pressure."""

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options import require_at_least
from pipelines.scheduling import policy_options, tuned_tau
from predictor.errors import InputError

if TYPE_CHECKING:
    from pipelines.evaluate.case import Case
    from pipelines.evaluate.store import RunStore
    from pipelines.served_model import ServedModel
    from scheduler.kv_cache import KvCache

HELP = "generate with a real model under several policies, driven by the predictor's bounds"
DEFAULT_TAU = 0.1
DEFAULT_POLICIES = "fcfs,engine-fifo,fcfs-reserve,amax,amin,amin-survival,hindsight"
EPILOG = """examples:
  amin evaluate --predictor serving --served-model MODEL --prompts records.parquet --split test --out evaluation
  amin evaluate ... --arrivals poisson:2 --sweep --out evaluation     # open loop, and a map of the gain over fcfs
  amin evaluate ... --out evaluation --resume                         # continue, or add policies and seeds
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("--predictor", type=Path, required=True, help="run folder or export")
    parser.add_argument(
        "--predictor-model",
        help="served model to predict for, of those that the predictor knows; average stands for another. "
        "Default: the predictor's own",
    )
    parser.add_argument("--served-model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL or parquet with prompts, or records")
    parser.add_argument("--model", help="served model whose rows of --prompts are read, where they name several")
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument(
        "--policies",
        default=DEFAULT_POLICIES,
        help="names separated by commas, or all; engine-fifo is the engine's own scheduler without our loop",
    )
    parser.add_argument(
        "--arrivals",
        default="all-at-once",
        help="all-at-once, poisson:RATE, gamma:RATE:CV (requests per second), or FILE with a time a line",
    )
    parser.add_argument(
        "--predict-timeout",
        type=float,
        default=50.0,
        help="milliseconds from its arrival on that a request waits for its prediction before the marginal bound "
        "stands in; all-at-once: no limit",
    )
    parser.add_argument(
        "--warm-up", type=float, default=0.1, help="share of the requests, the first to arrive, left out of the "
        "figures; all-at-once: none",
    )  # fmt: skip
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
    parser.add_argument(
        "--tau", type=float, help="probability that an answer is shorter than its bound (default: what --scheduling "
        "says, else 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--scheduling", type=Path, help="what amin tune wrote, or its folder: the levels that policies are built with"
    )
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
    parser.add_argument("--seeds", type=int, default=5, help="runs per policy; they differ in order, arrivals and ties")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument(
        "--sweep", action="store_true", help="also a map of the gain over fcfs by KV cache and arrival rate: simulated "
        "with the fitted cost model, a few cells measured",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the served model brings; read it first"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for results.json, requests.parquet, report.html, cost_model.json, workload.jsonl and the runs",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue what an interruption left in --out, or add policies and seeds"
    )


def run(args: argparse.Namespace) -> None:
    """Predict, generate under every policy, write results and report."""
    from scheduler.policies import POLICIES

    names = policy_names(args.policies)
    _check(args, names)
    options = {name: policy_options(args.scheduling, name) for name in POLICIES}
    if args.tau is None:
        args.tau = (None if args.scheduling is None else tuned_tau(args.scheduling)) or DEFAULT_TAU

    import torch

    from pipelines.evaluate.case import default_blocks, prepare
    from pipelines.evaluate.store import RunStore
    from pipelines.served_model import device_memory, load_served_model
    from scheduler.kv_cache import KvCache

    torch.manual_seed(args.seed)
    store = RunStore(args.out, _settings(args), resume=args.resume)
    with device_memory("lower --kv-blocks, --max-batch-tokens or --max-new-tokens"):
        served = load_served_model(
            args.served_model,
            args.max_new_tokens,
            args.device,
            greedy=args.decoding == "greedy",
            trust_remote_code=args.trust_remote_code,
        )
        case = prepare(args, served, options, store.case)
        store.require_prompts(case.texts)
        kv_cache = KvCache(args.kv_blocks or default_blocks(case, args.block_size), args.block_size)
        if served.tokenizer.chat_template is None:
            print(f"{served.name} has no chat template: prompts go to it as they are")
        _measure_all(args, names, served, case, kv_cache, store)


def _measure_all(
    args: argparse.Namespace,
    names: Sequence[str],
    served: "ServedModel",
    case: "Case",
    kv_cache: "KvCache",
    store: "RunStore",
) -> None:
    """Make the runs that are missing, one policy after the other in each seed; write what there is in any case."""
    from pipelines.evaluate.output import write_all
    from pipelines.evaluate.run import measure
    from pipelines.evaluate.store import digest

    shared = {"prompts": digest(case.texts), "output_lens": case.output_lens, "reference": case.reference}
    # The first policy changes from seed to seed: a machine that slows down must not always hit the same ones.
    turns = [[*names[k % len(names) :], *names[: k % len(names)]] for k in range(args.seeds)]
    wanted = [(name, args.seed + k) for k, turn in enumerate(turns) for name in turn]
    runs = {key: found for key in wanted if (found := store.load(*key, case.facts)) is not None}
    if runs:
        print(f"continuing: {len(runs)} of {len(wanted)} runs are there")
    try:
        if len(runs) < len(wanted):
            measure("fcfs", args.seed, args, served, case, kv_cache, warm_up=True)
        for key in wanted:
            if key not in runs:
                measured = measure(*key, args, served, case, kv_cache)
                store.keep(measured, shared)
                runs[key] = measured
    finally:
        done = [runs[key] for key in wanted if key in runs]
        if done:
            missing = [f"{name} seed {seed}" for name, seed in wanted if (name, seed) not in runs]
            write_all(args, served, case, kv_cache, done, missing)


def policy_names(text: str) -> Sequence[str]:
    """Return the policies that the option names, `engine-fifo` among them; InputError for an unknown one."""
    from pipelines.simulate import stage as simulate
    from scheduler.policies import POLICIES

    control = "engine-fifo"
    names = [*POLICIES, control] if text == "all" else list(dict.fromkeys(n.strip() for n in text.split(",")))
    ours = [name for name in names if name != control]
    if ours:
        simulate.policy_names(",".join(ours))
    return names


def _check(args: argparse.Namespace, names: Sequence[str]) -> None:
    from scheduler.policies import Reads, policies_that_read

    require_at_least(args, 1, "seeds", "max_new_tokens", "max_batch_tokens", "kv_blocks", "limit")
    require_at_least(args, 4, "block_size")  # transformers takes no smaller pages
    require_at_least(args, 0, "seed")
    if not 0 < args.predict_timeout < inf:
        raise InputError(f"--predict-timeout is {args.predict_timeout}, must be a number of milliseconds above 0")
    if not 0 <= args.warm_up <= 0.5:
        raise InputError(f"--warm-up is {args.warm_up}, must be a share in 0..0.5")
    told = policies_that_read(Reads.OUTPUT_LEN) & set(names)
    if args.decoding == "sample" and told:
        raise InputError(f"--policies: {', '.join(sorted(told))} needs true lengths: not with --decoding sample")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what all runs of one evaluation must share; policies and the number of seeds may grow."""
    free = {"policies", "seeds", "out", "resume", "sweep", "stage", "run"}
    return {name: str(value) for name, value in sorted(vars(args).items()) if name not in free}
