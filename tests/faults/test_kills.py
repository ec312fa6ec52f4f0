"""What survives when a stage is killed at a random moment, or meets a full disk: `make test-faults`."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from predictor.export_folder import read_export

ROOT = Path(__file__).parents[2]
NUM_TRIALS = int(os.environ.get("AMIN_FAULT_TRIALS", "2"))
"""Kills of each stage."""
Stage = tuple[list[object], Callable[[Path], bool]]


def amin(argv: Sequence[object], shell: str = ":") -> "subprocess.CompletedProcess[str]":
    """Return the finished command; `shell` is what a shell does before it, such as `ulimit -f 1`."""
    words = [sys.executable, "-m", "pipelines.cli", *map(str, argv)]
    command = ["bash", "-c", f'{shell} && exec "$@"', "bash", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def kill(argv: Sequence[object], folder: Path, longest: float, rng: random.Random) -> bool:
    """Run a command, kill it within `longest` seconds of its first trace in `folder`; return whether it still ran.

    The seconds that imports take say nothing about outputs.
    """
    words, before = [sys.executable, "-m", "pipelines.cli", *map(str, argv)], set(folder.iterdir())
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and set(folder.iterdir()) == before:
        wait(process, 0.002)
    wait(process, longest * rng.random() ** 2)
    still_ran = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return still_ran


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait so long, or until the process ends."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def leftovers(folder: Path) -> list[Path]:
    """Return what killed commands have left in a folder, or in one below it."""
    return list(folder.rglob(".amin-*"))


def simulated(out: Path) -> bool:
    """Return whether results are there, whole and of one run."""
    if not (out / "results.json").exists():
        return False
    results = json.loads((out / "results.json").read_text())
    assert pq.read_table(out / "requests.parquet").num_rows == results["workload"]["num_requests"] * 2 * 5
    return True


def exported(out: Path) -> bool:
    """Return whether an export is there; then it is whole, by its own hashes."""
    return out.exists() and bool(read_export(out))


def predicted(out: Path) -> bool:
    """Return whether the bounds are there, one for each of the rows."""
    return out.exists() and len([json.loads(line) for line in out.read_text().splitlines()]) == 160


@pytest.fixture
def stages(run_folder: Path, exports: dict[str, Path], records_file: Path) -> dict[str, Stage]:
    """Each stage that writes: its words before `--out`, and whether that is there, whole."""
    simulate = [
        "simulate",
        "lmsys-shaped:300",
        "--kv-budget",
        4000,
        "--policies",
        "fcfs,sjf",
        "--predictions",
        "noise:0.4",
    ]
    predict = ["predict", exports["fp32"], "--data", records_file, "--no-progress"]
    return {
        "simulate": (simulate, simulated),
        "export": (["export", run_folder, "--no-progress"], exported),
        "predict": (predict, predicted),
    }


@pytest.mark.parametrize("name", ["simulate", "export", "predict"])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "replacing"])
@pytest.mark.faults
def test_a_killed_stage_leaves_its_output_whole_or_as_it_was(
    name: str, is_there: bool, stages: dict[str, Stage], tmp_path: Path
) -> None:
    """The next call does its work and removes what the killed ones left."""
    words, is_whole = stages[name]
    out, rng = tmp_path / "out", random.Random(name)
    argv = [*words, "--out", out]
    again = ["--force"] if is_there else []
    if is_there:
        assert amin(argv).returncode == 0
    num_killed = 0
    for _ in range(NUM_TRIALS):
        num_killed += kill([*argv, *again], tmp_path, 2.0, rng)
        assert is_whole(out) or not is_there
        if not is_there and is_whole(out):
            again = ["--force"]
    done = amin([*argv, *again])
    assert done.returncode == 0, done.stderr
    assert is_whole(out)
    assert not leftovers(tmp_path)
    print(f"{name}: killed {num_killed} of {NUM_TRIALS} times before its end")


@pytest.mark.faults
def test_a_training_killed_again_and_again_ends_in_the_same_weights(
    run_folder: Path, tiny_encoder: Path, records_file: Path, tmp_path: Path
) -> None:
    """To the last bit, whatever the moments."""
    settings = "--epochs 2 --batch-size 16 --max-prompt-tokens 16 --max-length 256 --num-bins 16 --head-lr 0.01"
    argv = ["train", "--data", records_file, "--out", tmp_path / "run", "--encoder", tiny_encoder, *settings.split()]
    argv += ["--no-progress", "--accelerator", "cpu", "--no-baselines", "--resume"]
    rng, num_killed = random.Random(0), 0
    while num_killed < NUM_TRIALS and kill(argv, tmp_path, 15.0, rng):
        num_killed += 1
    done = amin(argv)
    assert done.returncode == 0, done.stderr
    weights = [folder / "predictor" / "model.safetensors" for folder in (run_folder, tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not leftovers(tmp_path)
    print(f"train: killed {num_killed} times")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB of its own, where the user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("nobody but root mounts a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["simulate", "export", "predict"])
@pytest.mark.faults
def test_a_full_disk_is_one_line_that_names_it(name: str, stages: dict[str, Stage], small_disk: Path) -> None:
    """And nothing half-written, old or new, stays on it."""
    words, _ = stages[name]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(126 * 1024))
    done = amin([*words, "--out", small_disk / "out"])
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert f"{small_disk / 'out'}" in line
    assert "No space left on device" in line
    assert f"the disk at {small_disk}" in line
    assert "Traceback" not in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    """The same without a disk of its own: a limit on the size of files."""
    argv = ["simulate", "lmsys-shaped:300", "--kv-budget", 4000, "--policies", "fcfs", "--out", tmp_path / "out"]
    done = amin(argv, "ulimit -f 2")
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not leftovers(tmp_path)
