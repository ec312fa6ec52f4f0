"""Serves a model with vLLM's own scheduler and with policies of ours, under one tight block budget, and compares them.

    .venv-vllm/bin/python -m pipelines.studies.vllm_check --model FOLDER

in-process, then through the OpenAI-compatible server.

Every request arrives at once, so that there is a standing queue; decoding is greedy in single precision, so that the
tokens must be the same under every policy. The reference is vLLM with room for everything. The bounds are made up from
the reference lengths, as a predictor of middling quality would give them; `no bounds` sends none, so that vLLM decides,
nor does `predicted`, where the scheduler predicts at arrival with `--predictor`.
"""

import argparse
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}
PLUGIN = "scheduler.integrations.vllm.AminScheduler"
PREDICTING_PLUGIN = "pipelines.vllm_scheduler.PredictingScheduler"
PREDICTION_TIMEOUT = 60.0
"""Seconds; everyone arrives at once, and the answers must be those of predictions."""
ROOT = Path(__file__).parents[2]
SAMPLING = {"temperature": 0.0, "repetition_penalty": 1.15}
"""Greedy; the penalty keeps a small model from repeating itself up to the limit."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    Attributes:
        tokens: Token ids by request.
        latencies: Seconds from the common arrival to the last token, by request.
        num_preemptions: By vLLM's own count.
        mean_iterations: As the mean latency, but in iterations, which other work on the machine does not stretch.
    """

    tokens: list[list[int]]
    latencies: list[float]
    num_preemptions: int
    mean_iterations: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, the limit of new tokens, and by request the extra arguments that carry its bounds."""

    prompts: list[str]
    max_new_tokens: int
    extra_args: list[dict[str, int]]


def engine_options(
    args: argparse.Namespace, num_blocks: int, policy: str | None, *, predicts: bool = False
) -> dict[str, Any]:
    """Return vLLM's engine options; `policy` None leaves vLLM its own scheduler."""
    options: dict[str, Any] = {
        "model": str(args.model),
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": args.max_model_len,
        "block_size": args.block_size,
        "num_gpu_blocks_override": num_blocks,
        "enable_prefix_caching": args.prefix_caching,
        "max_num_seqs": args.max_num_seqs,
    }
    if policy:
        predictor = {"predictor": str(args.predictor), "timeout": PREDICTION_TIMEOUT} if predicts else {}
        options["scheduler_cls"] = PREDICTING_PLUGIN if predicts else PLUGIN
        options["additional_config"] = {"amin": {"policy": policy, **predictor}}
    return options


def run_offline(options: dict[str, Any], workload: Workload) -> Outcome:
    """Return what `LLM` gives, engine and client in this process."""
    from vllm import LLM, SamplingParams  # after the environment is set
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(**options, disable_log_stats=False)
    engine, tokenizer, before = llm.llm_engine, llm.get_tokenizer(), num_preemptions_offline(llm)
    for i, (prompt, extra_args) in enumerate(zip(workload.prompts, workload.extra_args, strict=True)):
        messages = [{"role": "user", "content": prompt}]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        params = SamplingParams(**SAMPLING, max_tokens=workload.max_new_tokens, extra_args=extra_args or None)
        engine.add_request(str(i), {"prompt_token_ids": tokens}, params)
    answers, latencies, iterations = zip(*run_engine(engine), strict=True)
    outcome = Outcome(list(answers), list(latencies), num_preemptions_offline(llm) - before, float(np.mean(iterations)))
    governor = getattr(engine.engine_core.engine_core.scheduler, "governor", None)
    assert governor is None or len(governor.runner) == 0, "the policy still keeps finished requests"
    engine.engine_core.shutdown()
    del llm, engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return outcome


def run_engine(engine: Any) -> list[tuple[list[int], float, int]]:
    """Run an `LLMEngine` to the end; return token ids, seconds and iterations to the last of them, by request."""
    start, ends = time.perf_counter(), dict[int, tuple[list[int], float, int]]()
    for num_iterations in itertools.count(1):
        for output in engine.step():
            if output.finished:
                tokens = list(output.outputs[0].token_ids)
                ends[int(output.request_id)] = tokens, time.perf_counter() - start, num_iterations
        if not engine.has_unfinished_requests():
            break
    return [ends[i] for i in range(len(ends))]


def num_preemptions_offline(llm: Any) -> int:
    """Return vLLM's own count."""
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def run_http(options: dict[str, Any], workload: Workload) -> Outcome:
    """Return what the OpenAI-compatible server gives to as many connections as there are requests."""
    with serve(options) as url, ThreadPoolExecutor(len(workload.prompts)) as pool:
        start = time.perf_counter()

        def ask(prompt: str, extra_args: dict[str, int]) -> tuple[list[int], float]:
            body = {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": workload.max_new_tokens,
                "return_token_ids": True,
                "vllm_xargs": extra_args or None,
                **SAMPLING,
            }
            answer = json.loads(fetch(f"{url}/v1/chat/completions", body))
            return answer["choices"][0]["token_ids"], time.perf_counter() - start

        answers = list(pool.map(ask, workload.prompts, workload.extra_args))
        metrics = fetch(f"{url}/metrics").decode().splitlines()
    count = sum(float(line.split()[-1]) for line in metrics if line.startswith("vllm:num_preemptions_total"))
    return Outcome([tokens for tokens, _ in answers], [seconds for _, seconds in answers], int(count))


@contextmanager
def serve(options: dict[str, Any]) -> Iterator[str]:
    """Yield the address of a server, which is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            command.append("--no-" + name.replace("_", "-"))
        elif value is True:
            command.append(flag)
        else:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until_ready(url, server)
            yield url
        finally:
            server.terminate()


def wait_until_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Return when the server answers; RuntimeError if it ends or takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            fetch(f"{url}/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the server did not start: {server.args!r}")


def fetch(url: str, body: dict[str, Any] | None = None) -> bytes:
    """Return the answer to a GET, or with a body to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        answer: bytes = response.read()
    return answer


def made_up_bounds(output_lens: Sequence[int], rng: np.random.Generator) -> list[dict[str, int]]:
    """Return a lower bound of half to all of each length, and a prediction of 0.7 to 1.4 times it."""
    lens = np.asarray(output_lens)
    lower = np.maximum(1, lens * rng.uniform(0.5, 1.0, len(lens))).astype(int).tolist()
    prediction = np.maximum(1, lens * rng.uniform(0.7, 1.4, len(lens))).astype(int).tolist()
    return [
        {"output_len_lower_bound": least, "output_len_prediction": max(least, middle)}
        for least, middle in zip(lower, prediction, strict=True)
    ]


def compare(args: argparse.Namespace) -> bool:
    """Print a row for each run; return whether all gave the reference tokens."""
    lines = (ROOT / "checkpoints/prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[: args.num_requests]]
    nothing: list[dict[str, int]] = [{} for _ in prompts]
    plain = Workload(prompts, args.max_new_tokens, nothing)
    num_blocks_for_all = -(-args.max_model_len // args.block_size) * args.max_num_seqs + 1
    reference = run_offline(engine_options(args, num_blocks_for_all, None), plain).tokens
    lens = [len(tokens) for tokens in reference]
    bounded = Workload(prompts, args.max_new_tokens, made_up_bounds(lens, np.random.default_rng(0)))
    own, unbounded = ("vLLM's own", None, plain, False), ("plug-in, no bounds", "amin-survival", plain, False)
    runs: list[tuple[str, str | None, Workload, bool]] = [own, unbounded]
    runs += [(policy, policy, bounded, False) for policy in args.policies]
    if args.predictor:
        runs += [(f"{policy}, predicted", policy, plain, True) for policy in args.policies]
    print(
        f"{len(prompts)} requests at once, {sum(lens)} tokens (mean {np.mean(lens):.0f}, longest {max(lens)}), "
        f"{args.num_blocks - 1} blocks of {args.block_size}"
    )
    print(f"{'through':9} {'scheduler':24} same tokens  preemptions  mean s   p99 s   all s  mean iterations")
    all_same = True
    ways = {"LLM": run_offline, "HTTP": run_http}
    for through in args.through:
        for name, policy, workload, predicts in runs:
            outcome = ways[through](engine_options(args, args.num_blocks, policy, predicts=predicts), workload)
            same = sum(ours == theirs for ours, theirs in zip(outcome.tokens, reference, strict=True))
            all_same &= same == len(prompts)
            mean, p99, last = np.mean(outcome.latencies), np.quantile(outcome.latencies, 0.99), max(outcome.latencies)
            iterations = "-" if outcome.mean_iterations is None else f"{outcome.mean_iterations:.0f}"
            counts = f"{same:5}/{len(prompts):<5} {outcome.num_preemptions:12}"
            print(f"{through:9} {name:24} {counts} {mean:8.2f} {p99:7.2f} {last:7.2f}  {iterations:>15}", flush=True)
    return all_same


def main() -> int:
    """Compare; return 0 if every run gave the same tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a chat model; SmolLM2 is kept in ~/.cache/amin"
    )
    parser.add_argument("--prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--num-requests", type=int, default=80)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=384)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--num-blocks", type=int, default=33, help="vLLM keeps one of them for itself")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--predictor", type=Path, help="export that predicts at arrival, in rows of its own")
    parser.add_argument("--policies", nargs="+", default=["amin", "amin-survival"])
    parser.add_argument("--through", nargs="+", choices=["LLM", "HTTP"], default=["LLM", "HTTP"])
    os.environ.update(ENVIRONMENT)
    return 0 if compare(parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
