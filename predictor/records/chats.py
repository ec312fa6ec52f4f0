"""Training data by name: records, or recorded conversations (LMSYS-Chat-1M, WildChat, ShareGPT) made into records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from predictor.errors import InputError
from predictor.progress import progress_bar
from predictor.records.chat_files import (
    ChatSource,
    data_files,
    first_line,
    hub_chats,
    is_chat_file,
    is_hub_name,
    local_chats,
)
from predictor.records.chat_records import ChatRecords
from predictor.records.chat_turns import ChatOptions
from predictor.records.records import Records, records_from_rows
from predictor.records.rows import read_counted_rows

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Records, the number of rows they were made from, and how many rows were dropped for which reason."""

    records: Records
    num_rows: int
    dropped: dict[str, int]


def load_data(
    data: str,
    model: str | None = None,
    tokenizer: str | None = None,
    length_cap: int | None = None,
    options: ChatOptions | None = None,
    *,
    shown: bool = False,
) -> LoadedData:
    """Return the records of a file of records, or made from conversations, local or on the hub.

    Args:
        data: a .parquet, .jsonl or .json file; a folder or glob of conversation files; or a hub name.
        model: the served model whose rows are kept.
        tokenizer: folder, tokenizer.json or hub name; counts the answers of conversations, records need none.
        length_cap: a recorded answer of at least so many tokens counts as truncated there.
        options: the turn, context and language of conversations.
        shown: whether a progress bar shows after two seconds.

    Raises:
        InputError: bad data, or a hub data set that cannot be had; one line that says what to do.
    """
    options = options or ChatOptions()
    is_on_hub = is_hub_name(data) and not Path(data).exists()
    if is_on_hub and model is None:
        raise InputError(f"{data}: model: choose the served model whose answers count with --model, e.g. vicuna-13b")
    files = [] if is_on_hub else data_files(data)
    if len(files) == 1 and not is_chat_file(files[0]):
        loaded = _read_records(files[0], model, options, shown=shown)
    else:
        count_tokens = token_counter(tokenizer, data)
        source = hub_chats(data) if is_on_hub else local_chats(data, files)
        loaded = _read_chats(source, model, count_tokens, length_cap, options, shown=shown)
    if all(flags.all() for flags in loaded.records.is_truncated):
        raise InputError(
            f"{data}: is_truncated: every answer was cut, so no length is known; raise --length-cap or max_new_tokens"
        )
    return loaded


def token_counter(tokenizer: str | None, source: str) -> CountTokens:
    """Return a function that counts the tokens of answers with the served model's tokenizer."""
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
            f"{tokenizer}: no tokenizer.json there and none fetched from the hub ({first_line(error)})"
        ) from None
    loaded.no_truncation()
    loaded.no_padding()
    return lambda texts: [len(found.ids) for found in loaded.encode_batch_fast(list(texts), add_special_tokens=False)]


def _read_records(file: Path, model: str | None, options: ChatOptions, *, shown: bool) -> LoadedData:
    rows, num_rows = read_counted_rows(file, model, one_model=False, shown=shown)
    if options != ChatOptions():
        raise InputError(f"{file}: turn, context and language are chosen in conversations, and these are records")
    return LoadedData(records_from_rows(rows), num_rows, {"model": num_rows - len(rows)} if model else {})


def _read_chats(
    source: ChatSource,
    model: str | None,
    count_tokens: CountTokens,
    length_cap: int | None,
    options: ChatOptions,
    *,
    shown: bool,
) -> LoadedData:
    collected = ChatRecords(model, options)
    with progress_bar("read", "row", source.num_rows, shown=shown) as progress:
        for rows in source.batches:
            exchanges = [(row, exchange) for row in rows if (exchange := collected.take(row)) is not None]
            # Empty where models are mixed: then the names are all that is still wanted.
            collected.output_lens.extend(count + 1 for count in count_tokens([pair[1].answer for pair in exchanges]))
            progress.update(len(rows))
    collected.require_rows(source.name)
    return LoadedData(collected.records(source.name, length_cap), collected.num_rows, dict(collected.dropped))
