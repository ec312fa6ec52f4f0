"""Folders to work in next to a target: locked while their process lives, then put in its place, or swept up later."""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, FOLDER, LOCK = ".amin-", ".tmp", ".lock"
LOCK_FILE, OLD, RESTORE = "lock", "old", "restore.json"
SECONDS_TO_LOCK = 600.0
"""Where it cannot be known whether someone is about to lock a folder: without a lock for so long it is left over."""
_SECONDS_TO_MAKE = 1.0
RENAME_EXCHANGE, AT_FDCWD = 2, -100  # linux/fs.h, fcntl.h
_swept: set[Path] = set()


@contextmanager
def aside(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent`, of this process alone; it is removed with all that is still in it.

    A process that is killed leaves it. Its lock ends with the process, so the next one that works in `parent` can tell
    and removes it. Names are random: process ids repeat in containers.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    with _making(parent):
        folder = Path(tempfile.mkdtemp(FOLDER, PREFIX, parent))
        lock = take_lock(folder / LOCK_FILE)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


@contextmanager
def _making(parent: Path) -> Iterator[None]:
    """Share the lock of `parent` itself while a folder in it has no lock yet: who is killed then is no longer among us.

    Without it where `parent` has no locks, or someone else, who may be waiting for us, holds it.
    """
    descriptor, until = None, time.monotonic() + _SECONDS_TO_MAKE
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            descriptor = _locked(parent, fcntl.LOCK_SH)
            break
        time.sleep(0.01)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_nobody_making(parent: Path) -> bool:
    with suppress(BlockingIOError):
        if (descriptor := _locked(parent, fcntl.LOCK_EX)) is not None:
            os.close(descriptor)
            return True
    return False


def _locked(folder: Path, kind: int) -> int | None:
    """Return a descriptor that holds the lock of a folder until it is closed; None where it has none to give.

    Raises:
        BlockingIOError: another process has it.
    """
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def take_lock(file: Path) -> int | None:
    """Return a descriptor that holds the lock of `file` until it is closed; None where the file system has no locks.

    Raises:
        BlockingIOError: another process has it.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return descriptor


def sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent`, once a process; what a live one has stays."""
    if parent.resolve() in _swept:
        return
    _swept.add(parent.resolve())
    for left in parent.glob(f"{PREFIX}*"):
        # Another user's, or one that another sweep has just removed.
        with suppress(PermissionError, FileNotFoundError):
            if left.name.endswith(FOLDER) and left.is_dir():
                _sweep_folder(left)
            elif left.name.endswith(LOCK):
                _sweep_lock(left)


def _sweep_folder(folder: Path) -> None:
    if not (folder / LOCK_FILE).exists():
        # In this order: who makes it now has locked it by the time that nobody is making one.
        if time.time() - folder.stat().st_mtime > SECONDS_TO_LOCK or (
            _is_nobody_making(folder.parent) and not (folder / LOCK_FILE).exists()
        ):
            _remove(folder)
        return
    with suppress(BlockingIOError):
        lock = take_lock(folder / LOCK_FILE)
        if lock is not None:
            _remove(folder)
            os.close(lock)


def _sweep_lock(file: Path) -> None:
    with suppress(BlockingIOError):
        lock = take_lock(file)
        if lock is not None:
            file.unlink()
            os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder that `aside` made; a target that was moved into it and has no successor goes back first."""
    old, note = folder / OLD, folder / RESTORE
    if old.exists() and note.is_file():
        target = folder.parent / str(json.loads(note.read_text(encoding="utf-8")))
        if not os.path.lexists(target):
            old.rename(target)
    shutil.rmtree(folder, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Move `new`, which is in a folder of `aside` next to `target`, to `target`, whole on the disk and in one step.

    What was at `target` ends in that folder. Where a folder cannot be exchanged in one step, the old one is moved
    first, and goes back if the new one does not follow, at the latest at the next sweep.
    """
    sync(new)
    if not (new.is_dir() and target.exists()):
        new.replace(target)
    elif not _exchange(new, target):
        (new.parent / RESTORE).write_text(json.dumps(target.name), encoding="utf-8")
        target.rename(new.parent / OLD)
        try:
            new.rename(target)
        except BaseException:
            (new.parent / OLD).rename(target)
            raise
    sync_entry(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step, or return False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all in it, is on the disk."""
    for folder, _, files in os.walk(path):
        for name in files:
            sync_entry(Path(folder) / name)
        sync_entry(Path(folder))
    if not path.is_dir():
        sync_entry(path)


def sync_entry(path: Path) -> None:
    """Wait until one file, or the names in one folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
