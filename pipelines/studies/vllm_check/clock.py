"""A clock that other work on the machine does not move: the processor time of a server."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from pipelines.evaluate.endpoint.measure import ServerRun
from pipelines.studies.processor_time import processor_seconds

INTERVAL = 0.1
"""Seconds between two readings."""


def family(pid: int) -> list[int]:
    """Return a process and all its descendants (Linux)."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _parent(process: Path) -> int:
    """Return the parent of a process, by its folder in /proc; 0 where it has ended."""
    try:
        return int((process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


class ServerClock:
    """Reads a server's processor time while a run is made."""

    def __init__(self, pid: int) -> None:
        """Wait for `with`; `pid` is the server's first process."""
        self._pids = family(pid)
        self.readings: list[tuple[float, float]] = []
        """Seconds by `perf_counter`, and processor seconds then."""
        self._put_forward = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "ServerClock":
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._take()

    def _read(self) -> None:
        while not self._is_over.wait(INTERVAL):
            self._take()

    def _take(self) -> None:
        self.readings.append((time.perf_counter(), processor_seconds(self._pids)))

    async def wait(self, due: float, is_idle: Callable[[], bool]) -> None:
        """Return when the server has computed for `due` seconds; where it has nothing to do, at once.

        Then the clock is put forward to `due`.
        """
        while (left := due - self._put_forward - self._spent()) > 0:
            if is_idle():
                self._put_forward += left
                return
            await asyncio.sleep(min(left, INTERVAL))

    def _spent(self) -> float:
        return processor_seconds(self._pids) - self.readings[0][1]

    def in_processor_time(self, run: ServerRun, start: float) -> ServerRun:
        """Return a run with its times in processor seconds of the server; it began at `start` by `perf_counter`."""
        seconds, processor = np.array(self.readings).T

        def at(when: float) -> float:
            return float(np.interp(start + when, seconds, processor) - processor[0])

        requests = [
            replace(
                sent,
                arrival_time=at(sent.arrival_time),
                first_token_time=at(sent.first_token_time),
                finish_time=at(sent.finish_time),
            )
            for sent in run.requests
        ]
        return replace(run, requests=requests)
