"""A JSON file: read, or refused in one line."""

import json
from pathlib import Path
from typing import Any

from scheduler.errors import InputError


def read_json(path: Path, hint: str = "") -> Any:
    """Return the value in a JSON file; `hint` is what to do where the file cannot be read.

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"{path}: {error.strerror}"
        raise InputError(f"{reason}; {hint}" if hint else reason) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
