"""A JSON file with one object: read, or refused in one line."""

import json
from pathlib import Path
from typing import Any

from predictor.errors import InputError


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file; `remedy` is what to do where there is none.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {remedy}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{file}: not JSON ({' '.join(str(error).split())[:200]}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: holds a JSON {type(value).__name__}, not an object; {remedy}")
    return value
