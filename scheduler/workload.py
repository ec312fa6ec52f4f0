"""Workloads: requests with arrivals, and the true lengths that only an executor may see."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.prefixes.shared import PrefixNames
from scheduler.renewals import Renewal
from scheduler.request import Request

Ints = NDArray[np.int64]
MAX_TOKENS = 1 << 53
NO_CAP = MAX_TOKENS
"""`max_new_tokens` where nobody states one. A cap made from true lengths would tell policies how long answers get."""
DEFAULT_PREFIX_TOKENS = 16
"""Tokens that a name in a prefix stands for, where the workload does not say: a block of vLLM."""
MAX_TIME = 1e10
"""A clock beyond it would not move by the time of an iteration."""
MIN_TAIL, MAX_TAIL = 0.1, 100.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests and, apart from them, what only an executor may know: true lengths and renewed forecasts, by index."""

    requests: list[Request]
    output_lens: list[int]
    renewals: Mapping[int, Sequence[Renewal]] = field(default_factory=dict)

    def select(self, indices: Sequence[int]) -> "Workload":
        """Return the requests at `indices`, each as often as it is named, with all that belongs to them."""
        renewals = {k: self.renewals[i] for k, i in enumerate(indices) if i in self.renewals}
        return Workload([self.requests[i] for i in indices], [self.output_lens[i] for i in indices], renewals)


def read_workload(path: Path, max_new_tokens: int | None = None, edges: Ints | None = None) -> Workload:
    """Return the workload of a JSONL file (fields: docs/architecture.md).

    Args:
        path: A line per request.
        max_new_tokens: For lines without their own; by default none (`NO_CAP`).
        edges: Length bins of the field survival, shape [num_bins + 1]; without them it is checked and left out.

    Raises:
        InputError: The file is missing or empty, or a line is wrong: names the line and the field.
    """
    rows = list(json_rows(path))
    if not rows:
        raise InputError(f"{path}: no request")
    return workload_from_rows(rows, max_new_tokens, edges)


def workload_from_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], max_new_tokens: int | None = None, edges: Ints | None = None
) -> Workload:
    """Return the workload of rows, at least one: where the user finds each ("FILE: line 7"), and its fields.

    A whole number may be written as a float; a field that is None is absent. Otherwise as `read_workload`.
    """
    places = [place for place, _ in rows]
    output_lens = [_integer(row, "output_len", place) for place, row in rows]
    lens = np.asarray(output_lens)
    cap = _checked_cap(lens, max_new_tokens, places)
    named = PrefixNames()
    requests = [_request(row, place, cap, edges, named) for place, row in rows]
    _refuse_above_limit(lens, np.array([request.max_new_tokens for request in requests]), places)
    sizes = np.array([request.prefix_tokens if request.prefix else 0 for request in requests])
    first = int(sizes[sizes > 0][0]) if sizes.any() else 0
    refuse_first(
        (sizes > 0) & (sizes != first), places,
        lambda i: f"prefix_tokens is {sizes[i]}, and {first} in a line before; a name stands for as many in all lines",
    )  # fmt: skip
    renewals = {i: _renewals(row, place, edges) for i, (place, row) in enumerate(rows) if row.get("renewals")}
    return Workload(requests, output_lens, renewals if edges is not None else {})


def workload_lines(workload: Workload) -> Iterator[str]:
    """Yield a line of JSON for each request, as `read_workload` reads them.

    Forecasts are written as their survival, to six digits; the edges of their bins, the same for all, go into a file of
    their own, which `read_workload` is given.
    """
    for index, (request, output_len) in enumerate(zip(workload.requests, workload.output_lens, strict=True)):
        line: dict[str, Any] = {
            "request_id": request.request_id,
            "arrival_time": request.arrival_time,
            "num_prompt_tokens": request.num_prompt_tokens,
            "output_len": int(output_len),
            "max_new_tokens": request.max_new_tokens,
            "output_len_lower_bound": request.output_len_lower_bound,
            "output_len_upper_bound": request.output_len_upper_bound,
            "output_len_prediction": request.output_len_prediction,
            "priority": request.priority or None,
            "group": request.group or None,
            "class": request.service_class or None,
        }
        if request.forecast is not None:
            line["survival"] = _rounded(request.forecast)
            line["tail"] = request.forecast.tail
            line["renewals"] = [
                [renewal.num_generated, _rounded(renewal.forecast), renewal.output_len_lower_bound]
                for renewal in workload.renewals.get(index, ())
            ] or None
        if request.prefix:
            line |= {"prefix": list(request.prefix), "prefix_tokens": request.prefix_tokens or DEFAULT_PREFIX_TOKENS}
        yield json.dumps({name: value for name, value in line.items() if value is not None}) + "\n"


def _rounded(forecast: Forecast) -> list[float]:
    survival: list[float] = np.minimum.accumulate(forecast.survival.round(6)).tolist()
    return survival


def workload_from_columns(
    places: Sequence[str],
    num_prompt_tokens: Ints,
    output_lens: Ints,
    arrival_times: NDArray[np.float64],
    max_new_tokens: int | Ints | None = None,
) -> Workload:
    """Return the workload of whole columns, n >= 1 rows each.

    Args:
        places: Where the user finds each row ("FILE: line 7"); also the `request_id`.
        num_prompt_tokens: Prompt tokens.
        output_lens: True output lengths.
        arrival_times: In the clock of the executor.
        max_new_tokens: One limit for all or one each; by default as in `read_workload`.

    Raises:
        InputError: A value is out of its range: names the place and the field.
    """
    if isinstance(max_new_tokens, np.ndarray):
        _checked_cap(output_lens, None, places)
        limits = max_new_tokens
    else:
        limits = np.full(len(output_lens), _checked_cap(output_lens, max_new_tokens, places))
    _refuse_above_limit(output_lens, limits, places)
    facts = zip(places, num_prompt_tokens.tolist(), limits.tolist(), arrival_times.tolist(), strict=True)
    return Workload([Request(*values) for values in facts], output_lens.tolist())


def refuse_first(bad: NDArray[np.bool_], places: Sequence[str], problem: Callable[[int], str]) -> None:
    """Raise InputError with the place and the problem of the first row that is `bad`, shape [n], if there is one."""
    if bad.any():
        i = int(bad.argmax())
        raise InputError(f"{places[i]}: {problem(i)}")


def _checked_cap(lens: Ints, max_new_tokens: int | None, places: Sequence[str]) -> int:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, must be >= 1")
    refuse_first(lens < 1, places, lambda i: f"output_len is {lens[i]}, must be >= 1")
    return max_new_tokens or NO_CAP


def _refuse_above_limit(lens: Ints, limits: Ints, places: Sequence[str]) -> None:
    refuse_first(lens > limits, places, lambda i: f"output_len is {lens[i]}, above max_new_tokens {limits[i]}")


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file, each with its place ("FILE: line 7"); blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (RecursionError, ValueError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
            raise InputError(f"{where}: not JSON ({reason})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be an object with request_id, num_prompt_tokens and output_len")
        yield where, row


def _integer(row: dict[str, Any], field: str, where: str) -> int:
    value = row.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: {field} is {value!r}, must be an integer")
    if value > MAX_TOKENS:
        raise InputError(f"{where}: {field} is above {MAX_TOKENS}, more than can be counted")
    return value


def _request(row: dict[str, Any], where: str, cap: int, edges: Ints | None, named: PrefixNames) -> Request:
    cap = _integer(row, "max_new_tokens", where) if row.get("max_new_tokens") is not None else cap
    optional: dict[str, Any] = {
        field: _integer(row, field, where)
        for field in ("output_len_upper_bound", "output_len_prediction")
        if row.get(field) is not None
    }
    arrival = _arrival(row, where)
    lower = _integer(row, "output_len_lower_bound", where) if row.get("output_len_lower_bound") is not None else 1
    if optional.get("output_len_prediction", 1) < 1:
        raise InputError(f"{where}: output_len_prediction is {optional['output_len_prediction']}, must be >= 1")
    upper = optional.get("output_len_upper_bound", lower)
    if upper < lower:
        raise InputError(f"{where}: output_len_upper_bound is {upper}, must be >= {lower} (output_len_lower_bound)")
    forecast = _forecast(row, where, edges)
    num_prompt_tokens = _integer(row, "num_prompt_tokens", where)
    optional |= {"group": _name(row, "group", where), "service_class": _name(row, "class", where)}
    optional["request_id"] = _name(row, "request_id", where) if row.get("request_id") is not None else where
    optional["priority"] = _integer(row, "priority", where) if row.get("priority") is not None else 0
    if row.get("prefix"):
        optional["prefix_tokens"], names = _prefix(row, where, num_prompt_tokens)
        optional["prefix"] = named.chain(names)
    try:
        return Request(
            num_prompt_tokens=num_prompt_tokens,
            max_new_tokens=cap,
            arrival_time=arrival,
            output_len_lower_bound=min(lower, cap),
            forecast=forecast,
            **optional,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _name(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InputError(f"{where}: {field} is {value!r}, must be a text")
    return "" if value is None else str(value)


def _arrival(row: dict[str, Any], where: str) -> float:
    arrival = row.get("arrival_time", 0)
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not abs(arrival) <= MAX_TIME:
        raise InputError(
            f"{where}: arrival_time is {arrival!r}, must be a number of seconds or iterations, {MAX_TIME:g} at most"
        )
    return float(arrival)


def _prefix(row: dict[str, Any], where: str, num_prompt_tokens: int) -> tuple[int, list[str | int]]:
    """Return the tokens that a name stands for, and the names of the fields prefix and prefix_tokens."""
    names = row["prefix"]
    if not isinstance(names, list) or not all(isinstance(each, str | int) for each in names):
        raise InputError(f"{where}: prefix must be a list of names, texts or whole numbers")
    given = row.get("prefix_tokens") is not None
    tokens = _integer(row, "prefix_tokens", where) if given else DEFAULT_PREFIX_TOKENS
    if tokens < 1:
        raise InputError(f"{where}: prefix_tokens is {tokens}, must be >= 1")
    if (len(names) - 1) * tokens >= num_prompt_tokens:
        raise InputError(
            f"{where}: prefix has {len(names)} names of {tokens} tokens each, more than the prompt's "
            f"{num_prompt_tokens}; say in prefix_tokens how many a name stands for"
        )
    return tokens, names


def _renewals(row: dict[str, Any], where: str, edges: Ints | None) -> list[Renewal]:
    """Return the field renewals: a list of [tokens out, survival] or [tokens out, survival, lower bound]."""
    entries = row["renewals"]
    if not isinstance(entries, list) or not all(isinstance(each, list) and len(each) in (2, 3) for each in entries):
        raise InputError(f"{where}: renewals must be a list of [tokens out, survival] or [tokens out, survival, bound]")
    found: list[Renewal] = []
    for count, values, *bound in entries:
        if isinstance(count, bool) or not isinstance(count, int) or count <= (found[-1].num_generated if found else -1):
            raise InputError(f"{where}: renewals: tokens out are {count!r}, must be whole, at least 0, and rise")
        forecast = _forecast({"survival": values}, f"{where}: renewals after {count} tokens", edges)
        if forecast is not None:
            lower = bound[0] if bound else int(forecast.conditional_quantile(count, 0.1))
            if isinstance(lower, bool) or not isinstance(lower, int) or lower < 1:
                raise InputError(
                    f"{where}: renewals after {count} tokens: bound is {lower!r}, must be whole, at least 1"
                )
            found.append(Renewal(count, forecast, lower))
    return found


def _forecast(row: dict[str, Any], where: str, edges: Ints | None) -> Forecast | None:
    values = row.get("survival")
    if values is None:
        return None
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
    if not numbers or any(later > earlier for earlier, later in pairwise(values)):
        raise InputError(f"{where}: survival must be a list of probabilities that never rises")
    if edges is None:
        return None
    if len(values) != len(edges) or values[0] != 1:
        raise InputError(f"{where}: survival must have {len(edges)} values from 1 on, one for each edge of the bins")
    return Forecast(edges, np.asarray(values, dtype=np.float64), _tail(row, where))


def _tail(row: dict[str, Any], where: str) -> float | None:
    """Return the field tail, the index of what lies beyond the last edge; None where it is absent."""
    value = row.get("tail")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_TAIL <= value <= MAX_TAIL:
        raise InputError(f"{where}: tail is {value!r}, must be a number from {MIN_TAIL} to {MAX_TAIL}")
    return float(value)
