"""Rows of parquet, JSONL and JSON array files, one at a time: memory stays at a batch, however long the file."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from predictor.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH_SIZE = 512
MAX_ITEM_CHARACTERS = 64 << 20
_PIECE = 1 << 20
_WHITE_SPACE = " \t\r\n\ufeff"

Item = tuple[int, dict[str, Any]]


def iter_file(file: Path, columns: Sequence[str] | None = None) -> Iterator[Item]:
    """Yield (number, fields) of each row, numbers from 1; in JSONL the number is the line, in an array the place.

    Args:
        file: .parquet, .json (an array of objects), or else JSONL.
        columns: of a parquet file, those that are read; dotted paths reach into nested ones. Default: all.

    Raises:
        InputError: missing, unreadable or cut short; one line that names the file and, where there is one, the row.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a .parquet or .jsonl file")
    if file.suffix == ".parquet":
        return _parquet_items(file, columns)
    return _array_items(file) if file.suffix == ".json" else _line_items(file)


def batches(items: Iterator[Any], size: int = BATCH_SIZE) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    while batch := list(islice(items, size)):
        yield batch


def count_rows(file: Path) -> int | None:
    """Return the number of rows of a parquet file, of lines of a JSONL file; None for an array, read as it comes."""
    if file.suffix == ".parquet":
        return int(open_parquet(file).metadata.num_rows)
    if file.suffix == ".json":
        return None
    with file.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(_PIECE), b""))


def open_parquet(file: Path) -> Any:
    """Return a pyarrow ParquetFile that reads page by page, not a row group at once; InputError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, buffer_size=_PIECE, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None


def _parquet_items(file: Path, columns: Sequence[str] | None) -> Iterator[Item]:
    import pyarrow as pa

    number = 0
    with open_parquet(file) as opened:
        try:
            for batch in opened.iter_batches(BATCH_SIZE, columns=columns, use_threads=False):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{file}: not a readable parquet file ({reason}); make it again")


def _line_items(file: Path) -> Iterator[Item]:
    number = 0
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        while True:
            number += 1
            try:
                line = lines.readline()
            except UnicodeDecodeError:
                raise InputError(
                    f"{file}: row {number}: not UTF-8 text; give a .parquet file (by that name) or JSONL"
                ) from None
            if not line:
                return
            if line.strip():
                yield number, _json_object(file, number, line)


def _json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise InputError(f"{file}: row {number}: not JSON ({error}); one object a line") from None
    return _checked_object(file, number, value)


def _checked_object(file: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file}: row {number}: must be a JSON object, not {type(value).__name__}")
    return value


def _array_items(file: Path) -> Iterator[Item]:
    with file.open(encoding="utf-8") as stream:
        try:
            for number, value in enumerate(_array_values(file, iter(lambda: stream.read(_PIECE), "")), start=1):
                yield number, _checked_object(file, number, value)
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8 text; save the array as UTF-8 JSON") from None


def _array_values(file: Path, pieces: Iterator[str]) -> Iterator[Any]:
    """Yield the values of a JSON array from `pieces` of its text; the buffer holds little more than one value."""
    decoder, number = json.JSONDecoder(), 0
    buffer = next(pieces, "").lstrip(_WHITE_SPACE)
    if not buffer.startswith("["):
        raise InputError(f"{file}: must be a JSON array of objects; name a file with one object a line .jsonl")
    position, is_whole = 1, False
    while True:
        while position < len(buffer) and buffer[position] in _WHITE_SPACE + ",":
            position += 1
        if buffer.startswith("]", position):
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
            is_whole = end < len(buffer)  # a number at the very end may go on in the next piece
        except (json.JSONDecodeError, RecursionError):
            is_whole = False
        if is_whole:
            number, position = number + 1, end
            yield value
            continue
        if len(buffer) - position > MAX_ITEM_CHARACTERS or not (piece := next(pieces, "")):
            raise InputError(
                f"{file}: row {number + 1}: not JSON, cut short, or over {MAX_ITEM_CHARACTERS >> 20} Mi characters; "
                "mend the array or write one object a line (.jsonl)"
            )
        buffer, position = buffer[position:] + piece, 0
