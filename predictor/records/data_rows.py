"""Rows of one or several files under our names of fields, and the two halves of an OpenAI batch put together."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from predictor.records.columns import is_known, our_names
from predictor.records.data_files import DataFile
from predictor.records.log_rows import LOG_KEYS, our_fields
from predictor.records.messages import TURN_KEYS
from predictor.records.row_files import count_rows, iter_file, open_parquet
from predictor.records.text_files import kind_of

NumberedRow = tuple[Path, int, dict[str, Any]]

_LOOK_AHEAD = 1000
_CHATS = ("conversation", "conversations", "messages")


def numbered_rows(files: Sequence[DataFile]) -> Iterator[NumberedRow]:
    """Yield (file, number, fields) of each row of `files`; InputError as `iter_file`."""
    for file, number, raw in _joined(_raw_rows(files)):
        yield file, number, our_fields(raw)


def their_names(files: Sequence[DataFile]) -> dict[str, str]:
    """Return what the files call our columns, {ours: theirs}, as the rows at the beginning show."""
    if files and kind_of(files[0].path) == ".parquet":
        with open_parquet(files[0].path) as opened:
            return our_names((*files[0].partition, *opened.schema_arrow.names))
    found: dict[str, str] = {}
    for _, _, raw in islice(_raw_rows(files), _LOOK_AHEAD):
        for ours, theirs in our_names(tuple(raw)).items():
            found.setdefault(ours, theirs)
    return found


def count_data_rows(files: Sequence[DataFile]) -> int | None:
    """Return how many rows there are, blank lines included; None where a file must be read for it."""
    counts = [count_rows(file.path) if file.path.is_file() else None for file in files]
    return None if None in counts else sum(count for count in counts if count is not None)


def read_columns(file: Path) -> list[str] | None:
    """Return the leaf columns of a parquet file that are read, of a turn only what is read; None for other files."""
    if kind_of(file) != ".parquet" or not file.is_file():
        return None
    with open_parquet(file) as opened:
        paths = [opened.schema.column(index).path for index in range(len(opened.schema.names))]
    return [path for path in paths if _is_read(path.split("."))]


def _is_read(parts: Sequence[str]) -> bool:
    if parts[0] in _CHATS:
        # conversation.list.element.country; in a list of pairs the fourth part is "list" again.
        return len(parts) < 4 or parts[3] == "list" or parts[3] in TURN_KEYS
    return is_known(parts[0]) or parts[0] in LOG_KEYS


def _raw_rows(files: Sequence[DataFile]) -> Iterator[NumberedRow]:
    for file in files:
        for number, fields in iter_file(file.path, read_columns(file.path)):
            yield file.path, number, {**file.partition, **fields} if file.partition else fields


def _joined(rows: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    """Yield the rows, an answer of an OpenAI batch with the request of the same custom_id; halves alone come last."""
    halves: dict[str, NumberedRow] = {}
    for file, number, fields in rows:
        name = fields.get("custom_id")
        if not isinstance(name, str):
            yield file, number, fields
            continue
        other = halves.pop(name, None)
        if other is None or ("response" in fields) == ("response" in other[2]):
            halves[name] = (file, number, fields)
            yield from () if other is None else (other,)
        elif "response" in fields:
            yield file, number, {**other[2], **fields}
        else:
            yield other[0], other[1], {**fields, **other[2]}
    yield from halves.values()
