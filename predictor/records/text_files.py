"""Text files, compressed or not, opened and looked at."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from predictor.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
PIECE = 1 << 20
"""Characters read at a time."""
WHITE_SPACE = " \t\r\n\ufeff"


def kind_of(file: Path) -> str:
    """Return the suffix that says what a file holds, in lower case, that of a compression set aside."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def opened_text(file: Path) -> Iterator[TextIO]:
    """Open a text for reading, its compression undone; what cannot be read is one line."""
    compression = COMPRESSIONS.get(file.suffix.lower())
    try:
        if compression is None:
            stream: Any = file.open("rb")
        else:
            import pyarrow as pa

            stream = pa.input_stream(str(file), compression=compression)
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n") as text:
            yield text
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8, or give a .parquet file by that name") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise InputError(f"{file}: not readable ({str(error).splitlines()[0]}); make it again") from None


def first_character(file: Path) -> str:
    """Return the first character of a text that is no white space, "" where there is none."""
    with opened_text(file) as text:
        while piece := text.read(4096):
            if stripped := piece.lstrip(WHITE_SPACE):
                return stripped[0]
    return ""


def first_line_is_whole(file: Path) -> bool:
    """Return whether the first line of a text is JSON by itself, so that its rows are lines."""
    with opened_text(file) as text:
        line = next((line for line in text if line.strip()), "")
    try:
        json.loads(line)
    except (RecursionError, ValueError):
        return False
    return True
