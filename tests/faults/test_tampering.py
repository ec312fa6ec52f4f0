"""Folders with a byte flipped or an end cut off: read, or refused in one line, never a traceback."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import main

NUM_TRIALS = int(os.environ.get("AMIN_FAULT_TRIALS", "2"))


def damage(file: Path, rng: random.Random) -> None:
    """Flip bits of one to eight bytes, or cut the end off."""
    content = bytearray(file.read_bytes())
    if rng.random() < 0.3 or not content:
        content = content[: rng.randrange(len(content) + 1)]
    else:
        for _ in range(rng.randrange(1, 9)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def is_refused_or_done(argv: list[object], capsys: pytest.CaptureFixture[str]) -> bool:
    """Return whether the command was refused; what is neither done nor one line fails the test."""
    code = main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert code in (0, 2), error
    assert code == 0 or error.count("\n") == 1, error
    return code == 2


@pytest.mark.parametrize("kind", ["export", "run"])
@pytest.mark.faults
def test_a_damaged_predictor_is_refused_in_one_line(
    kind: str,
    run_folder: Path,
    exports: dict[str, Path],
    records_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each file of it in turn; an export knows the hash of each, so it never answers with a damaged one."""
    source = exports["int8"] if kind == "export" else run_folder / "predictor"
    files, rng, num_refused = sorted(source.iterdir()), random.Random(kind), 0
    for trial in range(NUM_TRIALS * len(files)):
        folder = tmp_path / str(trial)
        shutil.copytree(source, folder)
        damaged = folder / files[trial % len(files)].name
        damage(damaged, rng)
        argv = ["predict", folder, "--data", records_file, "--split", "test", "--no-progress", "--force"]
        is_refused = is_refused_or_done([*argv, "--out", tmp_path / "p.jsonl"], capsys)
        changed = damaged.read_bytes() != files[trial % len(files)].read_bytes()
        if kind == "export" and damaged.name in ("model.onnx", "tokenizer.json"):
            assert is_refused == changed, damaged
        num_refused += is_refused
        shutil.rmtree(folder)
    assert num_refused


@pytest.mark.faults
def test_a_damaged_run_is_resumed_or_refused_in_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings, account of the data, and checkpoints; a checkpoint never runs code."""
    rng = random.Random("resume")
    names = ["config.yaml", "data.json", "checkpoints/last.ckpt"]
    for trial in range(NUM_TRIALS * len(names)):
        folder = tmp_path / str(trial)
        shutil.copytree(run_folder, folder)
        (folder / "metrics.json").unlink()
        damage(folder / names[trial % len(names)], rng)
        is_refused_or_done(["train", "--out", folder, "--resume", "--no-baselines", "--no-progress"], capsys)
        shutil.rmtree(folder)


@pytest.mark.parametrize("read", ["config", "scheduling"])
def test_a_damaged_settings_file_is_refused_in_one_line(
    read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given by --config or --scheduling."""
    rng = random.Random(read)
    whole: dict[str, tuple[str, Callable[[Path], list[object]]]] = {
        "config": ("kv_budget: 4000\npolicies: fcfs,sjf\nseeds: 2\n", lambda file: ["--config", file]),
        "scheduling": ('{"policies": {"amin": {"tau": 0.1}}}\n', lambda file: ["--scheduling", file]),
    }
    text, words = whole[read]
    for trial in range(NUM_TRIALS * 5):
        file = tmp_path / f"{trial}.yaml"
        file.write_text(text)
        damage(file, rng)
        base = ["simulate", "lmsys-shaped:5", "--kv-budget", 4000, "--policies", "fcfs,amin", "--seeds", 2]
        is_refused_or_done([*base, *words(file), "--out", tmp_path / f"out{trial}"], capsys)
