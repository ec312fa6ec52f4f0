"""Made-up conversations in the schema of LMSYS-Chat-1M, in bulk, and a reader that measures its own memory.

python tests/predictor/records/made_up_chats.py write FILE COUNT
python tests/predictor/records/made_up_chats.py read FILE TOKENIZER
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS_PER_GROUP = 50_000


def write_chats(path: Path, count: int, seed: int = 0) -> None:
    """Write conversations of one to three exchanges, prompts of 20 to some 10,000 characters, one in ten templated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("etaoinshrdlucmfwypvbgkjqxz"), rng.integers(2, 10))) for _ in range(20_000)]
    pool = " ".join(rng.choice(words, min(1_000_000 + 100 * count, 6_000_000), p=_zipf(len(words))).tolist())
    writer = None
    for start in range(0, count, ROWS_PER_GROUP):
        rows = [_chat(index, pool, rng) for index in range(start, min(start + ROWS_PER_GROUP, count))]
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _zipf(size: int) -> Any:
    weights = 1.0 / np.arange(1, size + 1)
    return weights / weights.sum()


def _chat(index: int, pool: str, rng: np.random.Generator) -> dict[str, Any]:
    def text(mean: float, limit: int) -> str:
        size = int(min(rng.lognormal(np.log(mean), 1.0), limit)) + 20
        start = int(rng.integers(0, len(pool) - size))
        return pool[start : start + size]

    turns = []
    for _ in range(int(rng.integers(1, 4))):
        prompt = text(150, 10_000)
        turns += [{"content": prompt, "role": "user"}, {"content": text(600, 8_000), "role": "assistant"}]
    if index % 10 == 0:
        turns[0]["content"] = (
            f"Write an introduction of over 200 words for the chemical company {text(3, 10)} in style."
        )
    return {
        "conversation_id": f"{index:032x}",
        "model": "vicuna-13b",
        "conversation": turns,
        "turn": len(turns) // 2,
        "language": "English" if index % 3 else "Portuguese",
        "openai_moderation": [{"flagged": False, "categories": "none " * 20} for _ in turns],
        "redacted": index % 50 == 0,
    }


def measure(data: str, tokenizer: str) -> dict[str, Any]:
    """Return the report on `data`, the seconds, and the peak of resident memory in bytes, before and after."""
    import pyarrow.parquet  # noqa: F401 - so that what imports cost is in the base
    import tokenizers  # noqa: F401
    import tqdm  # noqa: F401

    from predictor.records.chats import load_data
    from predictor.splits.data_report import split_and_audit

    before, start = _peak(), time.perf_counter()
    loaded = load_data(data, None, tokenizer, shown=True)
    read, loaded_peak = time.perf_counter() - start, _peak()
    _, report = split_and_audit(loaded, 0, shown=True)
    seconds = {"read": round(read, 1), "all": round(time.perf_counter() - start, 1)}
    peaks = {"base": before, "read": loaded_peak, "all": _peak()}
    return {"seconds": seconds, "peaks": peaks, "line": report.line(), "report": report.to_dict()}


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # the other count starts at the size of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_chats(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
