"""One rule for `--out`: what may be written there, by which process, and what happens to what is there already."""

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.files import naming_disk
from pipelines.output.aside import LOCK, PREFIX, sweep, take_lock
from predictor.errors import InputError

MOUNTS = Path("/proc/self/mountinfo")
KINDS = {
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}  # fmt: skip


def is_launched() -> bool:
    """Return whether Lightning launched this process to share in the training of another, which writes all files."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


@contextmanager
def claimed(
    out: Path,
    *,
    is_folder: bool,
    inputs: Sequence[Path] = (),
    force: bool = False,
    resume: bool | None = None,
    option: str = "--out",
) -> Iterator[None]:
    """Have `out` for this process alone while a stage runs that writes it.

    Args:
        out: What is to be written.
        is_folder: Whether it is to be a folder or a file.
        inputs: Files that must stay.
        force: What is there may be replaced.
        resume: What is there may be gone on with; None where the stage cannot.
        option: What gives `out`, for the error.

    Raises:
        InputError: before any work, where nothing can be written there, where it is one of the inputs, where something
            is there and neither `force` nor `resume` says what to do with it, or where another process has it.
    """
    check_output(out, option, is_folder=is_folder, inputs=inputs)
    if not force and not resume and _holds_something(out):
        ways = "replace it with --force" if resume is None else "go on with --resume, replace it with --force"
        raise InputError(f"{option}: {out} is there already; {ways}, or give another name")
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out, option):
            sweep(out.parent)
            if out.is_dir():
                sweep(out)
            yield
    finally:
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def check_output(path: Path, option: str, *, is_folder: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise InputError, before the work, where nothing can be written to `path`, or where it is one of the inputs.

    Args:
        path: What `option` gives.
        option: Its name, for the error.
        is_folder: Whether it is to be a folder or a file.
        inputs: Files that must stay.
    """
    if path.name in ("", ".."):
        raise InputError(f"{option}: {str(path)!r} is no name for what is written; give one")
    if any(path.resolve() == each.resolve() for each in inputs):
        raise InputError(f"{option}: {path} is an input; give another name")
    _check_kind(path, option)
    if path.exists() and path.is_dir() != is_folder:
        there, wanted = ("file", "folder") if is_folder else ("folder", "file")
        raise InputError(f"{option}: {path} is a {there}, where a {wanted} is to be written; give another name")
    closest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if closest != path.absolute() and not closest.is_dir():
        raise InputError(f"{option}: {closest} is a file, so that {path} cannot be made; give another name")
    for folder in {closest if closest.is_dir() else closest.parent, path.absolute().parent}:
        _check_writable(folder, path, option)


def _check_kind(path: Path, option: str) -> None:
    """Refuse what a new file must not take the place of."""
    if not os.path.lexists(path):
        return
    if (kind := KINDS.get(stat.S_IFMT(path.lstat().st_mode))) is not None:
        advice = f"give {path.resolve()} if you mean that" if kind == "a symbolic link" else "give another name"
        raise InputError(f"{option}: {path} is {kind}, which stays; {advice}")
    if path.is_mount() or str(path.resolve()) in _mount_points():
        raise InputError(
            f"{option}: {path} is a mount point, which cannot be replaced; give a name in it or next to it"
        )


def _mount_points() -> set[str]:
    """Return where file systems and single files are mounted; empty where the system does not say."""
    if sys.platform != "linux" or not MOUNTS.exists():
        return set()
    lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {line.split()[4].encode().decode("unicode_escape") for line in lines}


def _check_writable(folder: Path, path: Path, option: str) -> None:
    if not folder.exists():
        return
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written ({error.strerror}); give another name") from None


def _holds_something(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


@contextmanager
def _locked(out: Path, option: str) -> Iterator[None]:
    # The name of the file does not grow with that of `out`, which may be as long as names can be.
    digest = hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16]
    file = out.parent / f"{PREFIX}{digest}{LOCK}"
    while True:
        try:
            descriptor = take_lock(file)
        except BlockingIOError:
            holder = file.read_text(encoding="utf-8").strip()
            raise InputError(
                f"{option}: {out} is being written by {holder}; wait for it, or give another name"
            ) from None
        # Its last holder, or a sweep, may have removed the file between our opening and our locking it.
        if descriptor is None or (file.exists() and os.path.samestat(os.fstat(descriptor), file.stat())):
            break
        os.close(descriptor)
    try:
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            with naming_disk(out):
                os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
