"""Output that appears whole or not at all: written aside, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from predictor.errors import InputError


def check_output(path: Path, option: str, *, is_folder: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise InputError, before the work, where nothing can be written to `path`, or where it is one of the inputs.

    Args:
        path: What `option` gives.
        option: Its name, for the error.
        is_folder: Whether it is to be a folder or a file.
        inputs: Files that must stay.
    """
    if any(path.resolve() == each.resolve() for each in inputs):
        raise InputError(f"{option}: {path} is read, too; give another name")
    if path.exists() and path.is_dir() != is_folder:
        there, wanted = ("file", "folder") if is_folder else ("folder", "file")
        raise InputError(f"{option}: {path} is a {there}, where a {wanted} is to be written; give another name")
    closest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if closest != path.absolute() and not closest.is_dir():
        raise InputError(f"{option}: {closest} is a file, so that {path} cannot be made; give another name")
    try:
        tempfile.TemporaryFile(dir=closest if closest.is_dir() else closest.parent).close()
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written ({error.strerror}); give another name") from None


def require_free(out: Path, settings: Any) -> None:
    """Raise InputError where `out` holds something and the settings, which have `force`, do not say what to do with it.

    With `force` it is replaced; with `resume`, where the stage has that, it goes on with it.
    """
    if not hasattr(settings, "force") or settings.force or getattr(settings, "resume", False):
        return
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        go_on = "continue it with --resume, replace it with --force" if hasattr(settings, "resume") else "add --force"
        raise InputError(f"--out: {out} is there already; {go_on}, or give another name")


def _aside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` on success and is removed on error."""
    aside = _aside(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; it replaces `path` on success and is removed on error."""
    aside = _aside(path)
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            old = aside.with_suffix(".old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
