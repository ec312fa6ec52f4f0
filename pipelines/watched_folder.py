"""A predictor's folder that is read again, off the thread that predicts, when another export takes its place."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from predictor.errors import InputError

SECONDS_BETWEEN_LOOKS = 5.0
STATED_IN = ("manifest.json", "predictor/predictor.json", "predictor.json")
"""By export, run and predictor: the file that a new one always comes with."""

Read = TypeVar("Read")
Stamp = tuple[int, int, int]

logger = logging.getLogger(__name__)


class WatchedFolder(Generic[Read]):
    """Looks at a folder on a thread of its own, from when it is made until it is closed."""

    def __init__(self, folder: Path, read: Callable[[], Read], seconds: float = SECONDS_BETWEEN_LOOKS) -> None:
        """Take what is there now as known.

        Args:
            folder: Written by `amin export` or `amin train`.
            read: Returns what is made of the folder; its InputError is logged, and what is there stays in use.
            seconds: Between two looks.
        """
        self._folder, self._read, self._seconds = folder, read, seconds
        self._seen, self._new = self._stamp(), list[Read]()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="amin-watch", daemon=True)
        self._thread.start()

    def take(self) -> Read | None:
        """Return what was read since the last call, or None."""
        return self._new.pop() if self._new else None

    def stop(self) -> None:
        """Look no more; the thread ends by itself, so that a finalizer may call this on any thread."""
        self._closed.set()

    def close(self) -> None:
        """Look no more, and wait until the thread has ended."""
        self.stop()
        self._thread.join()

    def look(self) -> None:
        """Read the folder if it is another one than the last time."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._new[:] = [self._read()]
        except InputError as error:
            logger.error("the predictor stays as it is: %s", error)
        else:
            logger.warning("%s has been read again", self._folder)

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds):
            self.look()

    def _stamp(self) -> Stamp | None:
        """Return what tells one folder from another of its name; None where there is none."""
        for name in STATED_IN:
            try:
                there = (self._folder / name).stat()
            except OSError:
                continue
            return there.st_ino, there.st_mtime_ns, there.st_size
        return None
