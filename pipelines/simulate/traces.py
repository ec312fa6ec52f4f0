"""Requests of public trace files and of records, read as a workload: JSONL, CSV or parquet."""

import csv
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.errors import InputError
from scheduler.workload import Workload, json_rows, read_workload, refuse_first, workload_from_columns

logger = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Kind:
    """The columns of a kind of file, and what a second is in its times (None: they are dates)."""

    output: str
    prompt: str = "num_prompt_tokens"
    time: str = "arrival_time"
    ticks_per_second: float | None = 1.0


# Told by all three columns.
_TRACES = (
    _Kind("GeneratedTokens", "ContextTokens", "TIMESTAMP", None),
    _Kind("generated_tokens", "context_tokens", "timestamp", None),
    _Kind("output_length", "input_length", "timestamp", 1_000.0),
)
# Told by the output column alone.
_LENGTHS = (_Kind("decode", "prefill"), _Kind("output_lens"), _Kind("output_len"), _Kind("n_tok"))


@dataclass(frozen=True, slots=True)
class _Table:
    """The columns that a workload needs, each of shape [n], and where the user finds the rows."""

    kind: _Kind
    places: list[str]
    columns: dict[str, NDArray[Any]]


def read_requests(path: Path, max_new_tokens: int | None, edges: NDArray[np.int64] | None = None) -> Workload:
    """Return the workload of a file, in its order; what the file is shows in its columns.

    Our own workload in JSONL is read by `scheduler.workload.read_workload`. In JSONL, .csv or .parquet:

    - Azure LLM inference: TIMESTAMP (date and time), ContextTokens, GeneratedTokens, or in snake_case;
    - Mooncake: timestamp (ms), input_length, output_length;
    - ShareGPT lengths: prefill, decode;
    - records: num_prompt_tokens and output_lens (the first draw counts) or output_len; optional arrival_time;
    - bare lengths: output_lens, output_len or n_tok; prompts count as 0 tokens, which is logged at WARNING.

    Times of traces become seconds since the earliest; without times all arrive at 0. A row with 0 output tokens is a
    request that never decoded: such rows are dropped, and their number is logged at WARNING. Other columns,
    predictions included, are ignored.

    Args:
        path: The file; neither .csv nor .parquet means JSONL.
        max_new_tokens: For rows without their own (column max_new_tokens); by default as in `read_workload`.
        edges: Length bins of the field survival of our own workload, as in `read_workload`.

    Raises:
        InputError: The file is missing, unreadable, empty or of no known kind, or a value is null, negative, not a
            whole number or not a time: names the file, the row (in text the line) and the column.
    """
    if path.suffix == ".parquet":
        table = _read_parquet(path)
    elif path.suffix == ".csv":
        table = _read_csv(path)
    elif _is_own_workload(path):
        return read_workload(path, max_new_tokens, edges)
    else:
        table = _read_jsonl(path)
    return _workload(path, table, max_new_tokens)


def _workload(path: Path, table: _Table, max_new_tokens: int | None) -> Workload:
    kind, outputs, times = table.kind, _tokens(table, table.kind.output), _times(table)
    prompts = _tokens(table, kind.prompt) if kind.prompt in table.columns else np.zeros_like(outputs)
    limits = _tokens(table, "max_new_tokens") if "max_new_tokens" in table.columns else None
    kept = np.flatnonzero(outputs)
    if not kept.size:
        raise InputError(f"{path}: no request whose {kind.output} is above 0")
    if kept.size < outputs.size:
        logger.warning("%s: dropped %d rows whose %s is 0", path, outputs.size - kept.size, kind.output)
    if kind.prompt not in table.columns:
        logger.warning("%s: no %s; prompts count as 0 tokens", path, kind.prompt)
    places = [table.places[i] for i in kept.tolist()]
    own = max_new_tokens if limits is None else limits[kept]
    return workload_from_columns(places, prompts[kept], outputs[kept], times[kept], own)


def _is_own_workload(path: Path) -> bool:
    _, first = next(json_rows(path), ("", {}))
    own = {"request_id", "num_prompt_tokens", "arrival_time"}
    return not first or ("output_len" in first and not own.isdisjoint(first))


def _recognise(path: Path, names: Sequence[str]) -> tuple[_Kind, list[str]]:
    """Return the first kind that the columns of a file fit, and which of them to read."""
    traces = [kind for kind in _TRACES if {kind.output, kind.prompt, kind.time}.issubset(names)]
    kinds = traces + [kind for kind in _LENGTHS if kind.output in names]
    if not kinds:
        forms = [f"{kind.time}, {kind.prompt}, {kind.output}" for kind in _TRACES] + [kind.output for kind in _LENGTHS]
        raise InputError(f"{path}: columns {', '.join(names) or 'none'}; must have one of: {'; '.join(forms)}")
    wanted = {kinds[0].output, kinds[0].prompt, kinds[0].time, "max_new_tokens"}
    return kinds[0], [name for name in names if name in wanted]


def _read_jsonl(path: Path) -> _Table:
    rows = list(json_rows(path))
    kind, names = _recognise(path, list(rows[0][1]))
    return _Table(kind, [place for place, _ in rows], {n: _objects(row.get(n) for _, row in rows) for n in names})


def _read_csv(path: Path) -> _Table:
    places, rows = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for row in filter(None, reader):
                places.append(f"{path}: line {reader.line_num}")
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({error})") from error
    kind, names = _recognise(path, header)
    ragged = np.array([len(row) != len(header) for row in rows], dtype=np.bool_)
    refuse_first(ragged, places, lambda i: f"{len(rows[i])} columns, must be {len(header)} as in the header")
    return _Table(kind, places, {n: _objects(row[i] for row in rows) for i, n in enumerate(header) if n in names})


def _read_parquet(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        kind, names = _recognise(path, pq.read_schema(path).names)
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    columns = {}
    for name in names:
        column = table[name]
        if pa.types.is_list(column.type) and (pc.min(pc.list_value_length(column)).as_py() or 0) > 0:
            column = pc.list_element(column, 0)
        plain = pa.types.is_temporal(column.type) or not (column.null_count or pa.types.is_nested(column.type))
        columns[name] = column.to_numpy() if plain else _objects(column.to_pylist())
    return _Table(kind, [f"{path}: row {number}" for number in range(1, table.num_rows + 1)], columns)


def _objects(values: Iterable[Any]) -> NDArray[Any]:
    """Return Python values as an array; of a list the first, as of draws."""
    return np.fromiter((v[0] if isinstance(v, list) and v else v for v in values), dtype=object)


def _number(value: Any) -> float:
    return math.nan if isinstance(value, bool | np.bool_) else float(value)


def _microseconds(value: Any) -> float:
    """Return a date as whole microseconds since 1970, which a float holds exactly."""
    stamp = datetime.fromisoformat(value)
    return ((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _numbers(values: NDArray[Any], parse: Callable[[Any], float] = _number) -> NDArray[np.float64]:
    """Return a column as floats, NaN where a value cannot be parsed."""
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    numbers = np.full(values.size, np.nan)
    for i, value in enumerate(values):
        with suppress(TypeError, ValueError, OverflowError):
            numbers[i] = parse(value)
    return numbers


def _tokens(table: _Table, name: str) -> NDArray[np.int64]:
    numbers = _numbers(table.columns[name])
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= 2**53)
    _refuse_first(table, name, ~whole, "a whole number of tokens, at least 0")
    return numbers.astype(np.int64)


def _times(table: _Table) -> NDArray[np.float64]:
    """Return the times in seconds, those of traces since the earliest; 0 where the file has none."""
    kind = table.kind
    if kind.time not in table.columns:
        return np.zeros(len(table.places))
    values, form = table.columns[kind.time], "a number, finite and at least 0"
    if kind.ticks_per_second is not None:
        ticks = _numbers(values)
    else:
        form = "a date and time such as 2023-11-16 18:15:46.68"
        is_date = values.dtype.kind == "M"
        ticks = values.astype("datetime64[us]").astype(np.float64) if is_date else _numbers(values, _microseconds)
    _refuse_first(table, kind.time, ~(np.isfinite(ticks) & (ticks >= 0)), form)
    origin = ticks.min(initial=np.inf) if kind in _TRACES else 0.0
    return np.asarray((ticks - origin) / (kind.ticks_per_second or 1e6))


def _refuse_first(table: _Table, name: str, bad: NDArray[np.bool_], must_be: str) -> None:
    values = table.columns[name]
    refuse_first(bad, table.places, lambda i: f"{name} is {values[i : i + 1].tolist()[0]!r}, must be {must_be}")
