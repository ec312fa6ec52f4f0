from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.studies.forced_requests import choose


def test_only_short_records_of_the_model_and_split_stay(chat_model: Path, tmp_path: Path) -> None:
    """Long prompts, long first answers, other models and splits go."""
    rows = [
        ("m", "test", "a poem", [9, 99]),
        ("m", "test", "a poem " * 50, [9]),
        ("m", "test", "a long poem", [99, 9]),
        ("other", "test", "a poem", [9]),
        ("m", "train", "a poem", [9]),
    ]
    columns = dict(zip(("model", "split", "prompt", "output_lens"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "records.parquet")
    out = tmp_path / "out.parquet"
    assert choose(tmp_path / "records.parquet", "m", "test", str(chat_model), 40, 50, out) == (3, 1)
    assert pq.read_table(out).column("output_lens").to_pylist() == [[9, 99]]
