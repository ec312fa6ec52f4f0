"""The whole chain on the bundled assets: collect, train, calibrate, export, evaluate."""

import shlex
import time
from pathlib import Path

from pipelines.files import write_json
from pipelines.settings.demo import ROOT, DemoSettings
from predictor.errors import InputError
from scheduler.json_file import read_json

ENCODER = ROOT / "checkpoints" / "length-predictor"
MAX_NEW_TOKENS = 512
POLICIES = "fcfs,fcfs-reserve,amin,amin-survival,hindsight"


def run(settings: DemoSettings) -> None:
    """Run the stages one after the other, each as its own command would; one that is done is not done again."""
    if not ENCODER.exists():
        raise InputError(f"{ENCODER} is missing: run the demo from a checkout of the repository")
    out, started = settings.out, time.monotonic()
    device = ["--device", settings.device] if settings.device else []
    records, trained, serving = out / "records.parquet", out / "run", out / "serving"
    _require_same_records(settings, out / "demo.json")
    if not records.exists():
        run_stage(
            "collect", "--served-model", settings.served_model, "--prompts", settings.prompts,
            "--draws", settings.draws, "--limit", settings.limit, "--max-new-tokens", MAX_NEW_TOKENS,
            "--max-running", 64, "--out", records, *device,
        )  # fmt: skip
    run_stage(
        "train", "--data", records, "--encoder", ENCODER, "--max-length", MAX_NEW_TOKENS, "--out", trained, "--resume"
    )
    if not serving.exists():  # an export appears whole or not at all
        run_stage("export", trained, "--out", serving)
    again = ["--resume"] if (out / "evaluation" / "runs").exists() else []
    run_stage(
        "evaluate", "--predictor", serving, "--served-model", settings.served_model, "--prompts", records,
        "--split", "test", "--max-new-tokens", MAX_NEW_TOKENS, "--kv-blocks", settings.kv_blocks,
        "--policies", POLICIES, "--seeds", settings.seeds, "--out", out / "evaluation", *again, *device,
    )  # fmt: skip
    _conclude(out / "evaluation" / "results.json", time.monotonic() - started)


def _require_same_records(settings: DemoSettings, path: Path) -> None:
    """Note what the records are made with, or raise InputError where those in the folder were made otherwise."""
    made = {name: str(getattr(settings, name)) for name in ("served_model", "prompts", "draws", "limit")}
    there = read_json(path) if path.exists() else made
    for name, value in made.items():
        if there.get(name) != value:
            raise InputError(
                f"--out: {settings.out} holds a demo made with --{name.replace('_', '-')} {there.get(name)}, now it is "
                f"{value}; use another --out or remove that folder"
            )
    write_json(path, made)


def run_stage(name: str, *arguments: object) -> None:
    """Run a sub-command of `amin` as the command line would, and show it."""
    from pipelines import cli

    argv = [str(argument) for argument in arguments]
    print(f"\n$ amin {shlex.join([name, *argv])}", flush=True)
    cli.run_stage(name, argv)


def _conclude(results: Path, seconds: float) -> None:
    from pipelines.evaluate.report_text import summary

    print(f"\n{summary(read_json(results)['policies'])} ({seconds / 60:.1f} minutes in all)")
