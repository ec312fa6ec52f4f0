"""Replays real lengths through vLLM's own scheduler code, with a model that costs nothing, and counts iterations.

    .venv-vllm/bin/python -m pipelines.studies.vllm_replay --answers answers.jsonl --predictor serving

vLLM's scheduler and block pool are the real ones, prefix caching on; only the forward pass is left out, so that other
work on the machine changes nothing. `--answers` has a line per request: `prompt`, `num_prompt_tokens`, `output_len`.
Requests arrive at once, or by a Poisson process at a share of the rate that vLLM's own scheduler reaches at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.request_bounds import RequestBounds
from scheduler.request import Request as Facts

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
STOP = 2
OWN = "vLLM's own"
MIXED_CAPS = (64, 256, 512)


@dataclass(frozen=True, slots=True)
class Work:
    """A request: token ids, true length, the most tokens it may generate, its bounds, the iteration of its arrival."""

    token_ids: list[int]
    output_len: int
    max_tokens: int
    bounds: dict[str, int]
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Iterations from arrival to end by request; the last end; preemptions; tokens computed; seconds a decision."""

    latencies: list[int]
    num_iterations: int
    num_preemptions: int
    num_computed: int
    decision_seconds: float


def read_work(args: argparse.Namespace, rng: np.random.Generator) -> list[Work]:
    """Return the requests, their bounds predicted; those of `--system-prompt` begin with as many common tokens."""
    rows = [json.loads(line) for line in args.answers.read_text().splitlines()][: args.num_requests]
    caps = rng.choice(MIXED_CAPS, len(rows)).tolist() if args.mixed_caps else [args.max_new_tokens] * len(rows)
    bounds = RequestBounds.read(args.predictor, args.served_model, 0.1)
    facts = [Facts(str(i), row["num_prompt_tokens"], cap) for i, (row, cap) in enumerate(zip(rows, caps, strict=True))]
    predicted = [bounds.predicted([fact], [row["prompt"]])[0] for fact, row in zip(facts, rows, strict=True)]
    common = list(range(10, 10 + args.system_prompt))
    return [
        Work(
            common + rng.integers(5000, 30000, row["num_prompt_tokens"]).tolist(),
            min(row["output_len"], cap),
            cap,
            {
                "output_len_lower_bound": fact.output_len_lower_bound,
                "output_len_prediction": fact.output_len_prediction or 1,
                "output_len_upper_bound": fact.output_len_upper_bound or cap,
            },
        )
        for row, cap, fact in zip(rows, caps, predicted, strict=True)
    ]


class Engine:
    """vLLM's scheduler; each iteration gives every request that is not in prefill a token of its own."""

    def __init__(self, args: argparse.Namespace, policy: str | None) -> None:
        """Build the scheduler on `--num-blocks` blocks; `policy` None takes vLLM's own."""
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from scheduler.integrations.vllm import AminScheduler

        config = EngineArgs(
            model=str(args.model),
            dtype="float32",
            max_model_len=args.max_model_len,
            block_size=args.block_size,
            max_num_batched_tokens=args.max_batch_tokens,
            max_num_seqs=args.max_num_seqs,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = args.num_blocks + 1
        config.additional_config = {"amin": {"policy": policy}} if policy else {}
        spec = FullAttentionSpec(block_size=args.block_size, num_kv_heads=1, head_size=16, dtype=torch.float32)
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(args.block_size, sha256)
        self.scheduler = (AminScheduler if policy else AsyncScheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(args.num_blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=args.block_size,
        )

    def run(self, work: Sequence[Work]) -> Outcome:
        """Serve the requests to the end."""
        from vllm.v1.request import RequestStatus

        requests = [self._request(i, each) for i, each in enumerate(work)]
        order = sorted(range(len(work)), key=lambda i: (work[i].arrival, i))
        ends: dict[int, int] = {}
        now, num_computed = 0, 0
        while len(ends) < len(work):
            while order and work[order[0]].arrival <= now:
                self.scheduler.add_request(requests[order.pop(0)])
            num_computed += self._step(work)
            now += 1
            ends |= {i: now for i, r in enumerate(requests) if i not in ends and RequestStatus.is_finished(r.status)}
        metrics = getattr(self.scheduler, "metrics", None)
        seconds = metrics.decision_seconds / max(1, metrics.decisions) if metrics else 0.0
        latencies = [ends[i] - each.arrival for i, each in enumerate(work)]
        return Outcome(latencies, now, sum(r.num_preemptions for r in requests), num_computed, seconds)

    def _request(self, index: int, work: Work) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(
            max_tokens=work.max_tokens, ignore_eos=True, stop_token_ids=[STOP], extra_args=dict(work.bounds)
        )
        return Request(str(index), work.token_ids, params, None, arrival_time=float(index), block_hasher=self.hasher)

    def _step(self, work: Sequence[Work]) -> int:
        from vllm.v1.outputs import ModelRunnerOutput

        output = self.scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for name in ids:
            request, index = self.scheduler.requests[name], int(name)
            is_last = request.num_output_tokens + 1 >= work[index].output_len
            sampled.append([] if request.is_prefill_chunk else [STOP if is_last else 40_000 + index])
        rows = {name: row for row, name in enumerate(ids)}
        self.scheduler.update_from_output(output, ModelRunnerOutput(ids, rows, sampled))
        return int(output.total_num_scheduled_tokens)


def with_arrivals(work: Sequence[Work], load: float, num_iterations: int, rng: np.random.Generator) -> list[Work]:
    """Return the requests with Poisson arrivals at `load` times the rate of `num_iterations` for all of them."""
    gaps = rng.exponential(num_iterations / len(work) / load, len(work))
    return [
        Work(each.token_ids, each.output_len, each.max_tokens, each.bounds, int(at))
        for each, at in zip(work, np.cumsum(gaps), strict=True)
    ]


def compare(args: argparse.Namespace) -> None:
    """Print a table for each way of arriving."""
    rng = np.random.default_rng(args.seed)
    work = read_work(args, rng)
    at_once = Engine(args, None).run(work)
    lengths = [each.output_len for each in work]
    print(f"{len(work)} requests, mean answer {np.mean(lengths):.0f}, {args.num_blocks} blocks of {args.block_size}")
    print(
        f"{'arrivals':10} {'scheduler':15} {'mean':>7} {'vs own':>7} {'p50':>6} {'p99':>6} {'last':>6} preempt computed"
    )
    for load in (None, *args.loads):
        todo = work if load is None else with_arrivals(work, load, at_once.num_iterations, rng)
        own = at_once if load is None else Engine(args, None).run(todo)
        for policy in (None, *args.policies):
            done = own if policy is None else Engine(args, policy).run(todo)
            _print_row("at once" if load is None else f"load {load}", policy or OWN, done, own)


def _print_row(arrivals: str, name: str, done: Outcome, own: Outcome) -> None:
    mean, p50, p99 = np.mean(done.latencies), *np.quantile(done.latencies, [0.5, 0.99])
    gain = np.mean(own.latencies) / mean
    print(
        f"{arrivals:10} {name:15} {mean:7.1f} {gain:6.2f}x {p50:6.0f} {p99:6.0f} {done.num_iterations:6} "
        f"{done.num_preemptions:7} {done.num_computed:8}  {1e3 * done.decision_seconds:.2f} ms a decision",
        flush=True,
    )


def main() -> int:
    """Compare; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--predictor", type=Path, required=True, help="export that predicts the bounds")
    parser.add_argument("--served-model", help="of the predictor; by default the one that it names")
    parser.add_argument(
        "--model", type=Path, required=True, help="a folder that vLLM can read; its config alone is used"
    )
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--mixed-caps", action="store_true", help=f"requests ask for {MIXED_CAPS} tokens at most")
    parser.add_argument("--system-prompt", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--num-blocks", type=int, default=400)
    parser.add_argument("--max-batch-tokens", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--policies", nargs="+", default=["amin", "amin-survival"])
    parser.add_argument("--loads", nargs="*", type=float, default=[0.7, 0.9, 1.1])
    parser.add_argument("--seed", type=int, default=0)
    os.environ.update(ENVIRONMENT)
    compare(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
