"""The whole chain on one GPU without a network: a chat model of 100M parameters from scratch, and every policy on it.

    python -m pipelines.studies.gpu --data ../shared/data/chat_pairs.parquet --out runs/gpu

Train the served model (bf16, compiled, packed), collect its answers' lengths, fine-tune the bundled predictor on them,
export it, and evaluate all policies on 2,000 requests under KV pressure. Every step continues where it stopped: give
the same command again until it prints the table. On a machine that allows ten minutes a command, with some to spare:

    timeout 570 python -m pipelines.studies.gpu --data shared/data/chat_pairs.parquet --out runs/gpu --train-minutes 5

Needs the repository with `checkpoints/` and the pairs (27 MB; `--max-pairs` takes fewer), nothing else; torch >=2.11,
transformers >=5.17,<5.24 and the extra `train`, no `datasets`. Keep `--out` between the commands, or bring it back.
`--tiny` runs it all on a CPU in about a minute, to see that it works.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.demo import run_stage
from pipelines.files import atomic_file
from pipelines.studies.gpu_train import PackedRecipe, train_packed
from pipelines.studies.tiny_chat import Recipe
from predictor.splits.splits import assign_splits

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
POLICIES = "fcfs,engine-fifo,fcfs-reserve,sglang,sjf,svf,amin,amin-survival,hindsight"
FRACTIONS = (0.5, 0.06, 0.12, 0.32)
"""More test prompts than usual: each is a request of the evaluation."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `--tiny` makes small."""

    packed: PackedRecipe
    prompts: int = 7000
    draws: int = 2
    requests: int = 2000
    kv_blocks: int = 2048
    max_new_tokens: int = 512
    max_batch_tokens: int = 4096
    max_running: int = 512
    train_options: tuple[str, ...] = ("--bf16",)
    seeds: int = 5
    policies: str = POLICIES


FULL = Sizes(
    PackedRecipe(Recipe(
        hidden_size=768, num_layers=16, num_heads=12, num_kv_heads=4, intermediate_size=2048, length_spread=0.5,
        code_share=1.0, max_tokens=120_000_000, learning_rate=6e-4,
    ))
)  # fmt: skip
TINY = Sizes(
    PackedRecipe(Recipe(
        vocab_size=320, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64,
        max_tokens=4_000, length_spread=9.0, max_prompt_tokens=64,
    ), num_rows=2, row_tokens=512, num_tokenizer_texts=50),
    prompts=80, draws=1, requests=20, kv_blocks=24, max_new_tokens=48,
    max_batch_tokens=256, max_running=32, seeds=1, policies="fcfs,amin,hindsight",
    train_options=("--epochs", "1", "--head-epochs", "1"),
)  # fmt: skip


def write_prompts(data: Path, path: Path, sizes: Sizes) -> None:
    """Write the shorter prompts of the pairs, each once, with a split that no near-duplicate crosses."""
    column = pq.read_table(data, columns=["prompt"]).column("prompt").to_pylist()
    prompts = [prompt for prompt in dict.fromkeys(column) if len(prompt) < 4000][: sizes.prompts]
    rows = zip(prompts, assign_splits(prompts, 0, FRACTIONS), strict=True)
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8") as lines:
        for i, (prompt, split) in enumerate(rows):
            lines.write(json.dumps({"prompt_id": f"p{i}", "prompt": prompt, "split": split}) + "\n")


def take_pairs(data: Path, path: Path, max_pairs: int) -> None:
    """Write the first so many pairs of `data` to `path`."""
    with atomic_file(path) as aside:
        pq.write_table(pq.read_table(data).slice(0, max_pairs), aside)


def run(args: argparse.Namespace) -> None:
    """Do what is left to do."""
    sizes, out, data = (TINY if args.tiny else FULL), args.out, args.data
    sizes = replace(sizes, **{k: v for k in ("requests", "kv_blocks", "seeds") if (v := getattr(args, k)) is not None})
    out.mkdir(parents=True, exist_ok=True)
    if args.max_pairs:
        data = out / "pairs.parquet"
        if not data.exists():
            take_pairs(args.data, data, args.max_pairs)
    model, records, trained, serving = out / "model", out / "records.parquet", out / "run", out / "serving"
    if not (model / "recipe.json").exists() and not train_packed(
        data, out, sizes.packed, args.train_minutes, compiled=not (args.eager or args.tiny)
    ):
        print("the served model is not finished: give the same command again")
        return
    if not (out / "prompts.jsonl").exists():
        write_prompts(data, out / "prompts.jsonl", sizes)
    if not records.exists():
        run_stage(
            "collect", "--served-model", model, "--prompts", out / "prompts.jsonl", "--draws", sizes.draws,
            "--max-new-tokens", sizes.max_new_tokens, "--max-running", sizes.max_running, "--out", records,
        )  # fmt: skip
    if not (serving / "manifest.json").exists():
        resume = ["--resume"] if (trained / "config.yaml").exists() else []
        run_stage(
            "train", "--data", records, "--init", CHECKPOINTS / "length-predictor", "--out", trained,
            *sizes.train_options, *resume,
        )  # fmt: skip
        run_stage("export", trained, "--out", serving)
    runs = out / "evaluation" / "runs"
    run_stage(
        "evaluate", "--predictor", serving, "--served-model", model, "--prompts", records, "--split", "test",
        "--limit", sizes.requests, "--max-new-tokens", sizes.max_new_tokens, "--kv-blocks", sizes.kv_blocks,
        "--max-batch-tokens", sizes.max_batch_tokens, "--policies", sizes.policies, "--seeds", sizes.seeds,
        "--out", out / "evaluation", *(["--resume"] if runs.exists() else []),
    )  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with prompt, response, source")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for everything; continued if it holds something"
    )
    parser.add_argument("--train-minutes", type=float, default=1e9, help="stop training the served model after so long")
    parser.add_argument("--eager", action="store_true", help="do not compile the training step")
    parser.add_argument("--max-pairs", type=int, help="only the first so many pairs")
    parser.add_argument("--requests", type=int, help="requests of the evaluation")
    parser.add_argument("--kv-blocks", type=int, help="KV cache of the evaluation, in blocks of 16 tokens")
    parser.add_argument("--seeds", type=int, help="runs per policy")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
