"""Records gathered from rows of conversations, with a count of why others were left out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.records.chat_turns import ChatOptions, Exchange, Unusable, find_exchange, open_prompt
from predictor.records.left_out import LeftOut
from predictor.records.log_rows import LEFT_OUT
from predictor.records.messages import NotMessages, Turn, is_unicode, prompt_end, run_start, turns_of
from predictor.records.records import SPLITS, BoolArray, Records, capped, draws_of, has_length, known_times
from predictor.records.request_context import request_context
from predictor.records.rows import Row, require_model
from predictor.records.values import flag

CHAT_FIELDS = ("conversation", "conversations", "messages")
ID_FIELDS = ("conversation_id", "conversation_hash", "prompt_id", "id", "custom_id", "request_id")
CountTokens = Callable[[Sequence[str]], list[int]]


class ChatRecords:
    """What is kept of the rows so far, and why others were not; answers are counted batch by batch."""

    def __init__(
        self, model: str | None, options: ChatOptions, count_tokens: CountTokens, length_cap: int | None
    ) -> None:
        self._model, self._options = model, options
        self._count_tokens, self._length_cap = count_tokens, length_cap
        self.num_rows = 0
        self.left_out = LeftOut()
        self._draws: list[tuple[IntArray, BoolArray]] = []
        self._ids: dict[str, None] = {}
        self._prompts: list[str] = []
        self._labels: list[tuple[str, str, str, str]] = []
        self._contexts: dict[RequestContext, RequestContext] = {}
        self._context_of: list[RequestContext] = []
        self._times: list[Any] = []
        self._shared: dict[str, str] = {}
        self._models: set[str] = set()
        self._languages: set[str] = set()

    def take(self, rows: Sequence[Row]) -> None:
        """Keep what can be used of rows, and count why others cannot; InputError where one is no conversation."""
        exchanges = [(row, exchange) for row in rows if (exchange := self._take_one(row)) is not None]
        uncounted = [exchange.answer for row, exchange in exchanges if not has_length(row)]
        counts = iter(self._count_tokens(uncounted) if uncounted else ())
        for row, _ in exchanges:
            if has_length(row):
                self._draws.append(draws_of(row, self._length_cap))
                continue
            lengths = np.asarray([next(counts) + 1], dtype=np.int64)  # the end token counts
            is_cut = np.asarray([flag(row.fields.get("is_truncated")) is True])
            self._draws.append(capped(lengths, is_cut, self._length_cap))

    def _take_one(self, row: Row) -> Exchange | None:
        self.num_rows += 1
        self._models.add(row.text("model"))
        self._languages.add(row.text("language"))
        if self._model is None and len(self._models) > 1:
            return None  # the names are all that is still wanted
        try:
            exchange = self._exchange(row)
        except Unusable as reason:
            self.left_out.add(str(reason), row.place)
            return None
        self._prompts.append(exchange.prompt)
        model, language, split, group = (
            self._share(row.text(name)) for name in ("model", "language", "split", "group")
        )
        self._labels.append((model, language, split, group))
        context = request_context(row.fields, exchange.earlier)
        self._context_of.append(self._contexts.setdefault(context, context))
        self._times.append(row.fields.get("arrival_time"))
        return exchange

    def _share(self, text: str) -> str:
        return self._shared.setdefault(text, text)

    def _exchange(self, row: Row) -> Exchange:
        if self._model is not None and row.text("model") != self._model:
            raise Unusable("model")
        if self._options.language and row.text("language").lower() != self._options.language.lower():
            raise Unusable("language")
        if (split := row.text("split")) and split not in SPLITS:
            row.fail("split", f"{split!r} is not one of {', '.join(SPLITS)}; fill every row or leave the field out")
        if reason := row.text(LEFT_OUT):
            raise Unusable(reason)
        exchange = asked_of(row, self._options) if has_length(row) else find_exchange(turns_in(row), self._options)
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
        if self._options.language and self.left_out.counts["language"] == self.num_rows - self.left_out.counts["model"]:
            names = ", ".join(sorted(self._languages - {""})) or "no field language; leave --language out"
            raise InputError(f"{source}: language: no row of {self._options.language!r}; the data has {names}")
        if not self._prompts:
            raise InputError(
                f"{source}: conversation: no row has a prompt with an answer that can be used ({self.left_out})"
            )

    def records(self, source: str) -> Records:
        """Return the kept rows as records, the language as group, marked as recorded."""
        models, languages, splits, groups = zip(*self._labels, strict=True)
        if any(splits) and not all(splits):
            raise InputError(f"{source}: split: missing in some rows; fill every row or leave the field out")
        return Records(
            tuple(self._prompts),
            tuple(lengths for lengths, _ in self._draws),
            tuple(flags for _, flags in self._draws),
            tuple(self._ids),
            models,
            languages,
            splits if any(splits) else None,
            recorded=True,
            contexts=tuple(self._context_of),
            arrival_times=known_times(self._times),
            groups=groups if any(groups) else None,
        )


def asked_of(row: Row, options: ChatOptions) -> Exchange:
    """Return the prompt of a row that states its length, with what was said before it."""
    if row.fields.get("messages") is None:
        return Exchange(row.prompt(), "")
    turns = turns_in(row)
    turns = turns[: prompt_end(turns)]
    if (prompt := open_prompt(turns, options)) is None:
        raise Unusable("not text" if turns and turns[-1].has_other else "empty")
    if not is_unicode(prompt):
        raise Unusable("bad Unicode")
    return Exchange(prompt, "", tuple(turns[: run_start(turns, len(turns))]))


def turns_in(row: Row) -> list[Turn]:
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
    turns = row.after_system(turns)
    marked = isinstance(value, list) and any(
        isinstance(turn, dict) and turn.get("redacted") is not None for turn in value
    )
    if row.fields.get("redacted") is True and not marked:
        return [replace(turn, is_redacted=True) for turn in turns]
    return turns
