"""What a server has learnt, in a file: read at its start, written as it goes, whole or not at all."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from predictor.errors import InputError
from predictor.sidecar.feedback import FeedbackLedger
from predictor.spec import PredictorSpec

_log = logging.getLogger(__name__)
_FORMAT = 1
SECONDS_BETWEEN = 30.0


def fingerprint(spec: PredictorSpec) -> str:
    """Return a digest of what a predictor states: scores of answers are of its predictions and of no other's."""
    return hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode()).hexdigest()


def read_state(file: Path, spec: PredictorSpec, restore: Callable[[dict[str, Any]], None]) -> None:
    """Give `restore` what a file holds, by served model, if there is one and it is of this predictor.

    Raises:
        InputError: the file is not one that `write_state` wrote.
    """
    if not file.exists():
        return
    if file.is_dir():
        raise InputError(f"{file}: is a folder; name a file")
    try:
        value = json.loads(file.read_bytes())
        if value["format"] != _FORMAT:
            raise ValueError(f"format: {value['format']!r} is not {_FORMAT}")
        if value["predictor"] != fingerprint(spec):
            _log.warning("%s: learnt with another predictor; starting afresh", file)
            return
        restore(value["models"])
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file}: not a state that amin wrote ({error}); remove it to start afresh") from None


def write_state(file: Path, spec: PredictorSpec, learnt: dict[str, Any]) -> None:
    """Write what a ledger's `state` returned: next to the file, then in its place. OSError where that fails."""
    text = json.dumps({"format": _FORMAT, "predictor": fingerprint(spec), "models": learnt})
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as aside:
            aside.write(text)
            aside.flush()
            os.fsync(aside.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.asynccontextmanager
async def kept(file: Path | None, current: Callable[[], tuple[PredictorSpec, FeedbackLedger]]) -> AsyncIterator[None]:
    """Write what is learnt to `file` every half minute meanwhile, and at the end; a failure is logged."""
    if file is None:
        yield
        return
    task = asyncio.create_task(_keep(file, current))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        spec, ledger = current()
        _try_to_write(file, spec, ledger.state())


async def _keep(file: Path, current: Callable[[], tuple[PredictorSpec, FeedbackLedger]]) -> None:
    while True:
        await asyncio.sleep(SECONDS_BETWEEN)
        spec, ledger = current()
        await asyncio.to_thread(_try_to_write, file, spec, ledger.state())


def _try_to_write(file: Path, spec: PredictorSpec, learnt: dict[str, Any]) -> None:
    try:
        write_state(file, spec, learnt)
    except OSError as error:
        _log.error("%s: what was learnt cannot be written: %s", file, error)
