"""Two evaluations on one GPU, each in six minutes at most, and one table.

    timeout 350 python -m pipelines.studies.gpu own --prompts prompts.parquet --out runs/gpu
    timeout 350 python -m pipelines.studies.gpu large --prompts castillo.parquet --out runs/gpu

`own`: two sampled answers of SmolLM2 to each of 3,000 prompts, a predictor trained on their lengths and exported, and
280 requests at once under KV pressure, two seeds. `large`: 150 requests on a model of Llama-3.1-8B's shape with random
weights, forced to the lengths that Llama-3.1-8B itself had (`pipelines.studies.forced_requests` writes that file): the
compute is the architecture's, the lengths are real. Its measured clock is written as a deployment.

Each part begins with `pipelines.studies.gpu.check` of its model: tokens of the attention of each request over its own
keys against those of stock attention. Where they are wrong, or it fails, the part says so and runs with the stock one.

Every step and every finished run is kept: on a machine that allows six minutes a command, give the same one again until
it prints the table. Nothing is downloaded; a served model larger than one transfer goes over in parts
(`split -b 50M`, `cat`).
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig

from pipelines.demo import run_stage
from pipelines.files import atomic_directory, write_json
from pipelines.results import print_table, table
from pipelines.served_model.loading import RANDOM, fastest_dtype, place_of
from predictor.errors import InputError
from scheduler.deployments.deployment import read_deployment
from scheduler.integrations.transformers_attention import STOCK
from scheduler.json_file import read_json

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
"""The config.json of Llama-3.1-8B, but for the length of its context."""
CARD = "llama-3.1-8b-h100"
"""Whose cache the deployment file has: the evaluation's own is small on purpose."""
TINY_8B = {**LLAMA_8B, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_key_value_heads": 8}


CHECK_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `--tiny` makes small."""

    prompts: int = 3000
    draws: int = 2
    own_requests: int = 280
    own_kv_blocks: int = 1280
    large_requests: int = 150
    large_kv_blocks: int = 1024
    max_new_tokens: int = 1024
    max_batch_tokens: int = 512
    max_running: int = 480
    seeds: int = 2
    own_policies: str = "fcfs,sjf,amin,amin-survival,hindsight"
    train_options: tuple[str, ...] = ("--bf16",)


TINY = Sizes(
    prompts=80, draws=1, own_requests=12, own_kv_blocks=16, large_requests=6, large_kv_blocks=96, max_new_tokens=24,
    max_batch_tokens=256, max_running=32, seeds=1, own_policies="fcfs,amin-survival,hindsight",
    train_options=("--epochs", "1", "--head-epochs", "1"),
)  # fmt: skip


def choose_attention(served_model: str, found: Path) -> None:
    """Have the attention checked in a process of its own, which a fault of the device ends alone; `found` keeps it."""
    if not found.exists():
        command = [sys.executable, "-m", "pipelines.studies.gpu.check", "--served-model", served_model]
        print(f"\n$ {' '.join(command[1:])}", flush=True)
        try:
            done = subprocess.run([*command, "--out", str(found)], timeout=CHECK_SECONDS, stderr=subprocess.PIPE)
            failure = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
        except subprocess.TimeoutExpired:
            failure = [f"it took longer than {CHECK_SECONDS} s"]
        if not found.exists():
            write_json(found, {"is_right": False, "failure": failure[0]})
    result = read_json(found)
    print(f"attention: {in_words(result)}", flush=True)
    if not result["is_right"]:
        os.environ[STOCK] = "1"


def in_words(result: Mapping[str, Any]) -> str:
    """Return what a check found, in a line."""
    if "ours" not in result:
        return f"STOCK, since the check failed ({result['failure']})"
    ours, stock = result["ours"], result["stock"]
    words = (
        f"{result['same_answers']} of {len(ours['tokens'])} answers as with stock; tokens at most "
        f"{ours['most_below']:.2f} logits below the likeliest, stock {stock['most_below']:.2f}"
    )
    if ours["milliseconds"] is not None:
        words += (
            f"; an iteration with 64 running of 400 tokens {ours['milliseconds']:.1f} ms, stock without graphs "
            f"{stock['milliseconds']:.1f} ms"
        )
    return f"{ours['attention']} ({words})" if result["is_right"] else f"STOCK, since ours is wrong ({words})"


def own_lengths(served_model: str, prompts: Path, out: Path, sizes: Sizes) -> None:
    """Do what is left of: check, draw, train, export, evaluate."""
    choose_attention(served_model, out / "own_attention.json")
    records, trained, serving = out / "records.parquet", out / "run", out / "serving"
    if not records.exists():
        run_stage(
            "collect", "--served-model", served_model, "--prompts", prompts, "--limit", sizes.prompts,
            "--draws", sizes.draws, "--max-new-tokens", sizes.max_new_tokens, "--max-running", sizes.max_running,
            "--out", records,
        )  # fmt: skip
    if not (serving / "manifest.json").exists():
        resume = ["--resume"] if (trained / "config.yaml").exists() else []
        run_stage(
            "train", "--data", records, "--init", CHECKPOINTS / "length-predictor", "--out", trained,
            *sizes.train_options, *resume,
        )  # fmt: skip
        run_stage("export", trained, "--out", serving)
    _evaluate(
        out / "own", sizes, "--predictor", serving, "--served-model", served_model, "--prompts", records,
        "--split", "test", "--limit", sizes.own_requests, "--kv-blocks", sizes.own_kv_blocks,
        "--policies", sizes.own_policies,
    )  # fmt: skip


def large_shape(served_model: str, prompts: Path, out: Path, sizes: Sizes, shape: Mapping[str, Any]) -> None:
    """Do what is left of: make the model's folder, check, evaluate, fit the clock."""
    model, evaluation, clock = out / "llama-8b-shape", out / "large", out / "deployment.json"
    if not model.exists():
        tokenizer = AutoTokenizer.from_pretrained(place_of(served_model, fastest_dtype("cpu")), trust_remote_code=False)
        with atomic_directory(model) as aside:
            tokenizer.save_pretrained(aside)
            LlamaConfig(**shape, bos_token_id=1, eos_token_id=tokenizer.eos_token_id).save_pretrained(aside)
    choose_attention(f"{RANDOM}{model}", out / "large_attention.json")
    _evaluate(
        evaluation, sizes, "--predictor", CHECKPOINTS / "length-predictor", "--served-model", f"{RANDOM}{model}",
        "--predictor-model", "Llama-3.1-8B-Instruct", "--prompts", prompts, "--limit", sizes.large_requests,
        "--kv-blocks", sizes.large_kv_blocks, "--policies", "fcfs,amin-survival",
    )  # fmt: skip
    run_stage(
        "deployment", "--iterations", evaluation, "--hardware", "this-gpu", "--model", "llama-3.1-8b-shape",
        "--max-batch-tokens", sizes.max_batch_tokens, "--kv-tokens", read_deployment(CARD).kv_tokens, "--out", clock,
        "--force",
    )  # fmt: skip


def _evaluate(out: Path, sizes: Sizes, *arguments: object) -> None:
    if not (out / "results.json").exists():
        run_stage(
            "evaluate", *arguments, "--max-new-tokens", sizes.max_new_tokens, "--max-batch-tokens",
            sizes.max_batch_tokens, "--seeds", sizes.seeds, "--out", out,
            *(["--resume"] if (out / "runs").exists() else []),
        )  # fmt: skip


def print_all(out: Path) -> None:
    """Print what has been evaluated so far as one table, and which attention ran."""
    names = ("own", "large")
    there = {name: read_json(out / name / "results.json") for name in names if (out / name / "results.json").exists()}
    rows = [[name, *row] for name, results in there.items() for row in table(results["policies"])[1]]
    if rows:
        print_table(["lengths", *table(next(iter(there.values()))["policies"])[0]], rows)
    for name, results in there.items():
        ran = results["environment"]
        print(f"{name}: {ran['attention']}; {ran['dtype']} on {ran['hardware']}")
        if (found := out / f"{name}_attention.json").exists():
            print(f"  checked: {in_words(read_json(found))}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("own", "large"), help="which of the two")
    parser.add_argument("--served-model", default="smollm2", help="also the tokenizer of `large` (default smollm2)")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="own: prompts, 280 of them for the test; large: records"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; what is there is kept")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    args = parser.parse_args()
    if not args.prompts.exists():
        parser.error(f"--prompts: {args.prompts}: no such file")
    try:  # before the check, whose failure is kept
        place_of(args.served_model, fastest_dtype("cpu"))
    except InputError as error:
        parser.error(f"--served-model: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = TINY if args.tiny else Sizes()
    if args.part == "own":
        own_lengths(args.served_model, args.prompts, args.out, sizes)
    else:
        large_shape(args.served_model, args.prompts, args.out, sizes, TINY_8B if args.tiny else LLAMA_8B)
    print_all(args.out)


if __name__ == "__main__":
    main()
