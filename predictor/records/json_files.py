"""Rows of JSON: a line each, in an array, or in the lists of one object."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from predictor.errors import InputError
from predictor.records import text_files
from predictor.records.text_files import WHITE_SPACE, opened_text

Item = tuple[int, dict[str, Any]]

MAX_ITEM_CHARACTERS = 64 << 20


def line_items(file: Path) -> Iterator[Item]:
    """Yield (line, fields) of each row of JSON lines."""
    with opened_text(file) as lines:
        for number, line in enumerate(_lines(file, lines), start=1):
            if line.strip():
                yield from _spread(file, number, _json_object(file, number, line))


def _lines(file: Path, lines: TextIO) -> Iterator[str]:
    number = 0
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
        yield line


def array_items(file: Path) -> Iterator[Item]:
    """Yield (place, fields) of each object of a JSON array, read piece by piece."""
    with opened_text(file) as stream:
        for number, value in enumerate(_array_values(file, iter(lambda: stream.read(text_files.PIECE), "")), start=1):
            yield from ((number, row) for _, row in _spread(file, number, _checked_object(file, number, value)))


def _array_values(file: Path, pieces: Iterator[str]) -> Iterator[Any]:
    """Yield the values of a JSON array from `pieces` of its text; the buffer holds little more than one value."""
    decoder, number = json.JSONDecoder(), 0
    buffer = next((text for piece in pieces if (text := piece.lstrip(WHITE_SPACE))), "[")
    position, is_whole = 1, False
    while True:
        while position < len(buffer) and buffer[position] in WHITE_SPACE + ",":
            position += 1
        if buffer.startswith("]", position):
            _require_end(file, buffer[position + 1 :], pieces)
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
            is_whole = end < len(buffer)  # a number at the very end may go on in the next piece
        except (RecursionError, ValueError):
            is_whole = False
        if is_whole:
            number, position = number + 1, end
            yield value
            continue
        if len(buffer) - position > MAX_ITEM_CHARACTERS or not (piece := next(pieces, "")):
            raise InputError(
                f"{file}: row {number + 1}: not JSON, cut short, or over {MAX_ITEM_CHARACTERS >> 20} Mi characters; "
                "fix the array or write one object a line (.jsonl)"
            )
        buffer, position = buffer[position:] + piece, 0


def _require_end(file: Path, rest: str, pieces: Iterator[str]) -> None:
    for text in (rest, *pieces):
        if text.strip(WHITE_SPACE):
            raise InputError(f"{file}: text after the end of the array ({text.strip()[:20]!r}); remove it")


def document_items(file: Path) -> Iterator[Item]:
    """Yield the rows of one JSON object: lists of equal length, a list of objects under a name, or one row."""
    with opened_text(file) as stream:
        text = stream.read(MAX_ITEM_CHARACTERS + 1)
    if len(text) > MAX_ITEM_CHARACTERS:
        raise InputError(f"{file}: one JSON object of over {MAX_ITEM_CHARACTERS >> 20} Mi characters; write JSONL")
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        reason = str(error).split(";")[0]
        raise InputError(f"{file}: not JSON ({reason}); give an array of objects or one object a line") from None
    listed = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    is_row = any(name in value for name in ("prompt", "messages", "conversation", "conversations", "input_lens"))
    if len(listed) == 1 and not is_row:  # as an API lists them: {"data": [...], "meta": ...}
        for number, row in enumerate(listed[0], start=1):
            yield from _spread(file, number, _checked_object(file, number, row))
    else:
        yield from _spread(file, 1, value)


def _spread(file: Path, number: int, fields: dict[str, Any]) -> Iterator[Item]:
    """Yield the requests that a result of `vllm bench serve` holds in lists, or the row itself where it is none."""
    inputs, outputs = fields.get("input_lens"), fields.get("output_lens")
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        yield number, fields
        return
    if len(inputs) != len(outputs):
        raise InputError(f"{file}: input_lens: {len(inputs)} values for {len(outputs)} of output_lens; cut short?")
    failed = fields.get("errors") or [""] * len(inputs)
    columns = {"num_prompt_tokens": inputs, "output_len": outputs}
    for name, ours in (("start_times", "timestamp"), ("prompts", "prompt"), ("generated_texts", "answer")):
        if isinstance(fields.get(name), list) and len(fields[name]) == len(inputs):
            columns[ours] = fields[name]
    for place in range(len(inputs)):
        row = {name: values[place] for name, values in columns.items()}
        if place < len(failed) and failed[place]:
            row["left_out"] = "request failed"
        yield place + 1, {**row, **({"model": fields["model_id"]} if fields.get("model_id") else {})}


def _json_object(file: Path, number: int, text: str) -> dict[str, Any]:
    """Return the object in `text`; InputError that names the row where it is none."""
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        raise InputError(f"{file}: row {number}: not JSON ({reason}); one object a line") from None
    return _checked_object(file, number, value)


def _checked_object(file: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file}: row {number}: must be a JSON object, not {type(value).__name__}")
    return value
