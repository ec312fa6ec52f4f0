"""Conversations of a data set on the hub, read in batches with only the fields that matter."""

from collections.abc import Iterator
from dataclasses import dataclass

from predictor.errors import InputError
from predictor.records.chat_records import CHAT_FIELDS
from predictor.records.columns import is_known
from predictor.records.log_rows import our_fields
from predictor.records.row_files import BATCH_SIZE
from predictor.records.rows import Row


@dataclass(frozen=True, slots=True)
class HubRows:
    """Rows to be read once, and how many there are."""

    num_rows: int
    rows: Iterator[Row]


def hub_rows(name: str) -> HubRows:
    """Return the rows of a hub data set, memory-mapped from the cache of the `datasets` library.

    Raises:
        InputError: it is not available, with the address of its terms and how to log in; or it has no conversations.
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
    chosen = [field for field in dataset.column_names if field in CHAT_FIELDS or is_known(field)]
    tables = dataset.select_columns(chosen).with_format("arrow").iter(BATCH_SIZE)
    items = enumerate((fields for table in tables for fields in table.to_pylist()), start=1)
    return HubRows(len(dataset), (Row(name, number, our_fields(fields)) for number, fields in items))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _hub_advice(name: str, error: Exception) -> str:
    return (
        f"could not be fetched from the hub ({type(error).__name__}: {first_line(error)}); if it is gated, "
        f"accept the terms at https://huggingface.co/datasets/{name}, then `hf auth login`; "
        "without a network give a local file"
    )
