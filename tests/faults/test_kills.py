"""What survives when a stage is killed at a random moment, or meets a full disk: `make test-faults`."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from predictor.export_folder import read_export

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "checkpoints/length-predictor-small"
NUM_TRIALS = int(os.environ.get("AMIN_FAULT_TRIALS", "2"))
"""Kills of each stage."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A command that writes.

    Attributes:
        words: What is typed, apart from where it writes.
        is_whole: Whether that is there; then it is whole.
        goes_on: What makes the next call go on with what a killed one left.
        place: Makes the folder to work in, and returns the words that name where it writes, and that place.
    """

    words: list[object]
    is_whole: Callable[[Path], bool]
    goes_on: Sequence[str] = ()
    place: Callable[[Path], tuple[list[object], Path]] = lambda folder: (["--out", folder / "out"], folder / "out")


def amin(argv: Sequence[object], shell: str = ":") -> "subprocess.CompletedProcess[str]":
    """Return the finished command; `shell` is what a shell does before it, such as `ulimit -f 1`."""
    words = [sys.executable, "-m", "pipelines.cli", *map(str, argv)]
    command = ["bash", "-c", f'{shell} && exec "$@"', "bash", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def leftovers(folder: Path) -> list[Path]:
    """Return what killed commands have left in a folder, or in one below it."""
    return list(folder.rglob(".amin-*")) + list(folder.rglob("*.partial.json"))


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


def collected(out: Path) -> bool:
    """Return whether the records are there, with all draws of each prompt."""
    return out.exists() and [len(lens) for lens in pq.read_table(out)["output_lens"].to_pylist()] == [4] * 20


def evaluated(out: Path) -> bool:
    """Return whether results are there, of as many runs as they say."""
    if not (out / "results.json").exists():
        return False
    results = json.loads((out / "results.json").read_text())
    num_runs = sum(len(policy["seeds"]) for policy in results["policies"].values())
    assert results["partial"] == (num_runs < 4)
    assert pq.read_table(out / "requests.parquet").num_rows == num_runs * 10
    return (out / "report.html").exists()


def mapped(out: Path) -> bool:
    """Return whether the map and its picture are there."""
    if not (out / "map.json").exists():
        return False
    assert len(json.loads((out / "map.json").read_text())["cells"]) == 2
    return (out / "map.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def tuned(file: Path) -> bool:
    """Return whether the levels are there."""
    return file.exists() and set(json.loads(file.read_text())["policies"]) == {"amin", "amin-survival"}


def tuned_folder(folder: Path) -> tuple[list[object], Path]:
    """Copy the bundled export into a folder: levels are written next to it."""
    shutil.copytree(BUNDLED, folder / "serving")
    return [folder / "serving"], folder / "serving/scheduling.json"


@pytest.fixture
def stage(
    name: str, request: pytest.FixtureRequest, records_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    """The stage of that name; what is trained or made for it, only for those that need it."""
    base = ["--kv-budget", 4000, "--no-progress"]
    if name == "simulate":
        words = ["simulate", "lmsys-shaped:300", *base, "--policies", "fcfs,sjf", "--predictions", "noise:0.4"]
        return Stage(words, simulated)
    if name == "map":
        few = ["--loads", 0.9, "--noise", "0,0.4", "--seeds", 2, "--policy", "sjf"]
        return Stage(["map", "lmsys-shaped:200", *base, *few], mapped)
    if name == "tune":
        return Stage(["tune", "--data", records_file, *base, "--requests", 50, "--seeds", 2], tuned, (), tuned_folder)
    if name == "predict":
        return Stage(["predict", BUNDLED, "--data", records_file, "--no-progress"], predicted)
    if name == "export":
        return Stage(["export", request.getfixturevalue("run_folder"), "--no-progress"], exported)
    model = request.getfixturevalue("chat_model")
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"river {'night ' * (i % 5)}{i}"}) + "\n" for i in range(20)))
    served = ["--served-model", model, "--prompts", prompts, "--device", "cpu"]
    if name == "collect":
        return Stage(["collect", *served, "--draws", 4, "--max-new-tokens", 32], collected)
    few = ["--limit", 10, "--max-new-tokens", 24, "--seeds", 2, "--kv-blocks", 100, "--block-size", 4]
    words = ["evaluate", "--predictor", BUNDLED, *served, *few, "--decoding", "greedy", "--policies", "fcfs,amin"]
    return Stage(words, evaluated, ["--resume"])


STAGES = ("simulate", "export", "predict", "collect", "evaluate", "map", "tune")


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "replacing"])
@pytest.mark.faults
def test_a_killed_stage_leaves_its_output_whole_or_as_it_was(
    name: str, is_there: bool, stage: Stage, warm: Any, tmp_path: Path
) -> None:
    """The next call does its work and removes what the killed ones left."""
    rng = random.Random(name)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    where, _ = stage.place(tmp_path / "whole")
    seconds = warm.seconds([*stage.words, *where])
    where, out = stage.place(tmp_path / "killed")
    argv, num_killed = [*stage.words, *where], 0
    if is_there:
        warm.seconds(argv)
    again = ["--force"] if is_there else list(stage.goes_on)
    for _ in range(NUM_TRIALS):
        begin = time.monotonic()
        if warm.kill([*argv, *again], seconds * rng.random()):
            num_killed += 1
        else:  # it had less to do than the first time, or the machine has
            seconds = min(seconds, time.monotonic() - begin)
        assert stage.is_whole(out) or not is_there
        if not is_there and stage.is_whole(out) and not stage.goes_on:
            again = ["--force"]
    code, said = warm.run([*argv, *again])
    assert code == 0, said
    assert stage.is_whole(out)
    assert not leftovers(tmp_path)
    print(f"{name}: killed {num_killed} of {NUM_TRIALS} times before its end, which takes {seconds:.1f} s")


@pytest.mark.faults
def test_a_training_killed_again_and_again_ends_in_the_same_weights(
    run_folder: Path, tiny_encoder: Path, records_file: Path, warm: Any, tmp_path: Path
) -> None:
    """To the last bit, whatever the moments."""
    settings = "--epochs 2 --batch-size 16 --max-prompt-tokens 16 --max-length 256 --num-bins 16 --head-lr 0.01"
    argv = ["train", "--data", records_file, "--encoder", tiny_encoder, *settings.split()]
    argv += ["--no-progress", "--accelerator", "cpu", "--no-baselines"]
    seconds = warm.seconds([*argv, "--out", tmp_path / "whole"])
    argv += ["--out", tmp_path / "run", "--resume"]
    rng, num_killed = random.Random(0), 0
    for _ in range(NUM_TRIALS):  # each call goes on where the last was killed, so that the later ones may end
        num_killed += warm.kill(argv, 0.5 * seconds * rng.random())
    assert num_killed
    code, said = warm.run(argv)
    assert code == 0, said
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
def test_a_full_disk_is_one_line_that_names_it(stage: Stage, small_disk: Path) -> None:
    """And nothing half-written, old or new, stays on it."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(126 * 1024))
    done = amin([*stage.words, "--out", small_disk / "out"])
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
