"""Rows of data as dictionaries under our names, numbered as the user counts them, and checks on their fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from predictor.errors import InputError
from predictor.progress import tracked
from predictor.prompts.context import RequestContext
from predictor.records.chat_turns import ChatOptions, open_prompt
from predictor.records.data_files import data_files
from predictor.records.data_rows import count_data_rows, numbered_rows
from predictor.records.messages import NotMessages, Turn, is_unicode, last_user_text, prompt_end, run_start, turns_of
from predictor.records.request_context import request_context
from predictor.records.values import whole_number

CONVERSATIONS = ("messages", "conversation", "conversations", "prompt")
"""Fields that may hold messages, the first that has some counts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: `number` counts from 1 (in JSONL it is the line); what is null or NaN is absent."""

    file: str
    number: int
    fields: dict[str, Any]
    index: int = -1
    """Its place among the rows of the data, from 0, headers and blank lines not counted; -1 where that is not known."""

    @property
    def place(self) -> str:
        """Where the user finds it, without the folder."""
        return f"{Path(self.file).name} row {self.number}"

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise InputError that names the file, this row and `field`."""
        raise InputError(f"{self.file}: row {self.number}: {field}: {problem}")

    def text(self, field: str, default: str = "") -> str:
        """Return a text field, or `default` where it is absent."""
        value = self.fields.get(field)
        return default if value is None else str(value)

    def prompt(self, chat_options: ChatOptions | None = None) -> str:
        """Return `prompt`, or what the user said last in `messages`; InputError where it is missing or empty.

        With `chat_options` the messages must end with the user's, and come with the earlier turns that these ask for.
        """
        value = self.fields.get("prompt")
        field = "prompt"
        if value is None or (isinstance(value, list) and "messages" not in self.fields):
            field = next((name for name in CONVERSATIONS if self.fields.get(name) is not None), "prompt")
            if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
                self.fail(field, f"must be text or messages, not {type(value).__name__}")
            turns = self.turns(field)
            value = last_user_text(turns) or None if chat_options is None else open_prompt(turns, chat_options)
        if value is None:
            known = self.fields.get(field) is not None
            self.fail(field, "no user message with text" if known else "missing; give prompt (text) or messages")
        if not isinstance(value, str):
            self.fail(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            self.fail(field, "empty; remove the row or fill it in")
        if not is_unicode(value):
            self.fail(field, "holds half of a surrogate pair, which is not valid Unicode; fix the text")
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
        return self.after_system(turns)

    def after_system(self, turns: list[Turn]) -> list[Turn]:
        """Return the turns after the text of the field `system`, where the row has one that is not among them."""
        system = self.fields.get("system")
        if not isinstance(system, str) or not system.strip():
            return turns
        is_there = any(turn.role == "system" and turn.text == system for turn in turns)
        return turns if is_there else [Turn("system", system, "system"), *turns]

    def messages(self) -> tuple[dict[str, str], ...] | None:
        """Return the conversation that ends with the prompt, {role, content} each; None where the prompt stands alone.

        The system's text is its first message. Messages without text, and those after the prompt, are left out.
        """
        field = next((name for name in CONVERSATIONS if isinstance(self.fields.get(name), list)), None)
        turns = self.turns(field) if field is not None else []
        turns = turns[: prompt_end(turns)]
        if field is None and isinstance(self.fields.get("prompt"), str):
            turns = self.after_system([Turn("user", self.fields["prompt"])])
        kept = tuple({"role": turn.role, "content": turn.text} for turn in turns if turn.text.strip())
        return kept if len(kept) > 1 else None

    def context(self) -> RequestContext:
        """Return what the request said apart from its prompt."""
        field = next((name for name in CONVERSATIONS if isinstance(self.fields.get(name), list)), None)
        turns = None if field is None else self.turns(field)
        return request_context(self.fields, None if turns is None else turns[: run_start(turns, prompt_end(turns))])

    def token_count(self, field: str) -> int | None:
        """Return a positive whole number of tokens, or None where the field is absent."""
        value = self.fields.get(field)
        return None if value is None else self.as_length(field, value)

    def as_length(self, field: str, value: Any) -> int:
        """Return `value` as a length in tokens; InputError unless it is a whole number of at least 1."""
        count = whole_number(value)
        if count is None:
            self.fail(field, f"{repr(value)[:40]} is not a whole number of tokens")
        if count < 1:
            self.fail(field, f"{count} is not positive; a length counts the end token, so it is at least 1")
        return count


def read_rows(path: str | Path, model: str | None = None, *, one_model: bool = True) -> list[Row]:
    """Return the rows of a file, or of the files of a folder or a pattern, those of `model` where it is given.

    Raises:
        InputError: a file is missing, unreadable or empty; `model` is not in it; or it mixes models, none is chosen
            and `one_model` is set.
    """
    return read_counted_rows(path, model, one_model=one_model)[0]


def read_counted_rows(
    path: str | Path, model: str | None = None, *, one_model: bool = True, shown: bool = False
) -> tuple[list[Row], int]:
    """Return the rows as `read_rows` does, and how many the data holds, those of other models included."""
    files = data_files(str(path))
    rows: list[Row] = []
    models: set[str] = set()
    num_rows, nameless = 0, None
    total = count_data_rows(files) if shown else None
    for file, number, fields in tracked(numbered_rows(files), "read", "row", total, shown=shown):
        row = Row(str(file), number, fields, num_rows)
        num_rows += 1
        name = row.text("model")
        models |= {name} - {""}
        nameless = nameless or (None if name else row)
        if model is None or name == model:
            rows.append(row)
    if not num_rows:
        raise InputError(f"{path}: no rows")
    if model is not None:
        require_model(str(path), model, models)
    elif one_model and models and nameless is not None:
        nameless.fail("model", "missing, while other rows have it; fill it in")
    elif one_model and len(models) > 1:
        raise InputError(f"{path}: model: several in one file; choose one with --model: {', '.join(sorted(models))}")
    return rows, num_rows


def require_model(source: str, model: str, present: set[str]) -> None:
    """Raise InputError unless `model` is among the models `present` in `source`."""
    if model not in present:
        known = f"the file has {', '.join(sorted(present))}" if present else "the file has no field model"
        advice = "" if present else "; leave --model out"
        raise InputError(f"{source}: model: no row of {model!r}; {known}{advice}")
