"""Runs `amin` in processes forked from one that has imported everything, so that a trial costs its work alone."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# The child never returns into the loop, and the parent computes nothing, so that no thread is lost by forking.
LOOP = """
import importlib, json, os, sys, traceback
from pipelines import cli
for command in cli.COMMANDS.values():
    importlib.import_module(command.module)
print("ready", flush=True)
for line in sys.stdin:
    argv, said = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor in (1, 2):
                os.dup2(file, descriptor)
            code = cli.main(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    """A process to fork from."""

    def __init__(self, said: Path) -> None:
        """Start it; what commands say goes to the file `said`."""
        self._said = said
        words = [sys.executable, "-c", LOOP]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT)
        assert self._line() == "ready"

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def run(self, argv: Sequence[object]) -> tuple[int, str]:
        """Return the exit code of a command, and what it said."""
        self._start(argv)
        return int(self._line()), self._said.read_text()

    def kill(self, argv: Sequence[object], seconds: float) -> bool:
        """Run a command, kill it after so many seconds; return whether it still ran."""
        child = self._start(argv)
        if not self._has_ended(seconds):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(child, signal.SIGKILL)
        return int(self._line()) == -signal.SIGKILL

    def seconds(self, argv: Sequence[object]) -> float:
        """Return how long a command takes that must succeed."""
        begin = time.monotonic()
        code, said = self.run(argv)
        assert code == 0, said
        return time.monotonic() - begin

    def _start(self, argv: Sequence[object]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([[str(word) for word in argv], str(self._said)]).encode() + b"\n")
        return int(self._line())

    def _has_ended(self, seconds: float) -> bool:
        ready: Any = select.select([self._process.stdout], [], [], seconds)
        return bool(ready[0])

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has imported everything."""
    started = Warm(tmp_path_factory.mktemp("said") / "said.txt")
    yield started
    started.close()
