"""Rows of a file as dictionaries, numbered as the user counts them, and checks on their fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from predictor.errors import InputError
from predictor.progress import tracked
from predictor.records.chat_turns import ChatOptions, open_prompt
from predictor.records.messages import NotMessages, Turn, is_unicode, last_user_text, turns_of
from predictor.records.row_files import count_rows, iter_file


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

    def prompt(self, chat_options: ChatOptions | None = None) -> str:
        """Return `prompt`, or the last user message of `messages`; InputError where it is missing or empty.

        With `chat_options` the messages must end with the user's, and come with the earlier turns that these ask for.
        """
        value = self.fields.get("prompt")
        field = "prompt"
        if value is None and self.fields.get("messages") is not None:
            field = "messages"
            turns = self.turns(field)
            value = last_user_text(turns) or None if chat_options is None else open_prompt(turns, chat_options)
        if value is None:
            self.fail(
                field, "no user message with text" if field == "messages" else "missing; give prompt (text) or messages"
            )
        if not isinstance(value, str):
            self.fail(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            self.fail(field, "empty; remove the row or fill it in")
        if not is_unicode(value):
            self.fail(field, "holds half of a surrogate pair, which is not valid Unicode; mend the text")
        return value

    def turns(self, field: str = "messages") -> list[Turn]:
        """Return the turns of a conversation; InputError where it is none, or a role in it is unknown."""
        try:
            turns = turns_of(self.fields.get(field))
        except NotMessages as problem:
            self.fail(field, str(problem))
        for turn in turns:
            if not turn.role:
                self.fail(field, f"role {turn.speaker!r} is unknown; use system, user, assistant or tool")
        return turns

    def token_count(self, field: str) -> int | None:
        """Return a positive whole number of tokens, or None where the field is absent."""
        value = self.fields.get(field)
        return None if value is None else self.as_length(field, value)

    def as_length(self, field: str, value: Any) -> int:
        """Return `value` as a length in tokens; InputError unless it is a whole number of at least 1."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53
        if not is_number or not float(value).is_integer():
            self.fail(field, f"{repr(value)[:40]} is not a whole number of tokens")
        if value < 1:
            self.fail(field, f"{value} is not positive; a length counts the end token, so it is at least 1")
        return int(value)


def read_rows(path: str | Path, model: str | None = None, *, one_model: bool = True) -> list[Row]:
    """Return the rows of a .parquet, .jsonl or .json file, those of `model` where it is given.

    Raises:
        InputError: the file is missing, unreadable or empty; `model` is not in it; or it mixes models, none is chosen
            and `one_model` is set.
    """
    return read_counted_rows(path, model, one_model=one_model)[0]


def read_counted_rows(
    path: str | Path, model: str | None = None, *, one_model: bool = True, shown: bool = False
) -> tuple[list[Row], int]:
    """Return the rows as `read_rows` does, and how many the file holds, those of other models included."""
    file = Path(path)
    rows: list[Row] = []
    models: set[str] = set()
    num_rows, nameless = 0, None
    for number, fields in tracked(iter_file(file), "read", "row", count_rows(file) if shown else None, shown=shown):
        num_rows += 1
        row = Row(str(file), number, fields)
        name = row.text("model")
        models |= {name} - {""}
        nameless = nameless or (None if name else row)
        if model is None or name == model:
            rows.append(row)
    if not num_rows:
        raise InputError(f"{file}: no rows")
    if model is not None:
        require_model(str(file), model, models)
    elif one_model and models and nameless is not None:
        nameless.fail("model", "missing, while other rows have it; fill it in")
    elif one_model and len(models) > 1:
        raise InputError(f"{file}: model: several in one file; choose one with --model: {', '.join(sorted(models))}")
    return rows, num_rows


def require_model(source: str, model: str, present: set[str]) -> None:
    """Raise InputError unless `model` is among the models `present` in `source`."""
    if model not in present:
        known = f"the file has {', '.join(sorted(present))}" if present else "the file has no field model"
        advice = "" if present else "; leave --model out"
        raise InputError(f"{source}: model: no row of {model!r}; {known}{advice}")
