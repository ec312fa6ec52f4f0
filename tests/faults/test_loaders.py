"""Data files of every shape with flipped, lost and doubled bytes: read, or refused in one line, never a traceback."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.simulate.traces import read_trace
from predictor.errors import InputError
from predictor.records.chats import load_data
from predictor.records.records import read_prompts
from scheduler.errors import InputError as SchedulerInputError

NUM_TRIALS = 50 * int(os.environ.get("AMIN_FAULT_TRIALS", "0")) or 5
"""Damaged copies of each file; 1,000 in `make test-faults`."""

CHAT = [
    {"conversation_id": f"c{i}", "model": "m", "language": "English", "redacted": False,
     "conversation": [{"role": "user", "content": f"write {i}"}, {"role": "assistant", "content": "river night " * i}]}
    for i in range(1, 6)
]  # fmt: skip
RECORDS = [
    {
        "prompt": f"Why {i}?",
        "output_lens": [3, 4 + i],
        "is_truncated": [False, i == 3],
        "model": "m",
        "temperature": 0.5,
    }
    for i in range(6)
]
LOGS = [
    {"id": f"x{i}", "startTime": f"2026-11-27T10:00:0{i}Z", "model": "m",
     "request": {"messages": [{"role": "user", "content": "Name a prime."}], "max_tokens": 9, "tools": [{}]},
     "response": {"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}],
                  "usage": {"prompt_tokens": 9, "completion_tokens": 5 + i}}}
    for i in range(6)
]  # fmt: skip
OWN = [
    {
        "request_id": f"r{i}",
        "num_prompt_tokens": 3,
        "output_len": 5 + i,
        "arrival_time": i / 2,
        "output_len_lower_bound": 2,
    }
    for i in range(6)
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,396,109\n"


def write_seeds(folder: Path) -> list[Path]:
    """Write a small file of each shape and return them."""
    lines = "".join(json.dumps(row) + "\n" for row in CHAT)
    texts: dict[str, str | bytes] = {
        "chats.jsonl": lines,
        "chats.json": json.dumps(CHAT),
        "chats.jsonl.gz": gzip.compress(lines.encode()),
        "records.jsonl": "".join(json.dumps(row) + "\n" for row in RECORDS),
        "object.json": json.dumps({"data": RECORDS}, indent=1),
        "logs.jsonl": "".join(json.dumps(row) + "\n" for row in LOGS),
        "own.jsonl": "".join(json.dumps(row) + "\n" for row in OWN),
        "azure.csv": AZURE,
        "bench.json": json.dumps(
            {"input_lens": [3, 4], "output_lens": [5, 6], "start_times": [1.5, 2.5], "errors": ["", ""]}
        ),
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name, rows in (("chats.parquet", CHAT), ("records.parquet", RECORDS)):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    with (
        pa.OSFile(str(folder / "records.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.Table.from_pylist(RECORDS).schema) as out,
    ):
        out.write_table(pa.Table.from_pylist(RECORDS))
    with pa.CompressedOutputStream(str(folder / "azure.csv.zst"), "zstd") as sink:
        sink.write(AZURE.encode())
    return sorted(folder.iterdir())


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with some bytes flipped, a stretch lost or doubled, or its end cut off."""
    data = bytearray(content)
    kind = int(rng.integers(4))
    if kind == 0:
        for place in rng.integers(0, len(data), int(rng.integers(1, 5))):
            data[place] ^= 1 << int(rng.integers(8))
    start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 40))
    if kind == 1:
        del data[start : start + size]
    elif kind == 2:
        data[start:start] = data[start : start + size]
    elif kind == 3:
        del data[start:]
    return bytes(data)


def load(path: Path, tokenizer: str) -> list[str]:
    """Read a file in every way there is, and return what is wrong with the refusals: more than a line, no file name."""
    wrong: list[str] = []
    ways: dict[str, Any] = {
        "train": lambda: load_data(str(path), None, tokenizer),
        "ask": lambda: read_prompts(path),
        "simulate": lambda: read_trace(path, None),
    }
    for name, way in ways.items():
        try:
            way()
        except (InputError, SchedulerInputError) as refusal:
            if "\n" in str(refusal) or path.name not in str(refusal):
                wrong.append(f"{name}: {refusal!r}")
    return wrong


SHAPES = (
    "azure.csv", "azure.csv.zst", "bench.json", "chats.json", "chats.jsonl", "chats.jsonl.gz", "chats.parquet",
    "logs.jsonl", "object.json", "own.jsonl", "records.arrow", "records.jsonl", "records.parquet",
)  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, tmp_path: Path, tiny_encoder: Path) -> None:
    """By training, by what asks for prompts and by the simulation; the line names the file."""
    (tmp_path / "whole").mkdir()
    seeds = {path.name: path for path in write_seeds(tmp_path / "whole")}
    assert set(seeds) == set(SHAPES)
    assert load(seeds[name], str(tiny_encoder)) == []
    content, rng = seeds[name].read_bytes(), np.random.default_rng(len(name))
    for _ in range(NUM_TRIALS):
        path = tmp_path / name
        path.write_bytes(damage(content, rng))
        assert load(path, str(tiny_encoder)) == []
