"""Rows of a parquet or JSONL file as dictionaries, numbered as the user counts them, and checks on their fields."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from predictor.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: `number` counts from 1 (in JSONL it is the line); a field that is null is absent."""

    file: str
    number: int
    fields: dict[str, Any]

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise InputError that names the file, this row and `field`."""
        raise InputError(f"{self.file}: row {self.number}: {field}: {problem}")

    def text(self, field: str, default: str = "") -> str:
        """Return a text field, or `default` where it is absent."""
        value = self.fields.get(field)
        return default if value is None else str(value)

    def prompt(self) -> str:
        """Return `prompt`, or the last user message of `messages`; InputError where it is missing or empty."""
        value = self.fields.get("prompt")
        field = "prompt"
        if value is None and self.fields.get("messages") is not None:
            field = "messages"
            value = last_content(self.fields["messages"], "user")
        if value is None:
            self.fail(field, "no user message" if field == "messages" else "missing; give prompt (text) or messages")
        if not isinstance(value, str):
            self.fail(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            self.fail(field, "empty; remove the row or fill it in")
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.fail(field, "holds half of a surrogate pair, which is not valid Unicode; mend the text")
        return value

    def token_count(self, field: str) -> int | None:
        """Return a positive whole number of tokens, or None where the field is absent."""
        value = self.fields.get(field)
        return None if value is None else self.as_length(field, value)

    def as_length(self, field: str, value: Any) -> int:
        """Return `value` as a length in tokens; InputError unless it is a whole number of at least 1."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            self.fail(field, f"{value!r} is not a whole number of tokens")
        if value < 1:
            self.fail(field, f"{value} is not positive; a length counts the end token, so it is at least 1")
        return int(value)


def last_content(messages: Any, role: str) -> Any:
    """Return the content of the last message of `role` in a list of {"role", "content"}, or None."""
    spoken = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == role]
    return spoken[-1] if spoken else None


def read_rows(path: str | Path, model: str | None = None, *, one_model: bool = True) -> list[Row]:
    """Return the rows of a .parquet or .jsonl file, those of `model` where it is given.

    Raises:
        InputError: the file is missing, unreadable or empty; `model` is not in it; or it mixes models, none is chosen
        and
            `one_model` is set.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a .parquet or .jsonl file")
    rows = _parquet_rows(file, model) if file.suffix == ".parquet" else _jsonl_rows(file)
    if not rows:
        raise InputError(f"{file}: no rows")
    if model is not None:
        _require_model(file, model, (row.fields.get("model") for row in rows))
        rows = [row for row in rows if row.fields.get("model") == model]
    elif one_model:
        models = {row.text("model") for row in rows} - {""}
        if models and (nameless := [row for row in rows if not row.text("model")]):
            nameless[0].fail("model", "missing, while other rows have it; fill it in")
        if len(models) > 1:
            raise InputError(f"{file}: model: several in one file; choose one with --model: {_listed(models)}")
    return rows


def _parquet_rows(file: Path, model: str | None) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]}); make it again") from None
    numbers = list(range(1, table.num_rows + 1))
    if model is not None and table.num_rows:
        models = table["model"].to_pylist() if "model" in table.column_names else []
        _require_model(file, model, models)
        kept = [index for index, name in enumerate(models) if name == model]
        table, numbers = table.take(kept), [index + 1 for index in kept]
    return [Row(str(file), number, fields) for number, fields in zip(numbers, table.to_pylist(), strict=True)]


def _jsonl_rows(file: Path) -> list[Row]:
    rows = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(Row(str(file), number, _json_object(file, number, line)))
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; give a .parquet file (by that name) or JSONL") from None
    return rows


def _json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: row {number}: not JSON ({error}); one object a line") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: row {number}: must be a JSON object, not {type(value).__name__}")
    return value


def _require_model(file: Path, model: str, models: Iterable[str | None]) -> None:
    present = {name for name in models if name}
    if model not in present:
        known = f"the file has {_listed(present)}" if present else "the file has no field model; leave --model out"
        raise InputError(f"{file}: model: no row of {model!r}; {known}")


def _listed(models: Iterable[str]) -> str:
    return ", ".join(sorted(models)) or "none"
