"""Training data by name: records, or recorded conversations (LMSYS-Chat-1M, WildChat, ShareGPT) made into records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from predictor.errors import InputError
from predictor.progress import progress_bar
from predictor.prompts.tokens import is_panic, token_ids_of
from predictor.records.chat_records import CHAT_FIELDS, ChatRecords, CountTokens
from predictor.records.chat_turns import ChatOptions
from predictor.records.data_files import data_files, is_hub_name
from predictor.records.data_rows import count_data_rows, numbered_rows
from predictor.records.hub import first_line, hub_rows
from predictor.records.left_out import LeftOut
from predictor.records.log_rows import LEFT_OUT
from predictor.records.records import Records, has_length, records_from_rows, without_words
from predictor.records.row_files import batches
from predictor.records.rows import Row, require_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Convert = Callable[[str], "Tokenizer"]

_LOOK_AHEAD = 1000
"""Rows looked at for the first that tells what the data is."""


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Records, the number of rows they were made from, and how many rows were dropped for which reason."""

    records: Records
    num_rows: int
    dropped: dict[str, int]
    first_dropped: dict[str, str] = field(default_factory=dict)
    """Where the first row of each reason stands."""


def load_data(
    data: str,
    model: str | None = None,
    tokenizer: str | None = None,
    length_cap: int | None = None,
    options: ChatOptions | None = None,
    *,
    shown: bool = False,
    convert: Convert | None = None,
) -> LoadedData:
    """Return the records of a file of records, or made from conversations, local or on the hub.

    Args:
        data: a .parquet, .jsonl or .json file; a folder or glob of conversation files; or a hub name.
        model: the served model whose rows are kept.
        tokenizer: folder, tokenizer.json or hub name; counts the answers of conversations, records need none.
        length_cap: a recorded answer of at least so many tokens counts as truncated there.
        options: the turn, context and language of conversations.
        shown: whether a progress bar shows after two seconds.
        convert: makes a tokenizer of a name without tokenizer.json (`predictor.training.slow_tokenizers`).

    Raises:
        InputError: bad data, or a hub data set that is not available; one line that says what to do.
    """
    options = options or ChatOptions()
    is_on_hub = is_hub_name(data) and not Path(data).exists()
    if is_on_hub and model is None:
        raise InputError(f"{data}: model: choose the served model whose answers count with --model, e.g. vicuna-13b")
    num_rows, rows = _open(data, is_on_hub=is_on_hub)
    head = list(islice(rows, _LOOK_AHEAD))
    rows = chain(head, rows)
    if _is_chat(head):
        count_tokens = _uncounted(data) if tokenizer is None else token_counter(tokenizer, convert)
        collected = ChatRecords(model, options, count_tokens, length_cap)
        loaded = _read_chats(data, collected, num_rows, rows, shown=shown)
    elif options != ChatOptions():
        raise InputError(f"{data}: turn, context and language are chosen in conversations, and these are records")
    else:
        loaded = _read_records(data, model, num_rows, rows, length_cap, shown=shown)
    if all(flags.all() for flags in loaded.records.is_truncated):
        raise InputError(
            f"{data}: is_truncated: every answer was cut, so no length is known; raise --length-cap or max_new_tokens"
        )
    return loaded


def token_counter(tokenizer: str, convert: Convert | None = None) -> CountTokens:
    """Return a function that counts the tokens of answers with the served model's tokenizer.

    Args:
        tokenizer: a tokenizer.json, a folder with one, or a hub name.
        convert: makes a tokenizer of a folder or hub name that has no such file.

    Raises:
        InputError: there is none.
    """
    from tokenizers import Tokenizer

    path = Path(tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        loaded = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(tokenizer)
    except BaseException as error:  # the library raises bare Exception, and panics besides
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if convert is None or file.is_file():
            problem = "damaged" if file.is_file() else "no tokenizer.json there and none fetched from the hub"
            raise InputError(f"{tokenizer}: {problem} ({first_line(error)})") from None
        loaded = convert(tokenizer)
    loaded.no_truncation()
    loaded.no_padding()
    return lambda texts: [len(ids) for ids in token_ids_of(loaded, texts, add_special_tokens=False)]


def _uncounted(source: str) -> CountTokens:
    raise InputError(
        f"{source}: conversation: answers are counted in tokens of the served model; "
        "give its tokenizer with --tokenizer PATH_OR_HUB"
    )


def _open(data: str, *, is_on_hub: bool) -> tuple[int | None, Iterator[Row]]:
    if is_on_hub:
        found = hub_rows(data)
        return found.num_rows, found.rows
    files = data_files(data)
    rows = (Row(str(file), number, fields) for file, number, fields in numbered_rows(files))
    return count_data_rows(files), rows


def _is_chat(head: list[Row]) -> bool:
    """Return whether answers must be counted: the first row that tells has a conversation and no length."""
    for row in head:
        if has_length(row):
            return False
        if any(name in row.fields for name in CHAT_FIELDS) and LEFT_OUT not in row.fields:
            return True
    return False


def _read_records(
    data: str, model: str | None, num_rows: int | None, rows: Iterator[Row], length_cap: int | None, *, shown: bool
) -> LoadedData:
    kept: list[Row] = []
    left_out, models, count = LeftOut(), set[str](), 0
    with progress_bar("read", "row", num_rows, shown=shown) as progress:
        for row in rows:
            count += 1
            progress.update()
            models.add(row.text("model"))
            if model is not None and row.text("model") != model:
                left_out.add("model", row.place)
            elif reason := _unusable(row):
                left_out.add(reason, row.place)
            else:
                kept.append(row)
    if not count:
        raise InputError(f"{data}: no rows")
    if model is not None:
        require_model(data, model, models - {""})
    if not kept:
        advice = ""
        if "no prompt" in left_out.counts:
            advice = "; a batch's answers hold no prompts: give a folder or a pattern with its input file, too"
        raise InputError(f"{data}: no row can be used: {left_out}{advice}")
    records = records_from_rows(kept, length_cap)
    return LoadedData(records, count, dict(left_out.counts), left_out.first)


def _unusable(row: Row) -> str:
    """Return why a row of a log gives no record; in records that people made, a bad row is an error of theirs."""
    if row.fields.get("recorded") is not True and LEFT_OUT not in row.fields:
        return ""
    return row.text(LEFT_OUT) or without_words(row)


def _read_chats(
    data: str, collected: ChatRecords, num_rows: int | None, rows: Iterator[Row], *, shown: bool
) -> LoadedData:
    with progress_bar("read", "row", num_rows, shown=shown) as progress:
        for batch in batches(rows):
            collected.take(batch)
            progress.update(len(batch))
    collected.require_rows(data)
    left_out = collected.left_out
    return LoadedData(collected.records(data), collected.num_rows, dict(left_out.counts), left_out.first)
