"""SmolLM2 on one GPU, or the same on a CPU with `--tiny`: lengths, a predictor trained on them, and every policy.

    timeout 350 python -m pipelines.studies.gpu --prompts prompts.parquet --out runs/gpu

Two sampled answers to each of 3,000 prompts, the predictor fine-tuned on their lengths and exported, and 280 requests
at once under KV pressure, two seeds. Every step and every finished run is kept, and the same command goes on where it
stopped: on a machine that allows six minutes a command, give it again until it prints the table.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from pipelines.demo import run_stage

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `--tiny` makes small."""

    prompts: int = 3000
    draws: int = 2
    requests: int = 280
    kv_blocks: int = 1280
    max_new_tokens: int = 1024
    max_batch_tokens: int = 512
    max_running: int = 480
    seeds: int = 2
    policies: str = "fcfs,sjf,amin,amin-survival,hindsight"
    train_options: tuple[str, ...] = ("--bf16",)


TINY = Sizes(
    prompts=80, draws=1, requests=12, kv_blocks=16, max_new_tokens=24, max_batch_tokens=256, max_running=32, seeds=1,
    policies="fcfs,amin-survival,hindsight", train_options=("--epochs", "1", "--head-epochs", "1"),
)  # fmt: skip


def run(served_model: str, prompts: Path, out: Path, sizes: Sizes) -> None:
    """Do what is left to do."""
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
    evaluation = out / "evaluation"
    run_stage(
        "evaluate", "--predictor", serving, "--served-model", served_model, "--prompts", records, "--split", "test",
        "--limit", sizes.requests, "--max-new-tokens", sizes.max_new_tokens, "--kv-blocks", sizes.kv_blocks,
        "--max-batch-tokens", sizes.max_batch_tokens, "--policies", sizes.policies, "--seeds", sizes.seeds,
        "--out", evaluation, *(["--resume"] if (evaluation / "runs").exists() else []),
    )  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--served-model", default="smollm2", help="(default smollm2)")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts, with a split that keeps 280 for the test")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; what is there is kept")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    args = parser.parse_args()
    run(args.served_model, args.prompts, args.out, TINY if args.tiny else Sizes())


if __name__ == "__main__":
    main()
