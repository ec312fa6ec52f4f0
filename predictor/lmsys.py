"""Records from conversation data in the shape of LMSYS-Chat-1M, on the hub or in a local file."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from predictor.errors import InputError
from predictor.records import Records, records_from_rows
from predictor.rows import Row, read_rows

CountTokens = Callable[[str], int]


def load_records(data: str, model: str | None, tokenizer: str | None = None, length_cap: int | None = None) -> Records:
    """Return the records of a file or a hub data set of conversations.

    Args:
        data: a .parquet or .jsonl file, or a hub name such as lmsys/lmsys-chat-1m.
        model: the served model whose rows are kept.
        tokenizer: folder, tokenizer.json or hub name; counts the answers of conversations, other data needs none.
        length_cap: a recorded answer of at least so many tokens counts as truncated there.

    Raises:
        InputError: bad data, or a hub data set that cannot be had; one line that says what to do.
    """
    if not Path(data).exists() and _is_hub_name(data):
        return load_hub_dataset(data, model, tokenizer, length_cap)
    rows = read_rows(data, model)
    if "conversation" in rows[0].fields and "output_lens" not in rows[0].fields:
        return conversation_records(rows, token_counter(tokenizer, data), length_cap)
    return records_from_rows(rows)


def load_hub_dataset(
    name: str, model: str | None, tokenizer: str | None = None, length_cap: int | None = None
) -> Records:
    """Return the records of a hub data set with the fields `conversation` and `model`; InputError as `load_records`."""
    if model is None:
        raise InputError(f"{name}: model: choose the served model whose answers count with --model, e.g. vicuna-13b")
    count_tokens = token_counter(tokenizer, name)
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types for one cause
        raise InputError(f"{name}: {_hub_advice(name, error)}") from error
    if missing := {"conversation", "model"} - set(dataset.column_names):
        raise InputError(f"{name}: {', '.join(sorted(missing))}: missing; the data set needs conversation and model")
    models = dataset["model"]
    kept = [index for index, value in enumerate(models) if value == model]
    if not kept:
        raise InputError(f"{name}: model: no row of {model!r}; the data set has {', '.join(sorted(set(models)))}")
    rows = [Row(name, index + 1, fields) for index, fields in zip(kept, dataset.select(kept), strict=True)]
    return conversation_records(rows, count_tokens, length_cap)


def conversation_records(rows: Iterable[Row], count_tokens: CountTokens, length_cap: int | None = None) -> Records:
    """Return records of first turns: the first user message, and the length of the answer it got.

    The length is `count_tokens` of the recorded answer plus the end token. Rows without a first exchange are left out.
    The language is the group for reporting.
    """
    converted = [_first_exchange(row, count_tokens) for row in rows]
    kept = [row for row in converted if row is not None]
    if not kept:
        raise InputError("conversation: no row has a user message followed by an answer")
    records = records_from_rows(kept)
    if length_cap is None:
        return records
    lengths = tuple(np.minimum(draws, length_cap) for draws in records.output_lens)
    return replace(records, output_lens=lengths, is_truncated=tuple(draws >= length_cap for draws in lengths))


def token_counter(tokenizer: str | None, source: str) -> CountTokens:
    """Return a function that counts the tokens of an answer with the served model's tokenizer."""
    if tokenizer is None:
        raise InputError(
            f"{source}: conversation: answers are counted in tokens of the served model; "
            "give its tokenizer with --tokenizer PATH_OR_HUB"
        )
    from tokenizers import Tokenizer

    path = Path(tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        loaded = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises bare Exception
        raise InputError(
            f"{tokenizer}: no tokenizer.json there and none fetched from the hub ({_first_line(error)})"
        ) from None
    loaded.no_truncation()
    loaded.no_padding()
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def _first_exchange(row: Row, count_tokens: CountTokens) -> Row | None:
    turns = row.fields.get("conversation")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    question, answer = turns[0], turns[1]
    if (
        question.get("role") != "user"
        or answer.get("role") != "assistant"
        or not (question.get("content") or "").strip()
    ):
        return None
    fields: dict[str, Any] = {
        "prompt": question["content"],
        "output_len": count_tokens(answer.get("content") or "") + 1,
        "prompt_id": row.fields.get("conversation_id"),
        "model": row.fields.get("model"),
        "dataset": row.fields.get("language"),
        "split": row.fields.get("split"),
    }
    return Row(row.file, row.number, fields)


def _is_hub_name(data: str) -> bool:
    return data.count("/") <= 1 and not data.startswith((".", "/")) and Path(data).suffix not in (".parquet", ".jsonl")


def _hub_advice(name: str, error: Exception) -> str:
    return (
        f"could not be fetched from the hub ({type(error).__name__}: {_first_line(error)}); if it is gated, "
        f"accept the terms at https://huggingface.co/datasets/{name}, then `hf auth login`; "
        "without a network give a local file"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
