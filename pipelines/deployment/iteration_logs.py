"""Iterations that a server itself reports: measured one by one, or as vLLM's statistics over ten seconds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.deployment.fit import Floats
from scheduler.errors import InputError
from scheduler.workload import json_rows

COLUMNS = ("seconds", "prefill_tokens", "decoding_requests", "kv_tokens")
_STATISTICS = re.compile(
    r"prompt throughput: ([\d.]+) tokens/s, .*generation throughput: ([\d.]+) tokens/s, .*"
    r"Running: (\d+) reqs.*KV cache usage: ([\d.]+)%"
)
_KV_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True, slots=True)
class IterationLog:
    """Iterations of a server.

    Attributes:
        iterations: Seconds, prefill tokens, decoding requests and KV tokens, shape [n, 4].
        kv_tokens: What its KV cache holds, where the log says so.
        source: What kind of log it is.
    """

    iterations: Floats
    kv_tokens: int | None
    source: str


def read_iterations(path: Path, kv_tokens: int | None) -> IterationLog:
    """Return the iterations of a log.

    Args:
        path: What `amin evaluate` measured (its folder, or a .npz of its `runs`), JSONL with the columns `COLUMNS`, or
            the text that `vllm serve` logs (its statistics are on by default).
        kv_tokens: Of the cache, for a vLLM log without the line that says it.

    Raises:
        InputError: There is no such file, or no iteration in it.
    """
    if path.is_dir() or path.suffix == ".npz":
        files = sorted((path / "runs").glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: no runs/*.npz; give a folder that amin evaluate wrote")
        return IterationLog(np.concatenate([_measured(file) for file in files]), None, "iterations of amin evaluate")
    if path.suffix == ".jsonl":
        rows = [[_number(row, name, place) for name in COLUMNS] for place, row in json_rows(path)]
        return IterationLog(np.array(rows).reshape(-1, len(COLUMNS)), None, "a log of iterations")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    said = _KV_SIZE.search(text)
    size = int(said[1].replace(",", "")) if said else kv_tokens
    if size is None:
        raise InputError(f"{path}: no line with the KV cache size; give --kv-tokens")
    iterations = list(_statistics(text, size))
    if not iterations:
        raise InputError(f"{path}: no statistics of a busy vLLM (Running: N reqs); give a log of vllm serve or JSONL")
    return IterationLog(np.array(iterations), size, "vLLM's statistics, ten seconds a line")


def _statistics(text: str, kv_tokens: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield the mean iteration of each line: N running requests that get G tokens a second make G/N iterations."""
    for match in _STATISTICS.finditer(text):
        prompt, generated, running, usage = (float(value) for value in match.groups())
        if running and generated:
            seconds = running / generated
            yield seconds, prompt * seconds, running, usage / 100 * kv_tokens


def _measured(file: Path) -> Floats:
    try:
        with np.load(file, allow_pickle=False) as columns:
            return np.asarray(columns["iterations"], dtype=np.float64).reshape(-1, len(COLUMNS))
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"{file}: not a run of amin evaluate ({error})") from None


def _number(row: dict[str, object], name: str, place: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: {name} is {value!r}, must be a number")
    return float(value)
