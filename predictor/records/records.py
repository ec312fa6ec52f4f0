"""Records: prompts with the output lengths drawn from a served model, as read from and written to files."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.prompts.context import UNKNOWN, RequestContext
from predictor.records.chat_turns import ChatOptions
from predictor.records.left_out import LeftOut
from predictor.records.log_rows import LEFT_OUT
from predictor.records.rows import CONVERSATIONS, Row, read_rows
from predictor.records.times import BadTime, seconds_of
from predictor.records.values import flag, whole_number

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]

SPLITS = ("train", "validation", "calibration", "test")
CONTEXT_FIELDS = tuple(field.name for field in fields(RequestContext))


@dataclass(frozen=True, slots=True)
class Records:
    """N prompts with their draws, one entry a prompt in each field.

    `output_lens` are int64 arrays of tokens, one value a draw; `is_truncated` says which draws stopped at the cap, so
    that the length is only a lower limit. `datasets` is a group for reporting, "" where none is known; `models`
    likewise. `recorded` says that the lengths are those of answers found in chat logs, not drawn from the model that
    will be served, so that what is measured on them holds for that log only. `num_prompt_tokens` are the served
    model's, as given, None where a row has none. `contexts` are what the requests said apart from their prompts,
    `arrival_times` in seconds (since 1970 where the data has dates), `groups` what belongs together (a job, a session),
    `classes` tenants or kinds of requests; None where no row says so.
    """

    prompts: tuple[str, ...]
    output_lens: tuple[IntArray, ...]
    is_truncated: tuple[BoolArray, ...]
    prompt_ids: tuple[str, ...]
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    splits: tuple[str, ...] | None = None
    max_new_tokens: tuple[int | None, ...] | None = None
    recorded: bool = False
    num_prompt_tokens: tuple[int | None, ...] | None = None
    contexts: tuple[RequestContext, ...] | None = None
    arrival_times: tuple[float, ...] | None = None
    groups: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: npt.ArrayLike) -> "Records":
        """Return the records at `indices`, in that order."""
        chosen = [int(i) for i in np.asarray(indices, dtype=np.int64)]
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        changes: dict[str, Any] = {
            name: tuple(column[i] for i in chosen) for name, column in columns.items() if isinstance(column, tuple)
        }
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt that may have no lengths yet; `index` is its 0-based row in the data, "" and None mean not given."""

    index: int
    prompt: str
    prompt_id: str
    model: str
    dataset: str
    split: str
    max_new_tokens: int | None
    messages: tuple[dict[str, str], ...] | None = None
    """The conversation that ends with the prompt, {role, content} each, for a chat template; None: the prompt alone."""
    context: RequestContext = UNKNOWN


def read_records(path: str | Path, model: str | None = None) -> Records:
    """Return the records of a parquet or JSONL file, those of `model` where it is given.

    Raises:
        InputError: one line with file, row (from 1) and field, and what to do.
    """
    return records_from_rows(read_rows(path, model))


def records_from_rows(rows: Sequence[Row], length_cap: int | None = None) -> Records:
    """Return checked records of rows that carry lengths; InputError as `read_records`.

    A draw of at least `length_cap` tokens counts as cut there.
    """
    prompts = tuple(row.prompt() for row in rows)
    draws = [draws_of(row, length_cap) for row in rows]
    _refuse_duplicates(rows)
    contexts = tuple(row.context() for row in rows)
    groups, classes = (tuple(row.text(name) for row in rows) for name in ("group", "class"))
    return Records(
        prompts,
        tuple(output_lens for output_lens, _ in draws),
        tuple(is_truncated for _, is_truncated in draws),
        tuple(row.text("prompt_id", f"row-{row.number}") for row in rows),
        tuple(row.text("model") for row in rows),
        tuple(row.text("dataset") for row in rows),
        _splits(rows),
        _unless_all_none([row.token_count("max_new_tokens") for row in rows]),
        any(row.fields.get("recorded") is True for row in rows),
        _unless_all_none([_prompt_size(row) for row in rows]),
        contexts if any(context != UNKNOWN for context in contexts) else None,
        arrival_times(rows),
        groups if any(groups) else None,
        classes if any(classes) else None,
    )


def arrival_times(rows: Sequence[Row]) -> tuple[float, ...] | None:
    """Return when the requests of rows arrived, in seconds; None where no row says so.

    Raises:
        InputError: some rows have no time, or one that is none. Of a log the times are then left out: only a split by
            time needs them.
    """
    values = [row.fields.get("arrival_time") for row in rows]
    if any(row.fields.get("recorded") is True for row in rows) or all(value is None for value in values):
        return known_times(values)
    for row, value in zip(rows, values, strict=True):
        if value is None:
            row.fail("arrival_time", "missing, while other rows have it; fill it in or leave the field out")
    try:
        return tuple(seconds_of(values).seconds.tolist())
    except BadTime as problem:
        rows[problem.index].fail("arrival_time", f"{values[problem.index]!r} {problem}")


def known_times(values: Sequence[Any]) -> tuple[float, ...] | None:
    """Return times in seconds; None where some are missing or no times."""
    try:
        return None if any(value is None for value in values) else tuple(seconds_of(values).seconds.tolist())
    except BadTime:
        return None


def read_prompts(path: str | Path, model: str | None = None, split: str | None = None) -> list[PromptRow]:
    """Return the prompts of a file in order, with or without lengths, those of `model` and `split` where given.

    Raises:
        InputError: one line with file, row (from 1) and field, and what to do; also where nothing is left.
    """
    return [prompt_of(row) for row in select_rows(path, model, split)]


def select_rows(path: str | Path, model: str | None = None, split: str | None = None) -> list[Row]:
    """Return the rows of `model` and `split` where given, unchecked but for that; InputError as `read_prompts`.

    Rows of a log that ask nothing in words are left out, which is logged.
    """
    rows = read_rows(path, model, one_model=False)
    chosen = [row for row in rows if split is None or row.text("split") == split]
    if not chosen:
        present = sorted({row.text("split") for row in rows} - {""})
        raise InputError(f"{path}: split: no row of {split!r}; the file has {', '.join(present) or 'no field split'}")
    kept, left_out = _leave_out(chosen, lambda row: without_words(row) if row.fields.get("recorded") is True else "")
    if not kept:
        raise InputError(f"{path}: no row can be used: {left_out}")
    if left_out.counts:
        logger.warning("%s: left out: %s", path, left_out)
    return kept


def answered_rows(path: str | Path, rows: Sequence[Row]) -> list[Row]:
    """Return the rows but those of a log that no answer's length is known of, which is logged; all if none is left."""
    kept, left_out = _leave_out(rows, lambda row: row.text(LEFT_OUT))
    if kept and left_out.counts:
        logger.warning("%s: left out: %s", path, left_out)
    return kept or list(rows)


def _leave_out(rows: Sequence[Row], reason_of: Callable[[Row], str]) -> tuple[list[Row], LeftOut]:
    """Return the rows that there is no reason to leave out, and the others counted by theirs."""
    kept, left_out = list[Row](), LeftOut()
    for row in rows:
        if reason := reason_of(row):
            left_out.add(reason, row.place)
        else:
            kept.append(row)
    return kept, left_out


def without_words(row: Row) -> str:
    """Return why a row has no prompt that can be read, "" where it has one."""
    if not any(row.fields.get(name) for name in CONVERSATIONS):
        return "no prompt"
    try:
        row.prompt()
    except InputError:
        return "no prompt in words"
    return ""


def prompt_of(row: Row, chat_options: ChatOptions | None = None) -> PromptRow:
    """Return the prompt in a row, as `Row.prompt` does, and its conversation; InputError where there is none."""
    return PromptRow(
        row.number - 1 if row.index < 0 else row.index,
        row.prompt(chat_options),
        row.text("prompt_id", f"row-{row.number}"),
        row.text("model"),
        row.text("dataset"),
        row.text("split"),
        row.token_count("max_new_tokens"),
        row.messages(),
        row.context(),
    )


def has_length(row: Row) -> bool:
    """Return whether a row states how long its answer was, or its answers."""
    return row.fields.get("output_lens") is not None or row.fields.get("output_len") is not None


def has_lengths(rows: Sequence[Row]) -> bool:
    """Return whether every row carries output lengths."""
    return all(has_length(row) for row in rows)


def write_records(records: Records, path: str | Path) -> None:
    """Write `records` to a parquet file that `read_records` gives back unchanged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "prompt_id": list(records.prompt_ids),
        "dataset": list(records.datasets),
        "model": list(records.models),
        "prompt": list(records.prompts),
        "output_lens": pa.array([draws.tolist() for draws in records.output_lens], pa.list_(pa.int64())),
        "is_truncated": pa.array([flags.tolist() for flags in records.is_truncated], pa.list_(pa.bool_())),
    }
    if records.splits is not None:
        columns["split"] = list(records.splits)
    if records.recorded:
        columns["recorded"] = [True] * len(records)
    if records.max_new_tokens is not None:
        columns["max_new_tokens"] = pa.array(records.max_new_tokens, pa.int64())
    if records.num_prompt_tokens is not None:
        columns["num_prompt_tokens"] = pa.array(records.num_prompt_tokens, pa.int64())
    if records.arrival_times is not None:
        columns["arrival_time"] = list(records.arrival_times)
    if records.groups is not None:
        columns["group"] = list(records.groups)
    if records.classes is not None:
        columns["class"] = list(records.classes)
    for name in CONTEXT_FIELDS if records.contexts is not None else ():
        values = [getattr(context, name) for context in records.contexts or ()]
        if any(value is not None for value in values) and name not in columns:
            columns[name] = values
    pq.write_table(pa.table(columns), path)


def draws_of(row: Row, length_cap: int | None) -> tuple[IntArray, BoolArray]:
    """Return the lengths of a row's draws and which are cut, at `length_cap` too; InputError where they are none."""
    field = "output_lens" if row.fields.get("output_lens") is not None else "output_len"
    value = row.fields.get(field)
    if value is None:
        reason = row.text(LEFT_OUT, "missing")
        row.fail("output_lens", f"{reason}; give output_lens (a list of token counts) or output_len (one)")
    draws = value if isinstance(value, list) else [value]
    if not draws:
        row.fail(field, "empty list; give at least one draw")
    lengths = np.asarray([row.as_length(field, draw) for draw in draws], dtype=np.int64)
    given = row.fields.get("is_truncated", False)
    given = given if isinstance(given, list) else [given] * len(draws)
    if len(given) != len(draws):
        row.fail("is_truncated", f"{len(given)} values for {len(draws)} draws of {field}")
    flags = [flag(value) for value in given]
    if None in flags:
        row.fail("is_truncated", f"must be true or false for each draw, not {given!r}")
    is_truncated = np.asarray(flags, dtype=np.bool_)
    return capped(lengths, is_truncated, length_cap)


def capped(lengths: IntArray, is_truncated: BoolArray, length_cap: int | None) -> tuple[IntArray, BoolArray]:
    """Return the lengths, those from `length_cap` on cut there, and which are cut."""
    if length_cap is None:
        return lengths, is_truncated
    return np.minimum(lengths, length_cap), is_truncated | (lengths >= length_cap)


def _prompt_size(row: Row) -> int | None:
    value = row.fields.get("num_prompt_tokens")
    size = whole_number(value)
    if value is not None and (size is None or size < 0):
        row.fail("num_prompt_tokens", f"{value!r} is not a whole number of tokens")
    return size


def _unless_all_none(values: list[int | None]) -> tuple[int | None, ...] | None:
    return tuple(values) if any(value is not None for value in values) else None


def _splits(rows: Sequence[Row]) -> tuple[str, ...] | None:
    names = [row.text("split") for row in rows]
    if not any(names):
        return None
    for row, name in zip(rows, names, strict=True):
        if name not in SPLITS:
            row.fail("split", f"{name!r} is not one of {', '.join(SPLITS)}; fill every row or leave the field out")
    return tuple(names)


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        if (prompt_id := row.text("prompt_id")) and (key := (prompt_id, row.text("model"))) in seen:
            row.fail("prompt_id", f"{prompt_id!r} also stands in row {seen[key]} for this model; join them as draws")
        elif prompt_id:
            seen[key] = row.number
