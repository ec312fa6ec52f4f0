"""Requests of public traces, benchmark results, logs and records, read as a workload."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.simulate.prefixes import prefixes_of, share_seen_before
from predictor.errors import InputError as ReadError
from predictor.records.columns import ALIASES
from predictor.records.data_files import DataFile, data_files
from predictor.records.data_rows import numbered_rows, their_names
from predictor.records.left_out import LeftOut
from predictor.records.log_rows import LEFT_OUT
from predictor.records.row_files import is_text
from predictor.records.times import WORDS, BadTime, Times, seconds_of
from predictor.records.values import whole_number
from scheduler.errors import InputError
from scheduler.workload import Workload, refuse_first, workload_from_columns, workload_from_rows

logger = logging.getLogger(__name__)

PLAIN = ("output_lens", "output_len", "num_prompt_tokens", "arrival_time", "max_new_tokens")
"""Columns that make a workload by themselves."""
OWN = (
    "request_id", "output_len_lower_bound", "output_len_upper_bound", "output_len_prediction", "survival", "priority",
    "group", "class", "prefix", "prefix_tokens", "renewals",
)  # fmt: skip
"""Further columns of a workload of ours; each may be missing in any row."""
CHATS = ("chat_id", "parent_chat_id")
"""Columns that say which turn of a chat follows which."""
COUNTS = (
    "prefix_tokens",
    "max_new_tokens",
    "output_len_lower_bound",
    "output_len_upper_bound",
    "output_len_prediction",
    "priority",
)


@dataclass(frozen=True, slots=True)
class TraceReport:
    """How a file was read: what a person checks before believing the result."""

    source: str
    num_requests: int
    left_out: LeftOut
    arrivals: str
    """Over which time the requests arrive, and how the file says it."""
    prefixes: str = ""
    """What of the prompts is equal, and how the file says it; nothing where it does not."""

    def line(self) -> str:
        """Return the report as one line for the terminal."""
        left_out = f"; left out: {self.left_out}" if self.left_out.counts else ""
        prefixes = f"; {self.prefixes}" if self.prefixes else ""
        return f"{self.source}: {self.num_requests} requests, {self.arrivals}{prefixes}{left_out}"


@dataclass(frozen=True, slots=True)
class _Table:
    """The columns that a workload needs, n values each, None where a row has none; `theirs` are the file's names."""

    places: list[str]
    columns: dict[str, list[Any]]
    theirs: dict[str, str]
    left_out: LeftOut


def read_requests(path: Path, max_new_tokens: int | None, edges: NDArray[np.int64] | None = None) -> Workload:
    """Return the workload of a file as `read_trace` does; how it was read is logged."""
    workload, report = read_trace(path, max_new_tokens, edges)
    logger.log(logging.WARNING if report.left_out.counts else logging.INFO, report.line())
    return workload


def read_trace(
    path: Path, max_new_tokens: int | None, edges: NDArray[np.int64] | None = None, time_unit: str | None = None
) -> tuple[Workload, TraceReport]:
    """Return the workload of a file or folder, in its order, and how it was read.

    What a column means shows in its name (`predictor.records.columns`); docs/data-formats.md lists the shapes. Records
    give their first draw. Times of traces become seconds since the earliest; without times all arrive at 0. A request
    that generated nothing never decoded: such rows are left out and counted.

    Args:
        path: JSON, CSV, parquet or arrow, compressed or not, or a folder of such files.
        max_new_tokens: For rows without their own; by default as in `scheduler.workload.read_workload`.
        edges: Length bins of the field survival of our own workload, as there.
        time_unit: What numbers in the column of times count (s, ms, us, ns); by default as `seconds_of` finds.

    Raises:
        InputError: A file is missing, unreadable, empty or of no known kind, or a value is missing, negative, not a
            whole number or not a time: names the file, the row (in text the line) and the column.
    """
    try:
        files = data_files(str(path))
        table = _read_table(path, files)
    except ReadError as error:
        raise InputError(str(error)) from None
    outputs = _outputs(table)
    times, told = _times(table, time_unit)
    for index in np.flatnonzero(outputs == 0).tolist():
        table.left_out.add(f"with {table.theirs[_output(table)]} 0", _short(table.places[index]))
    kept = np.flatnonzero(outputs)
    if not kept.size:
        raise InputError(f"{path}: no request whose {table.theirs[_output(table)]} is above 0")
    prompts = _prompts(path, table)
    prefixes = _take_prefixes(table, kept, prompts)
    workload = _workload(table, kept, prompts, outputs, times, max_new_tokens, edges)
    arrivals = "all at 0 (no times)" if told is None else _span(table, times[kept], told)
    return workload, TraceReport(str(path), kept.size, table.left_out, arrivals, prefixes)


def _read_table(path: Path, files: Sequence[DataFile]) -> _Table:
    columns: dict[str, list[Any]] = {}
    wanted = {*PLAIN, *OWN, *CHATS}
    places: list[str] = []
    left_out = LeftOut()
    for file, number, fields in numbered_rows(files):
        place = f"{file}: {_word(file)} {number}"
        if reason := fields.get(LEFT_OUT):
            left_out.add(str(reason), _short(place))
            continue
        for name in wanted & fields.keys():
            values = columns.setdefault(name, [])
            values.extend([None] * (len(places) - len(values)))
            values.append(fields[name])
        places.append(place)
    theirs = their_names(files)
    for values in columns.values():
        values.extend([None] * (len(places) - len(values)))
    if not places:  # a table without rows has its columns all the same
        columns = {name: [] for name in wanted & theirs.keys()}
    if not {"output_lens", "output_len"} & set(columns):
        if not places and not theirs:
            raise InputError(f"{path}: no request")
        raise InputError(f"{path}: columns {', '.join(theirs.values()) or 'none'}; {_needed()}")
    return _Table(places, columns, {**{name: name for name in columns}, **theirs}, left_out)


@cache
def _word(file: Path) -> str:
    return "line" if is_text(file) else "row"


def _short(place: str) -> str:
    return Path(place.rpartition(": ")[0]).name + " " + place.rpartition(": ")[2]


def _needed() -> str:
    names = ", ".join(("GeneratedTokens", *ALIASES["output_lens"], *ALIASES["output_len"]))
    return f"must have one of output lengths: {names} (docs/data-formats.md)"


def _output(table: _Table) -> str:
    return "output_lens" if "output_lens" in table.columns else "output_len"


def _outputs(table: _Table) -> NDArray[np.int64]:
    """Return the output lengths; of draws the first."""
    values = table.columns[_output(table)]
    first = [value[0] if isinstance(value, list) and value else value for value in values]
    return _tokens(table, _output(table), first)


def _prompts(path: Path, table: _Table) -> NDArray[np.int64]:
    if "num_prompt_tokens" in table.columns:
        return _tokens(table, "num_prompt_tokens", table.columns["num_prompt_tokens"])
    if "request_id" in table.columns:
        raise InputError(f"{table.places[0]}: num_prompt_tokens is None, must be an integer")
    logger.warning("%s: no num_prompt_tokens; prompts count as 0 tokens", path)
    return np.zeros(len(table.places), dtype=np.int64)


def _take_prefixes(table: _Table, kept: NDArray[np.int64], prompts: NDArray[np.int64]) -> str:
    """Put what a trace says of equal beginnings into our columns, of the rows that are kept; return it in words."""
    columns, tokens, rows = table.columns, prompts[kept].tolist(), kept.tolist()
    is_own = table.theirs.get("prefix") == "prefix"
    of_kept = {name: [columns[name][row] for row in rows] for name in ("prefix", *CHATS) if name in columns}
    found = None if is_own else prefixes_of(of_kept, table.theirs, tokens)
    for name in CHATS if is_own else ("prefix", *CHATS):
        columns.pop(name, None)
    if found is None:
        return "" if is_own or "prefix" not in of_kept else f"{table.theirs['prefix']} not used: fit no size of parts"
    prefixes, size, source = found
    columns["prefix"] = [None] * len(prompts)
    columns["prefix_tokens"] = [size] * len(prompts)
    for row, prefix in zip(rows, prefixes, strict=True):
        columns["prefix"][row] = prefix
    share = share_seen_before(prefixes, size, tokens)
    return f"{share:.0%} of the prompt tokens begin an earlier prompt, too ({source}, in parts of {size} tokens)"


def _workload(
    table: _Table,
    kept: NDArray[np.int64],
    prompts: NDArray[np.int64],
    outputs: NDArray[np.int64],
    times: NDArray[np.float64],
    max_new_tokens: int | None,
    edges: NDArray[np.int64] | None,
) -> Workload:
    places = [table.places[i] for i in kept.tolist()]
    if set(table.columns) <= set(PLAIN):
        limits = table.columns.get("max_new_tokens")
        own = max_new_tokens if limits is None else _tokens(table, "max_new_tokens", limits)[kept]
        return workload_from_columns(places, prompts[kept], outputs[kept], times[kept], own)
    further = [name for name in (*OWN, "max_new_tokens") if name in table.columns]
    rows = []
    for index in kept.tolist():
        facts = {"num_prompt_tokens": int(prompts[index]), "output_len": int(outputs[index])}
        own_facts = {name: _plain(name, table.columns[name][index]) for name in further}
        rows.append((table.places[index], {**facts, "arrival_time": float(times[index]), **own_facts}))
    return workload_from_rows(rows, max_new_tokens, edges)


def _plain(name: str, value: Any) -> Any:
    """Return a count that CSV has as text as a number; anything else as it is, for the workload to check."""
    count = whole_number(value) if name in COUNTS else None
    return value if count is None else count


def _tokens(table: _Table, name: str, values: Sequence[Any]) -> NDArray[np.int64]:
    numbers = np.asarray([-1 if (count := whole_number(value)) is None else count for value in values], dtype=np.int64)
    _refuse_first(table, name, numbers < 0, "a whole number of tokens, at least 0")
    return numbers


def _times(table: _Table, unit: str | None) -> tuple[NDArray[np.float64], Times | None]:
    """Return the times in seconds, those of traces and dates since the earliest, 0 where the file has none."""
    values, theirs = table.columns.get("arrival_time"), table.theirs.get("arrival_time")
    if values is None:
        return np.zeros(len(table.places)), None
    is_own = "request_id" in table.columns and theirs == "arrival_time"
    if is_own:
        values = [0 if value is None else value for value in values]
    try:
        told = seconds_of(values, unit, "ms" if _is_mooncake(table) else "s")
    except BadTime as problem:
        bad = np.arange(len(values)) == problem.index
        _refuse_first(table, "arrival_time", bad, str(problem).removeprefix("must be "))
    since_earliest = told.since_1970 or theirs != "arrival_time"
    return told.since_earliest if since_earliest else told.seconds, told


def _is_mooncake(table: _Table) -> bool:
    """Return whether the columns are those of Mooncake's traces, which count milliseconds where they are whole."""
    names = [table.theirs.get(name) for name in ("arrival_time", "num_prompt_tokens", "output_len")]
    return names == ["timestamp", "input_length", "output_length"]


def _span(table: _Table, times: NDArray[np.float64], told: Times) -> str:
    name, span = table.theirs["arrival_time"], f"{float(np.ptp(times)):.6g}"
    if name == "arrival_time" and not told.since_1970 and told.unit == "s":
        return f"arriving over {span} of the clock's units (arrival_time as given)"
    read_as = "dates" if told.unit == "date" else f"{WORDS[told.unit]}; another unit: --time-unit"
    start = f", from {datetime.fromtimestamp(float(told.seconds.min()), UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"arriving over {span} s ({name} read as {read_as}{start if told.since_1970 else ''})"


def _refuse_first(table: _Table, name: str, bad: NDArray[np.bool_], must_be: str) -> None:
    values, theirs = table.columns[name], table.theirs[name]

    def problem(i: int) -> str:
        is_missing = values[i] is None
        return f"{theirs} is missing; fill it in" if is_missing else f"{theirs} is {values[i]!r}, must be {must_be}"

    refuse_first(bad, table.places, problem)
