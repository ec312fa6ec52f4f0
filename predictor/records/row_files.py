"""Rows of a file in any format, one at a time: memory stays at a batch, however long the file."""

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from predictor.errors import InputError
from predictor.records.csv_files import table_items
from predictor.records.json_files import array_items, document_items, line_items
from predictor.records.text_files import COMPRESSIONS, PIECE, first_character, first_line_is_whole, kind_of

SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Kinds of files that a folder of data may hold, the first that it has is read."""
TABLES = (".csv", ".tsv", ".txt")
BATCH_SIZE = 512

Item = tuple[int, dict[str, Any]]


def iter_file(file: Path, columns: Sequence[str] | None = None) -> Iterator[Item]:
    """Yield (number, fields) of each row, numbers from 1; in lines of text the number is the line, otherwise the place.

    Parquet and arrow are told by the suffix, in any case. In text, compressed (.gz, .zst, .bz2) or not, the first
    character shows an array or an object, and the suffix decides between a table and JSON lines.

    Args:
        file: what is read.
        columns: of a parquet file, those that are read; dotted paths reach into nested ones. Default: all.

    Raises:
        InputError: missing, unreadable or cut short; one line that names the file and, where there is one, the row.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a .parquet or .jsonl file")
    if kind_of(file) == ".parquet":
        return _parquet_items(file, columns)
    return _arrow_items(file) if kind_of(file) == ".arrow" else _text_items(file)


def batches(items: Iterator[Any], size: int = BATCH_SIZE) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    while batch := list(islice(items, size)):
        yield batch


def count_rows(file: Path) -> int | None:
    """Return the number of rows of a parquet file, of lines of a plain text; None where that must be read first."""
    if kind_of(file) == ".parquet":
        with open_parquet(file) as opened:
            return int(opened.metadata.num_rows)
    if kind_of(file) == ".arrow" or file.suffix.lower() in COMPRESSIONS or first_character(file) == "[":
        return None
    with file.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(PIECE), b""))


def open_parquet(file: Path) -> Any:
    """Return a pyarrow ParquetFile that reads page by page, not a row group at once; InputError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = file
    try:
        if compression := COMPRESSIONS.get(file.suffix.lower()):
            with pa.input_stream(str(file), compression=compression) as stream:
                source = io.BytesIO(stream.read())
        return pq.ParquetFile(source, buffer_size=PIECE, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error, "parquet") from None


def is_text(file: Path) -> bool:
    """Return whether the rows of a file are numbered by its lines."""
    return kind_of(file) not in (".parquet", ".arrow") and first_character(file) != "["


def _text_items(file: Path) -> Iterator[Item]:
    first = first_character(file)
    if kind_of(file) in TABLES and first not in ("{", "["):
        return table_items(file)
    if first == "[":
        return array_items(file)
    if first == "{" and kind_of(file) == ".json" and not first_line_is_whole(file):
        return document_items(file)
    return line_items(file)


def _parquet_items(file: Path, columns: Sequence[str] | None) -> Iterator[Item]:
    with open_parquet(file) as opened:
        yield from _numbered(file, opened.iter_batches(BATCH_SIZE, columns=columns, use_threads=False), "parquet")


def _arrow_items(file: Path) -> Iterator[Item]:
    """Yield the rows of an arrow file as `datasets` writes it, a stream, or as others do."""
    import pyarrow as pa

    try:
        source = pa.OSFile(str(file))  # not a memory map: a file cut short would end the process
        is_stream = source.read(6) != b"ARROW1"
        source.seek(0)
        found = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error, "arrow") from None
    whole = found if is_stream else (found.get_batch(place) for place in range(found.num_record_batches))
    yield from _numbered(file, _slices(whole), "arrow")


def _slices(whole: Iterator[Any]) -> Iterator[Any]:
    for batch in whole:
        batch.validate(full=True)  # damaged offsets would be followed out of the memory
        yield from (batch.slice(start, BATCH_SIZE) for start in range(0, batch.num_rows, BATCH_SIZE))


def _numbered(file: Path, tables: Iterator[Any], form: str) -> Iterator[Item]:
    import pyarrow as pa

    number = 0
    try:
        for table in tables:
            for fields in _to_microseconds(table).to_pylist():
                number += 1
                yield number, fields
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _unreadable(file, error, form) from None


def _to_microseconds(batch: Any) -> Any:
    """Return a batch whose times in nanoseconds are rounded down to what a datetime of Python holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(batch.schema):
        kind = field.type
        if (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "ns":
            target = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.duration("us")
            column = pc.cast(batch.column(place), target, safe=False)
            batch = batch.set_column(place, pa.field(field.name, target), column)
    return batch


def _unreadable(file: Path, error: Exception, form: str) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{file}: not a readable {form} file ({reason}); make it again")
