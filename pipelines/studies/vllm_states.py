"""Counts what a probe changes in vLLM: iterations to the end of each answer, preemptions, and the time it takes.

    .venv-vllm/bin/python -m pipelines.studies.vllm_states --model FOLDER --predictor serving --probe probe

The engine is in this process, and the same prompts are asked at once of vLLM's own scheduler, of the policy, and of
the policy with the probe. Each request has a seed of its own, so that its answer is the same under each but for ties
in the last digit. Ends are counted in iterations, which other work on the machine does not change.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.probe.vllm_probe import WORKER
from pipelines.served_model.chats import chat_of
from predictor.records.records import select_rows

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
OWN, PROMPT_ONLY, PROBE = "vLLM's own", "prompt alone", "with the probe"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Iterations to each end, answers, preemptions, the plug-in's counts, and seconds of all iterations."""

    ends: list[int]
    answers: list[tuple[int, ...]]
    num_preemptions: int
    counts: Any
    seconds: float


def serve(args: argparse.Namespace, arm: str, prompts: Sequence[list[int]]) -> Outcome:
    """Serve all prompts at once to the end."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    amin: dict[str, Any] = {"predictor": str(args.predictor), "timeout": 60.0, "policy": args.policy}
    amin |= {"probe": str(args.probe), "renew_every": args.renew_every} if arm == PROBE else {}
    ours = {
        "scheduler_cls": "pipelines.vllm_scheduler.PredictingScheduler",
        "worker_cls": WORKER,
        "additional_config": {"amin": amin},
    }
    llm = LLM(
        str(args.model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=args.max_model_len,
        block_size=32,
        num_gpu_blocks_override=args.num_blocks + 1,  # vLLM keeps one for itself
        **({} if arm == OWN else ours),
    )
    engine = llm.llm_engine
    for i, prompt in enumerate(prompts):
        params = SamplingParams(temperature=args.temperature, seed=args.seed + i, max_tokens=args.max_new_tokens)
        engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
    requests = dict(engine.engine_core.engine_core.scheduler.requests)
    ends = [0] * len(prompts)
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    started, step = time.perf_counter(), 0
    while engine.has_unfinished_requests():
        step += 1
        for output in engine.step():
            if output.finished:
                ends[int(output.request_id)] = step
                answers[int(output.request_id)] = tuple(output.outputs[0].token_ids)
    seconds = time.perf_counter() - started
    counts = getattr(engine.engine_core.engine_core.scheduler, "metrics", None)
    engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return Outcome(ends, answers, sum(each.num_preemptions for each in requests.values()), counts, seconds)


def compare(args: argparse.Namespace) -> None:
    """Print a line for each way of scheduling."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = select_rows(args.prompts, None, args.split)[: args.num_requests]
    prompts = [
        list(tokenizer.apply_chat_template(chat_of(row), add_generation_prompt=True, return_dict=False)) for row in rows
    ]
    print(f"{len(prompts)} requests at once, {args.num_blocks} blocks of 32 tokens, {args.policy}")
    print(f"{'':15} {'mean':>7} {'vs own':>7} {'p50':>6} {'p99':>6} {'last':>6} preempt same answers")
    own = None
    for arm in (OWN, PROMPT_ONLY, PROBE):
        done = serve(args, arm, prompts)
        own = own or done
        same = sum(ours == theirs for ours, theirs in zip(done.answers, own.answers, strict=True))
        mean, p50, p99 = np.mean(done.ends), *np.quantile(done.ends, [0.5, 0.99])
        line = f"{arm:15} {mean:7.1f} {np.mean(own.ends) / mean:6.2f}x {p50:6.0f} {p99:6.0f} {max(done.ends):6}"
        print(f"{line} {done.num_preemptions:7} {same:5} of {len(prompts)}", flush=True)
        if arm == PROBE:
            share = done.counts.renewal_seconds / done.seconds
            print(f"{done.counts.renewals} renewals, {share:.2%} of the time; unrenewed {done.counts.unrenewed}")


def main() -> int:
    """Compare; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder that vLLM reads")
    parser.add_argument("--predictor", type=Path, default=ROOT / "checkpoints/length-predictor-small")
    parser.add_argument(
        "--probe", type=Path, required=True, help="of the model; trained next to the predictor or alone"
    )
    parser.add_argument("--policy", default="amin-survival")
    parser.add_argument("--renew-every", type=int, default=16, help="iterations between two renewals")
    parser.add_argument("--prompts", type=Path, default=ROOT / "checkpoints/prompts.jsonl")
    parser.add_argument("--split", default="test", help="only these prompts, which predictor and probe have not seen")
    parser.add_argument("--num-requests", type=int, default=32)
    parser.add_argument("--num-blocks", type=int, default=40)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    os.environ.update(ENVIRONMENT)
    compare(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
