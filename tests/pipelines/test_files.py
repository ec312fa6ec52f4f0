"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pipelines import files
from pipelines.cli import main
from pipelines.files import atomic_directory, atomic_file, atomic_files, write_json
from pipelines.output import aside
from predictor.errors import InputError

HELD = """
import sys, time
from contextlib import AbstractContextManager
from pathlib import Path
from pipelines.files import atomic_directory, atomic_file
with {kind}(Path(sys.argv[1])) as new:
    if new.is_dir():
        new = new / "part"
    new.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def start(kind: str, target: Path) -> "subprocess.Popen[str]":
    """Return a process that is in the middle of writing."""
    code = HELD.format(kind=kind)
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def write_and_fail(written: AbstractContextManager[Path], error: Exception) -> None:
    """Write half of something and meet an error."""
    with written as new:
        (new / "half" if new.is_dir() else new).write_text("half")
        raise error


def end(process: "subprocess.Popen[str]") -> None:
    """Kill it as nothing can be caught."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sweeps as a new process does."""
    monkeypatch.setattr(aside, "_swept", set())


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_directory"])
def test_what_a_killed_process_leaves_is_swept_and_what_a_live_one_has_is_not(kind: str, tmp_path: Path) -> None:
    """The old result stands until then."""
    target = tmp_path / "result"
    with getattr(files, kind)(target) as new:
        (new if kind == "atomic_file" else new / "whole").write_text("old")
    live, killed = start(kind, target), start(kind, target)
    end(killed)
    assert len(list(tmp_path.glob(".amin-*"))) == 2
    aside._swept.clear()
    write_json(tmp_path / "other.json", 1)
    left = list(tmp_path.glob(".amin-*"))
    assert len(left) == 1
    end(live)
    assert (target if kind == "atomic_file" else target / "whole").read_text() == "old"


def test_a_folder_without_a_lock_is_swept_unless_a_live_process_may_be_about_to_lock_it(tmp_path: Path) -> None:
    """Who makes one shares the lock of the folder around it; where that cannot be had, age decides."""
    young, old = tmp_path / ".amin-young.tmp", tmp_path / ".amin-old.tmp"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    with aside._making(tmp_path):
        aside.sweep(tmp_path)
    assert young.exists()
    assert not old.exists()
    aside._swept.clear()
    write_json(tmp_path / "other.json", 1)
    assert not young.exists()


def test_a_foreign_lock_of_the_folder_holds_up_nobody(tmp_path: Path) -> None:
    """`flock . amin ...` waits for us while it holds the lock."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_json(tmp_path / "result.json", 1)
    finally:
        os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_replaces_another_whole(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without an exchange in one step, and an error in the middle leaves the old one."""
    if not exchanges:
        monkeypatch.setattr(aside, "_exchange", lambda first, second: False)
    target = tmp_path / "result"
    for text in ("old", "new"):
        with atomic_directory(target) as new:
            (new / text).write_text(text)
    assert [file.name for file in target.iterdir()] == ["new"]
    with pytest.raises(RuntimeError):
        write_and_fail(atomic_directory(target), RuntimeError())
    assert [file.name for file in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_the_old_folder_comes_back_where_the_new_one_does_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once where the second move fails, at the next sweep where the process dies before it."""
    monkeypatch.setattr(aside, "_exchange", lambda first, second: False)
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("old")
    rename, moved = Path.rename, []

    def fail_second(self: Path, to: Path) -> Path:
        moved.append(to)
        if len(moved) == 2:
            raise OSError(errno.EIO, "no luck", str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no luck"), atomic_directory(target) as new:
        (new / "new").write_text("new")
    monkeypatch.undo()
    assert [file.name for file in target.iterdir()] == ["old"]
    left = tmp_path / ".amin-killed.tmp"
    left.mkdir()
    (left / "lock").touch()
    (left / "restore.json").write_text(json.dumps("result"))
    target.rename(left / "old")
    aside._swept.clear()
    write_json(tmp_path / "other.json", 1)
    assert [file.name for file in target.iterdir()] == ["old"]
    assert not left.exists()


def test_a_set_of_files_is_new_or_without_the_one_that_states_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nobody reads old results next to new rows."""

    def write_both(text: str) -> None:
        with atomic_files(tmp_path, "results.json") as new:
            (new / "rows").write_text(text)
            (new / "results.json").write_text(text)

    for text in ("old", "new"):
        write_both(text)
        assert (tmp_path / "rows").read_text() == (tmp_path / "results.json").read_text() == text
    replace, moved = Path.replace, []

    def power_cut(self: Path, to: Path) -> Path:
        moved.append(to.name)
        if len(moved) == 2:
            raise OSError(errno.EIO, "power cut")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write_both("newer")
    assert moved == ["rows", "results.json"]
    assert not (tmp_path / "results.json").exists()


class SafetensorError(Exception):
    """As safetensors raises: no OSError, the code in the text."""


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/somewhere/else"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
)
def test_a_full_disk_is_named_by_the_output(raised: Exception, tmp_path: Path) -> None:
    """Whichever library meets it, and nothing half-written stays."""
    target = tmp_path / "result"
    with pytest.raises(OSError, match="result") as caught:
        write_and_fail(atomic_file(target), raised)
    assert caught.value.filename == str(target)
    assert not list(tmp_path.iterdir())


def test_a_long_name_is_as_good_as_a_short_one(tmp_path: Path) -> None:
    """255 bytes, the most there is: what is made next to it has a name of its own."""
    write_json(tmp_path / ("n" * 250 + ".json"), 1)
    assert len(list(tmp_path.iterdir())) == 1


def run_amin(*argv: object, shell: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `amin` in a process of its own, with redirections as a shell writes them."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "pipelines.cli", *argv))
    command = f"cd '{Path(__file__).parents[2]}' && {words} {shell}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, **options)


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """A workload of one request."""
    file = tmp_path / "w.jsonl"
    file.write_text('{"request_id": "a", "num_prompt_tokens": 3, "output_len": 4, "max_new_tokens": 8}\n')
    return file


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full", "| true"])
def test_results_are_there_whatever_becomes_of_what_is_printed(shell: str, workload: Path) -> None:
    """Closed, full, or read by nobody; no message ends up in a file of results."""
    out = workload.parent / "out"
    done = run_amin("simulate", workload, "--kv-budget", 100, "--policies", "fcfs", "--out", out, shell=shell)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((out / "results.json").read_text())["policies"]["fcfs"]
    assert not list(workload.parent.glob(".amin-*"))


def test_a_name_that_the_terminal_cannot_show_is_no_reason_to_fail(workload: Path) -> None:
    """One that is no text at all is refused before the work."""
    for name, code in (("结果", 0), (os.fsdecode(b"\xff\xfe"), 2)):
        out = workload.parent / name
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
        argv = ["simulate", workload, "--kv-budget", "100", "--policies", "fcfs", "--out", out]
        command = [sys.executable, "-m", "pipelines.cli", *map(os.fspath, argv)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, check=False, cwd=root, env=environment)
        assert done.returncode == code, done.stderr
        assert (out / "results.json").exists() == (code == 0)
        assert code == 0 or done.stderr.startswith(b"amin simulate: error: --out: 'utf-8' codec can't encode")


def test_two_processes_do_not_write_one_output(tmp_path: Path, workload: Path) -> None:
    """The second is told who has it; after a kill the output is free again."""
    code = (
        "import sys, time; from pathlib import Path; from pipelines.output.claim import claimed\n"
        "with claimed(Path(sys.argv[1]), is_folder=True): print('ready', flush=True); time.sleep(60)"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    argv = ["simulate", str(workload), "--kv-budget", "100", "--policies", "fcfs", "--out", str(out)]
    done = run_amin(*argv)
    assert done.returncode == 2
    assert f"is being written by process {process.pid} on" in done.stderr
    assert done.stderr.count("\n") == 1
    end(process)
    assert main(argv) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "w.jsonl"]


def test_what_is_no_file_or_folder_stays(
    tmp_path: Path, workload: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices, pipes, symbolic links, mount points, and names that are none: one line, before the work."""
    from pipelines.output.claim import check_output

    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "/dev/null": "is a device, which stays", str(tmp_path / "pipe"): "is a pipe", "/": "is no name",
        str(tmp_path / "link"): "is a symbolic link", str(tmp_path / "dangling"): "is a symbolic link",
        "/proc": "is a mount point", "": "must not be empty", ".": "is no name", "..": "is no name",
        "a/..": "is no name",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for out, says in cases.items():
        assert main(["simulate", str(workload), "--kv-budget", "100", "--out", out]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        for is_folder in (True, False):
            with pytest.raises(InputError):
                check_output(Path(out), "--out", is_folder=is_folder)


def test_parents_are_made_and_not_left_where_nothing_was_written(tmp_path: Path, workload: Path) -> None:
    """Only folders that the command itself made are removed."""
    out = tmp_path / "a" / "b" / "out"
    assert main(["simulate", str(workload), "--kv-budget", "2", "--policies", "fcfs", "--out", str(out)]) == 2
    assert not (tmp_path / "a").exists()
    assert main(["simulate", str(workload), "--kv-budget", "100", "--policies", "fcfs", "--out", str(out)]) == 0
    assert (out / "results.json").exists()
