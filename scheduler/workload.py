"""Workloads: requests with arrivals, and the true lengths that only an executor may see."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.errors import InputError
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests and, apart from them, their true output lengths by index."""

    requests: list[Request]
    output_lens: list[int]


def read_workload(path: Path, max_new_tokens: int | None = None) -> Workload:
    """Return the workload of a JSONL file (fields: docs/architecture.md).

    Args:
        path: A line per request.
        max_new_tokens: For lines without their own; by default the largest output length of the file, rounded up
            to a power of two, as a server with one limit for all would have.

    Raises:
        InputError: The file is missing or empty, or a line is wrong: names the line and the field.
    """
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path}: no request")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, must be >= 1")
    output_lens = [_integer(row, "output_len", where) for where, row in rows]
    for (where, _), output_len in zip(rows, output_lens, strict=True):
        if output_len < 1:
            raise InputError(f"{where}: output_len is {output_len}, must be >= 1")
    cap = max_new_tokens or 1 << (max(output_lens) - 1).bit_length()
    requests = [_request(row, where, cap) for where, row in rows]
    for (where, _), request, output_len in zip(rows, requests, output_lens, strict=True):
        if output_len > request.max_new_tokens:
            raise InputError(f"{where}: output_len is {output_len}, above max_new_tokens {request.max_new_tokens}")
    return Workload(requests, output_lens)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
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
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be an object with request_id, num_prompt_tokens and output_len")
        yield where, row


def _integer(row: dict[str, Any], field: str, where: str) -> int:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: {field} is {value!r}, must be an integer")
    return value


def _request(row: dict[str, Any], where: str, cap: int) -> Request:
    cap = _integer(row, "max_new_tokens", where) if row.get("max_new_tokens") is not None else cap
    optional = {
        field: _integer(row, field, where)
        for field in ("output_len_upper_bound", "output_len_prediction")
        if row.get(field) is not None
    }
    arrival = row.get("arrival_time", 0)
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not -1e300 < arrival < 1e300:
        raise InputError(f"{where}: arrival_time is {arrival!r}, must be a number")
    lower = _integer(row, "output_len_lower_bound", where) if row.get("output_len_lower_bound") is not None else 1
    upper = optional.get("output_len_upper_bound", lower)
    if upper < lower:
        raise InputError(f"{where}: output_len_upper_bound is {upper}, must be >= {lower} (output_len_lower_bound)")
    try:
        return Request(
            request_id=where if row.get("request_id") is None else str(row["request_id"]),
            num_prompt_tokens=_integer(row, "num_prompt_tokens", where),
            max_new_tokens=cap,
            arrival_time=float(arrival),
            output_len_lower_bound=min(lower, cap),
            survival=_survival(row, where),
            **optional,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _survival(row: dict[str, Any], where: str) -> NDArray[np.float64] | None:
    values = row.get("survival")
    if values is None:
        return None
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
    if not numbers or any(later > earlier for earlier, later in pairwise(values)):
        raise InputError(f"{where}: survival must be a list of probabilities that never rises")
    return np.asarray(values, dtype=np.float64)


def poisson_arrivals(num_requests: int, rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return sorted arrival times of a Poisson process, `rate` requests per unit of time, shape [num_requests]."""
    return np.cumsum(rng.exponential(1 / rate, num_requests))


def arrival_times(arrivals: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the arrival times that a specification names, sorted, shape [count].

    Args:
        arrivals: "all-at-once", "poisson:RATE" (requests per unit of time), or a file with a time a line.
        count: Number of requests.
        rng: For random arrivals.

    Raises:
        InputError: It is malformed, or its file has too few times.
    """
    if arrivals == "all-at-once":
        return np.zeros(count)
    if arrivals.startswith("poisson:"):
        try:
            rate = float(arrivals.removeprefix("poisson:"))
        except ValueError:
            rate = 0.0
        if not 0 < rate < float("inf"):
            raise InputError(
                f"arrivals are {arrivals!r}: the rate must be a number of requests per unit of time above 0"
            )
        return poisson_arrivals(count, rate, rng)
    path = Path(arrivals)
    if not path.is_file():
        raise InputError(f"arrivals are {arrivals!r}: give all-at-once, poisson:RATE, or a file with a time a line")
    try:
        times = np.array([float(line) for line in path.read_text().split()])
    except ValueError as error:
        raise InputError(f"{path}: {error}; every line must be a time") from error
    if len(times) < count or not ((times >= 0) & np.isfinite(times)).all():
        raise InputError(f"{path}: {len(times)} times for {count} requests; give one each, finite and not negative")
    return np.sort(times[:count])
