"""The whole chain on the bundled assets: collect, train, calibrate, export, evaluate."""

import argparse
import shlex
import time
from pathlib import Path

from pipelines.files import write_json
from pipelines.options import require_at_least
from predictor.errors import InputError
from scheduler.json_file import read_json

HELP = "run the whole chain on the bundled model and prompts (about ten minutes on two cores, no network)"

ROOT = Path(__file__).parent.parent
SERVED_MODEL = ROOT / "checkpoints" / "tiny-chat"
ENCODER = ROOT / "checkpoints" / "length-predictor"
PROMPTS = ROOT / "checkpoints" / "prompts.jsonl"
MAX_NEW_TOKENS = 512
POLICIES = "fcfs,fcfs-reserve,amin,amin-survival,hindsight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything the demo makes")
    parser.add_argument(
        "--served-model", default=str(SERVED_MODEL), help="folder or hub name of a causal language model"
    )
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="prompts with a split")
    parser.add_argument("--draws", type=int, default=1, help="sampled answers per prompt")
    parser.add_argument("--limit", type=int, default=800, help="number of prompts; their split is stratified")
    parser.add_argument("--kv-blocks", type=int, default=256, help="KV cache of the evaluation, in blocks of 16 tokens")
    parser.add_argument("--seeds", type=int, default=1, help="runs per policy of the evaluation")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")


def run(args: argparse.Namespace) -> None:
    """Run the stages one after the other, each as its own command would; one that is done is not done again."""
    require_at_least(args, 1, "draws", "limit", "kv_blocks", "seeds")
    for path in (SERVED_MODEL, ENCODER, PROMPTS):
        if not path.exists():
            raise InputError(f"{path} is missing: run the demo from a checkout of the repository")
    out, started = args.out, time.monotonic()
    device = ["--device", args.device] if args.device else []
    records, trained, serving = out / "records.parquet", out / "run", out / "serving"
    _require_same_records(args, out / "demo.json")
    if not records.exists():
        run_stage(
            "collect", "--served-model", args.served_model, "--prompts", args.prompts, "--draws", args.draws,
            "--limit", args.limit, "--max-new-tokens", MAX_NEW_TOKENS, "--max-running", 64, "--out", records, *device,
        )  # fmt: skip
    resume = ["--resume"] if (trained / "config.yaml").exists() else []
    run_stage(
        "train", "--data", records, "--encoder", ENCODER, "--max-length", MAX_NEW_TOKENS, "--out", trained, *resume
    )
    run_stage("export", trained, "--out", serving)
    again = ["--resume"] if (out / "evaluation" / "runs").exists() else []
    run_stage(
        "evaluate", "--predictor", serving, "--served-model", args.served_model, "--prompts", records,
        "--split", "test", "--max-new-tokens", MAX_NEW_TOKENS, "--kv-blocks", args.kv_blocks, "--policies", POLICIES,
        "--seeds", args.seeds, "--out", out / "evaluation", *again, *device,
    )  # fmt: skip
    _conclude(out / "evaluation" / "results.json", time.monotonic() - started)


def _require_same_records(args: argparse.Namespace, path: Path) -> None:
    """Note what the records are made with, or raise InputError where those in the folder were made otherwise."""
    made = {name: str(vars(args)[name]) for name in ("served_model", "prompts", "draws", "limit")}
    there = read_json(path) if path.exists() else made
    for name, value in made.items():
        if there.get(name) != value:
            raise InputError(
                f"--out: {args.out} holds a demo made with --{name.replace('_', '-')} {there.get(name)}, now it is "
                f"{value}; use another --out or remove that folder"
            )
    write_json(path, made)


def run_stage(name: str, *arguments: object) -> None:
    """Run a sub-command of `amin` as the command line would, and show it."""
    from pipelines.cli import build_parser

    argv = [name, *map(str, arguments)]
    print(f"\n$ amin {shlex.join(argv)}", flush=True)
    args = build_parser([name]).parse_args(argv)
    args.run(args)


def _conclude(results: Path, seconds: float) -> None:
    import json

    from pipelines.evaluate.report_text import summary

    print(f"\n{summary(json.loads(results.read_text())['policies'])} ({seconds / 60:.1f} minutes in all)")
