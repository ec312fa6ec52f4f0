"""What the runs of one evaluation must share: the settings, and the contents of every file and folder they name."""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.served_model.gguf import BUNDLED
from pipelines.settings.evaluate import EvaluateSettings

FREE = {"policies", "seeds", "out", "resume", "force", "sweep", "servers"}
"""Settings that may change between calls: policies and seeds are added."""
HASHED_WHOLE = 1 << 26
"""Bytes; of a larger file its size and both ends are hashed."""


def shared_by_runs(settings: EvaluateSettings) -> dict[str, Any]:
    """Return the settings that all runs share as text, with a hash of what is in each file or folder that they name."""
    named = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in FREE}
    shared: dict[str, Any] = {name: str(value) for name, value in named.items()}
    for name in ("predictor", "probe", "prompts", "scheduling", "arrivals", "served_model"):
        value = named[name]
        if value is not None and value != BUNDLED and Path(value).exists():
            shared[f"contents of {name}"] = content_digest(Path(value))
    return shared


def content_digest(path: Path) -> str:
    """Return a hash of a file, or of all files in a folder with their names."""
    hashed = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        size = file.stat().st_size
        hashed.update(f"{file.relative_to(path)}:{size}:".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            if size <= HASHED_WHOLE:
                hashed.update(stream.read())
                continue
            hashed.update(stream.read(HASHED_WHOLE // 2))
            stream.seek(-HASHED_WHOLE // 2, 2)
            hashed.update(stream.read())
    return hashed.hexdigest()[:16]
