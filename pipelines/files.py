"""Output that appears whole or not at all: written aside, then put in its place in one step."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.output.aside import aside, put_in_place, sync, sync_entry

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path of the same name to write to; it becomes `path` on success and is removed on error."""
    with aside(path.parent) as folder, naming_disk(path):
        new = folder / path.name
        yield new
        put_in_place(new, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder of the same name; it replaces `path` on success and is removed on error."""
    with aside(path.parent) as folder, naming_disk(path):
        new = folder / path.name
        new.mkdir()
        yield new
        put_in_place(new, path)


@contextmanager
def atomic_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder whose files go into `folder` together on success; `last` names the one that states them.

    A folder that is not there yet appears whole. In one that is there, that file is taken away first and comes last:
    where a process dies in between it is missing, and nobody takes the old ones and the new ones for a set.
    """
    if not folder.exists():
        with atomic_directory(folder) as whole:
            yield whole
        return
    with aside(folder) as new, naming_disk(folder):
        inside = new / "files"
        inside.mkdir()
        yield inside
        sync(inside)
        (folder / last).unlink(missing_ok=True)
        for file in sorted(inside.iterdir(), key=lambda each: each.name == last):
            file.replace(folder / file.name)
        sync_entry(folder)


@contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """Raise OSError that names `path` where what is written to it finds the disk full, whichever library says so how.

    Arrow and Python raise OSError without the name, safetensors and torch errors of their own.
    """
    try:
        yield
    except Exception as error:
        if (code := _full(error)) is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _full(error: BaseException | None) -> int | None:
    while error is not None:
        for code in FULL:
            said = re.search(rf"os error {code}\b|{re.escape(os.strerror(code))}", str(error))
            if said or (isinstance(error, OSError) and error.errno == code):
                return code
        error = error.__cause__ or error.__context__
    return None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with atomic_file(path) as new:
        new.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def content_sha256(path: Path, without: Set[str] = frozenset()) -> str:
    """Return the SHA-256, in hexadecimal, of a file, or of the names and the contents of all files in a folder.

    Args:
        path: The file or the folder.
        without: Names of files that do not count.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    hashed = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file() and each.name not in without):
        hashed.update(os.fsencode(file.relative_to(path)) + b"\0" + bytes.fromhex(content_sha256(file)))
    return hashed.hexdigest()


def discard(path: Path) -> None:
    """Remove a file or a folder under its name in one step, so that a kill leaves it whole or gone."""
    with aside(path.parent) as folder:
        path.rename(folder / "discarded")
