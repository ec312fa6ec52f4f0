"""Records: prompts with the output lengths drawn from a served model, as read from and written to files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.records.chat_turns import ChatOptions
from predictor.records.rows import Row, read_rows

BoolArray = npt.NDArray[np.bool_]

SPLITS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True, slots=True)
class Records:
    """N prompts with their draws, one entry a prompt in each field.

    `output_lens` are int64 arrays of tokens, one value a draw; `is_truncated` says which draws stopped at the cap, so
    that the length is only a lower limit. `datasets` is a group for reporting, "" where none is known; `models`
    likewise. `recorded` says that the lengths are those of answers found in chat logs, not drawn from the model that
    will be served, so that what is measured on them holds for that log only. `num_prompt_tokens` are the served
    model's, as given. `contexts` are what the requests said beside their prompts, where the file tells.
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
    num_prompt_tokens: tuple[int, ...] | None = None
    contexts: tuple[RequestContext, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: npt.ArrayLike) -> "Records":
        """Return the records at `indices`, in that order."""
        chosen = [int(i) for i in np.asarray(indices, dtype=np.int64)]
        return Records(
            tuple(self.prompts[i] for i in chosen),
            tuple(self.output_lens[i] for i in chosen),
            tuple(self.is_truncated[i] for i in chosen),
            tuple(self.prompt_ids[i] for i in chosen),
            tuple(self.models[i] for i in chosen),
            tuple(self.datasets[i] for i in chosen),
            None if self.splits is None else tuple(self.splits[i] for i in chosen),
            None if self.max_new_tokens is None else tuple(self.max_new_tokens[i] for i in chosen),
            self.recorded,
            None if self.num_prompt_tokens is None else tuple(self.num_prompt_tokens[i] for i in chosen),
            None if self.contexts is None else tuple(self.contexts[i] for i in chosen),
        )


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt that may have no lengths yet; `index` is its 0-based row in the file, "" and None mean not given."""

    index: int
    prompt: str
    prompt_id: str
    model: str
    dataset: str
    split: str
    max_new_tokens: int | None


def read_records(path: str | Path, model: str | None = None) -> Records:
    """Return the records of a parquet or JSONL file, those of `model` where it is given.

    Raises:
        InputError: one line with file, row (from 1) and field, and what to do.
    """
    return records_from_rows(read_rows(path, model))


def records_from_rows(rows: Sequence[Row]) -> Records:
    """Return checked records of rows that carry lengths; InputError as `read_records`."""
    prompts = tuple(row.prompt() for row in rows)
    draws = [_draws(row) for row in rows]
    _refuse_duplicates(rows)
    caps = tuple(row.token_count("max_new_tokens") for row in rows)
    sizes = tuple(size for row in rows if isinstance(size := row.fields.get("num_prompt_tokens"), int))
    return Records(
        prompts,
        tuple(output_lens for output_lens, _ in draws),
        tuple(is_truncated for _, is_truncated in draws),
        tuple(row.text("prompt_id", f"row-{row.number}") for row in rows),
        tuple(row.text("model") for row in rows),
        tuple(row.text("dataset") for row in rows),
        _splits(rows),
        caps if any(cap is not None for cap in caps) else None,
        any(row.fields.get("recorded") is True for row in rows),
        sizes if len(sizes) == len(rows) else None,
    )


def read_prompts(path: str | Path, model: str | None = None, split: str | None = None) -> list[PromptRow]:
    """Return the prompts of a file in order, with or without lengths, those of `model` and `split` where given.

    Raises:
        InputError: one line with file, row (from 1) and field, and what to do; also where nothing is left.
    """
    return [prompt_of(row) for row in select_rows(path, model, split)]


def select_rows(path: str | Path, model: str | None = None, split: str | None = None) -> list[Row]:
    """Return the rows of `model` and `split` where given, unchecked but for that; InputError as `read_prompts`."""
    rows = read_rows(path, model, one_model=False)
    kept = [row for row in rows if split is None or row.text("split") == split]
    if not kept:
        present = sorted({row.text("split") for row in rows} - {""})
        raise InputError(f"{path}: split: no row of {split!r}; the file has {', '.join(present) or 'no field split'}")
    return kept


def prompt_of(row: Row, chat_options: ChatOptions | None = None) -> PromptRow:
    """Return the prompt in a row, as `Row.prompt` does; InputError where there is none."""
    return PromptRow(
        row.number - 1,
        row.prompt(chat_options),
        row.text("prompt_id", f"row-{row.number}"),
        row.text("model"),
        row.text("dataset"),
        row.text("split"),
        row.token_count("max_new_tokens"),
    )


def has_lengths(rows: Sequence[Row]) -> bool:
    """Return whether every row carries output lengths."""
    return all(row.fields.get("output_lens") is not None or row.fields.get("output_len") is not None for row in rows)


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
    pq.write_table(pa.table(columns), path)


def _draws(row: Row) -> tuple[IntArray, BoolArray]:
    field = "output_lens" if row.fields.get("output_lens") is not None else "output_len"
    value = row.fields.get(field)
    if value is None:
        row.fail("output_lens", "missing; give output_lens (a list of token counts) or output_len (one)")
    draws = value if isinstance(value, list) else [value]
    if not draws:
        row.fail(field, "empty list; give at least one draw")
    lengths = np.asarray([row.as_length(field, draw) for draw in draws], dtype=np.int64)
    flags = row.fields.get("is_truncated")
    flags = flags if isinstance(flags, list) else [flags or False] * len(draws)
    if len(flags) != len(draws):
        row.fail("is_truncated", f"{len(flags)} values for {len(draws)} draws of {field}")
    if not all(isinstance(flag, bool | int) for flag in flags):
        row.fail("is_truncated", f"must be true or false for each draw, not {flags!r}")
    return lengths, np.asarray(flags, dtype=np.bool_)


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
