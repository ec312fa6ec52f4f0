"""The whole chain on the bundled assets: collect, train, calibrate, export, evaluate."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import atomic_file, write_json
from pipelines.settings.demo import ROOT, DemoSettings
from predictor.errors import InputError
from scheduler.json_file import read_json

ENCODER = ROOT / "checkpoints" / "length-predictor"
RECORDS = ROOT / "checkpoints" / "records.parquet"
"""Lengths of the bundled model's answers to the bundled prompts, collected like those that the demo collects itself."""
MAX_NEW_TOKENS = 224
"""Cap of what the demo generates; of the bundled records, the one of the evaluation."""
SHOWN = 16
"""Prompts that the demo collects itself, to show it, where it takes the rest from the bundled records."""
POLICIES = "fcfs,amin-survival,hindsight"


def run(settings: DemoSettings) -> None:
    """Run the stages one after the other, each as its own command would; one that is done is not done again."""
    if not ENCODER.exists():
        raise InputError(f"{ENCODER} is missing: run the demo from a checkout of the repository")
    out, started = settings.out, time.monotonic()
    device = ["--device", settings.device] if settings.device else []
    trained, serving, evaluation = out / "run", out / "serving", out / "evaluation"
    _require_same_records(settings, out / "demo.json")
    records = _records(settings, device)
    run_stage(
        "train", "--data", records, "--encoder", ENCODER, "--max-length", MAX_NEW_TOKENS, "--out", trained, "--resume"
    )
    if not serving.exists():  # an export appears whole or not at all
        run_stage("export", trained, "--out", serving)
    again = ["--resume"] if (evaluation / "runs").exists() else []
    run_stage(
        "evaluate", "--predictor", serving, "--served-model", settings.served_model, "--prompts", records,
        "--split", "test", "--limit", settings.requests, "--max-new-tokens", MAX_NEW_TOKENS,
        "--kv-blocks", settings.kv_blocks, "--policies", POLICIES, "--seeds", settings.seeds, "--out", evaluation,
        *again, *device,
    )  # fmt: skip
    _conclude(evaluation, settings.seeds, time.monotonic() - started)


def _records(settings: DemoSettings, device: Sequence[str]) -> Path:
    """Collect, a few prompts where the rest is bundled; return the records to train on."""
    usual = DemoSettings()
    is_bundled = (settings.served_model, settings.prompts) == (usual.served_model, usual.prompts)
    collected = settings.out / ("collected.parquet" if is_bundled else "records.parquet")
    run_stage(
        "collect", "--served-model", settings.served_model, "--prompts", settings.prompts, "--draws", settings.draws,
        "--limit", min(SHOWN, settings.limit) if is_bundled else settings.limit, "--max-new-tokens", MAX_NEW_TOKENS,
        "--max-running", 64, "--out", collected, *device,
    )  # fmt: skip
    if not is_bundled:
        return collected
    records = settings.out / "records.parquet"
    with atomic_file(records) as aside:
        pq.write_table(with_more_draws(pq.read_table(RECORDS), pq.read_table(collected)), aside)
    print(f"\n{records}: the answers collected just now, and those of checkpoints/records.parquet to the other prompts")
    return records


def with_more_draws(table: pa.Table, more: pa.Table) -> pa.Table:
    """Return records with the draws that `more` has of the same prompts, after their own."""
    rows = {row["prompt_id"]: row for row in table.to_pylist()}
    for row in more.to_pylist():
        if row["prompt_id"] in rows:
            for name in ("output_lens", "is_truncated"):
                rows[row["prompt_id"]][name] += row[name]
    return pa.Table.from_pylist(list(rows.values()), schema=table.schema)


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
    """Run a sub-command of `amin` as the command line would; show it, and how long it took."""
    from pipelines import cli

    argv = [str(argument) for argument in arguments]
    print(f"\n$ amin {shlex.join([name, *argv])}", flush=True)
    started = time.monotonic()
    cli.run_stage(name, argv)
    print(f"({name}: {time.monotonic() - started:.0f} s)", flush=True)


def _conclude(evaluation: Path, seeds: int, seconds: float) -> None:
    from pipelines.evaluate.report import summary

    policies = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["policies"]
    print(f"\n{summary(policies)} ({seconds / 60:.1f} minutes in all)")
    if seeds == 1:
        print("One run of each policy has no interval, so chance is not excluded: --seeds 3 gives one.")
    print(f"report: {evaluation / 'report.html'}")
