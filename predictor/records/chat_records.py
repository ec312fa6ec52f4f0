"""Records gathered from rows of conversations, with a count of why others were left out."""

from collections import Counter
from dataclasses import replace

import numpy as np

from predictor.errors import InputError
from predictor.records.chat_files import CHAT_FIELDS, ID_FIELDS
from predictor.records.chat_turns import ChatOptions, Exchange, Unusable, find_exchange
from predictor.records.messages import NotMessages, Turn, turns_of
from predictor.records.records import SPLITS, Records
from predictor.records.rows import Row, require_model


class ChatRecords:
    """What is kept of the rows so far, and why others were not; `output_lens` is filled by who counts the answers."""

    def __init__(self, model: str | None, options: ChatOptions) -> None:
        self._model, self._options = model, options
        self.num_rows = 0
        self.dropped: Counter[str] = Counter()
        self.output_lens: list[int] = []
        self._ids: dict[str, None] = {}
        self._prompts: list[str] = []
        self._groups: list[tuple[str, str, str]] = []
        self._shared: dict[str, str] = {}
        self._models: set[str] = set()
        self._languages: set[str] = set()

    def take(self, row: Row) -> Exchange | None:
        """Keep the row's prompt and return its exchange, or count why not; InputError where it is no conversation."""
        self.num_rows += 1
        self._models.add(row.text("model"))
        self._languages.add(row.text("language"))
        if self._model is None and len(self._models) > 1:
            return None
        try:
            exchange = self._exchange(row)
        except Unusable as reason:
            self.dropped[str(reason)] += 1
            return None
        self._prompts.append(exchange.prompt)
        texts = (row.text(name) for name in ("model", "language", "split"))
        model, language, split = (self._shared.setdefault(text, text) for text in texts)
        self._groups.append((model, language, split))
        return exchange

    def _exchange(self, row: Row) -> Exchange:
        if self._model is not None and row.text("model") != self._model:
            raise Unusable("model")
        if self._options.language and row.text("language").lower() != self._options.language.lower():
            raise Unusable("language")
        if (split := row.text("split")) and split not in SPLITS:
            row.fail("split", f"{split!r} is not one of {', '.join(SPLITS)}; fill every row or leave the field out")
        exchange = find_exchange(conversation_of(row), self._options)
        name = next((row.text(field) for field in ID_FIELDS if row.text(field)), f"row-{self.num_rows}")
        if name in self._ids:
            raise Unusable("duplicate id")
        self._ids[name] = None
        return exchange

    def require_rows(self, source: str) -> None:
        """Raise InputError where models are mixed or nothing is left."""
        if not self.num_rows:
            raise InputError(f"{source}: no rows")
        if self._model is not None:
            require_model(source, self._model, self._models - {""})
        elif len(self._models) > 1:
            names = ", ".join(sorted(name or "(none)" for name in self._models))
            raise InputError(f"{source}: model: several in one file; choose one with --model: {names}")
        if self._options.language and self.dropped["language"] == self.num_rows - self.dropped["model"]:
            names = ", ".join(sorted(self._languages - {""})) or "no field language; leave --language out"
            raise InputError(f"{source}: language: no row of {self._options.language!r}; the data has {names}")
        if not self._prompts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
            raise InputError(f"{source}: conversation: no row has a prompt with an answer that can be used ({reasons})")

    def records(self, source: str, length_cap: int | None) -> Records:
        """Return the kept rows as records, the language as group, marked as recorded."""
        lengths = np.asarray(self.output_lens, dtype=np.int64)
        lengths = lengths if length_cap is None else np.minimum(lengths, length_cap)
        flags = np.zeros(len(lengths), dtype=np.bool_) if length_cap is None else lengths >= length_cap
        models, languages, splits = zip(*self._groups, strict=True)
        if any(splits) and not all(splits):
            raise InputError(f"{source}: split: missing in some rows; fill every row or leave the field out")
        return Records(
            tuple(self._prompts),
            tuple(lengths.reshape(-1, 1)),
            tuple(flags.reshape(-1, 1)),
            tuple(self._ids),
            models,
            languages,
            splits if any(splits) else None,
            recorded=True,
        )


def conversation_of(row: Row) -> list[Turn]:
    """Return the turns of a conversation; a `redacted` row without marks on its turns is redacted throughout.

    Raises:
        InputError: the conversation is not a list of messages.
    """
    field = next((name for name in CHAT_FIELDS if row.fields.get(name) is not None), None)
    if field is None:
        return []
    value = row.fields[field]
    try:
        turns = turns_of(value)
    except NotMessages as problem:
        row.fail(field, str(problem))
    marked = isinstance(value, list) and any(
        isinstance(turn, dict) and turn.get("redacted") is not None for turn in value
    )
    if row.fields.get("redacted") is True and not marked:
        return [replace(turn, is_redacted=True) for turn in turns]
    return turns
