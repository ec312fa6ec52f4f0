"""Conversation data in files and on the hub, read in batches of rows with only the fields that matter."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from predictor.errors import InputError
from predictor.records.messages import TURN_KEYS
from predictor.records.row_files import BATCH_SIZE, SUFFIXES, batches, count_rows, iter_file, open_parquet
from predictor.records.rows import Row

CHAT_FIELDS = ("conversation", "conversations")
ID_FIELDS = ("conversation_id", "conversation_hash", "prompt_id", "id")
OTHER_FIELDS = ("model", "language", "redacted", "split")
MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class ChatSource:
    """Conversations to be read once: batches of rows, and how many rows to expect where that is known."""

    name: str
    num_rows: int | None
    batches: Iterator[list[Row]]


def data_files(data: str) -> list[Path]:
    """Return the files that `data` names: a file, a folder (its parquet files, else its JSONL, else JSON) or a glob.

    Raises:
        InputError: there is none.
    """
    path = Path(data)
    if path.is_dir():
        found = next((files for suffix in SUFFIXES if (files := sorted(path.rglob(f"*{suffix}")))), [])
    elif path.exists() or not set(data) & MAGIC:
        return [path]
    else:
        first = next(place for place, part in enumerate(path.parts) if set(part) & MAGIC)
        found = sorted(Path(*path.parts[:first]).glob("/".join(path.parts[first:])))
    if not found:
        raise InputError(
            f"{data}: no such file; give a .parquet or .jsonl file, a folder of them or a pattern in quotes"
        )
    return found


def is_chat_file(file: Path) -> bool:
    """Return whether the rows of a file are conversations, by its columns or its first row, and carry no lengths."""
    if file.suffix == ".parquet" and file.is_file():
        names = set(open_parquet(file).schema_arrow.names)
    else:
        names = set(next(iter_file(file), (0, {}))[1])
    return any(field in names for field in CHAT_FIELDS) and not names & {"output_lens", "output_len"}


def local_chats(data: str, files: list[Path]) -> ChatSource:
    """Return the conversations of `files`, which must all hold such."""
    for file in files:
        if not is_chat_file(file):
            raise InputError(f"{file}: {CHAT_FIELDS[0]}: missing; every file of {data} must hold conversations")
    counts = [count_rows(file) for file in files]
    total = None if None in counts else sum(count for count in counts if count is not None)
    return ChatSource(data, total, (batch for file in files for batch in batches(_rows(file))))


def hub_chats(name: str) -> ChatSource:
    """Return the conversations of a hub data set, memory-mapped from the cache of the `datasets` library.

    Raises:
        InputError: it cannot be had, with the address of its terms and the way to log in; or it has no conversations.
    """
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises a dozen unrelated types for one cause
        raise InputError(f"{name}: {_hub_advice(name, error)}") from error
    present = set(dataset.column_names)
    if not present & set(CHAT_FIELDS):
        raise InputError(f"{name}: conversation: missing; the data set has {', '.join(sorted(present))}")
    if "model" not in present:
        raise InputError(f"{name}: model: missing; the data set needs conversation and model")
    chosen = [field for field in (*CHAT_FIELDS, *ID_FIELDS, *OTHER_FIELDS) if field in present]
    tables = dataset.select_columns(chosen).with_format("arrow").iter(BATCH_SIZE)
    items = enumerate((fields for table in tables for fields in table.to_pylist()), start=1)
    return ChatSource(name, len(dataset), batches(Row(name, number, fields) for number, fields in items))


def is_hub_name(data: str) -> bool:
    """Return whether `data` looks like owner/name and not like a path."""
    looks_local = data.startswith((".", "/", "~")) or Path(data).suffix in SUFFIXES or set(data) & MAGIC
    return data.count("/") <= 1 and not looks_local


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _rows(file: Path) -> Iterator[Row]:
    columns = _chat_columns(file) if file.suffix == ".parquet" else None
    return (Row(str(file), number, fields) for number, fields in iter_file(file, columns))


def _chat_columns(file: Path) -> list[str]:
    """Return the leaf columns of a parquet file that matter; of a turn only what is read of a message."""
    opened = open_parquet(file)
    paths = [opened.schema.column(index).path for index in range(len(opened.schema.names))]
    turns = [path for path in paths if path.partition(".")[0] in CHAT_FIELDS and not _is_aside(path)]
    return turns + [path for path in paths if path in (*ID_FIELDS, *OTHER_FIELDS)]


def _is_aside(path: str) -> bool:
    """Return whether a leaf such as conversation.list.element.country belongs to no part of a turn that is read."""
    parts = path.split(".")
    return len(parts) > 3 and parts[3] != "list" and parts[3] not in TURN_KEYS


def _hub_advice(name: str, error: Exception) -> str:
    return (
        f"could not be fetched from the hub ({type(error).__name__}: {first_line(error)}); if it is gated, "
        f"accept the terms at https://huggingface.co/datasets/{name}, then `hf auth login`; "
        "without a network give a local file"
    )
