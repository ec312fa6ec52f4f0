"""`amin predict`: what it writes, and under which name."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from scheduler.workload import read_workload


def predict(run_folder: Path, data: Path, out: Path, *words: object) -> int:
    """Return the exit code."""
    argv = ["predict", run_folder, "--data", data, "--out", out, "--no-progress", *words]
    return main([str(word) for word in argv])


@pytest.fixture
def served(records_file: Path, tmp_path: Path) -> Path:
    """A parquet file of records whose prompt tokens are floats, as a column with gaps once had them."""
    rows = [json.loads(line) for line in records_file.read_text().splitlines()[:12]]
    table = pa.Table.from_pylist(
        [{**row, "num_prompt_tokens": 7.0 + i, "class": ("even", "odd")[i % 2]} for i, row in enumerate(rows)]
    )
    pq.write_table(table, tmp_path / "served.parquet")
    return tmp_path / "served.parquet"


def test_a_workload_has_all_bounds_and_reads_back(run_folder: Path, served: Path, tmp_path: Path) -> None:
    """Upper ones too, in order, and a whole float is a count."""
    workload = tmp_path / "w.jsonl"
    assert predict(run_folder, served, tmp_path / "p.jsonl", "--workload", workload) == 0
    edges = np.asarray(json.loads((tmp_path / "w.jsonl.bins.json").read_text()), dtype=np.int64)
    read = read_workload(workload, edges=edges)
    assert len(read.requests) == 36
    assert [request.num_prompt_tokens for request in read.requests[::3]] == list(range(7, 19))
    groups = [request.group for request in read.requests]
    assert len(set(groups)) == 12
    assert groups == [group for group in groups[::3] for _ in range(3)]  # the draws of a row are siblings
    assert {request.service_class for request in read.requests} == {"even", "odd"}
    for request in read.requests:
        assert request.output_len_upper_bound is not None
        assert request.output_len_prediction is not None
        assert request.output_len_lower_bound <= request.output_len_prediction <= request.output_len_upper_bound
        assert request.forecast is not None
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["output_len_lower_bound"] for line in lines] == [
        request.output_len_lower_bound for request in read.requests[::3]
    ]


def test_a_missing_count_of_prompt_tokens_is_named_by_its_row(
    run_folder: Path, served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written then, neither bounds nor workload."""
    rows = pq.read_table(served).to_pylist()
    rows[5]["num_prompt_tokens"] = None
    pq.write_table(pa.Table.from_pylist(rows), served)
    assert predict(run_folder, served, tmp_path / "p.jsonl", "--workload", tmp_path / "w.jsonl") == 2
    error = capsys.readouterr().err
    assert "row 6" in error
    assert "num_prompt_tokens" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served.parquet"]


def test_lines_are_not_written_under_the_name_of_another_format(
    run_folder: Path, served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And files that are there stay, the workload's edges among them, unless --force."""
    for name in ("p.parquet", "p.csv", "p.PARQUET"):
        assert predict(run_folder, served, tmp_path / name) == 2
        assert "would be JSON lines under that name; call it" in capsys.readouterr().err
    workload = tmp_path / "w.jsonl"
    (tmp_path / "w.jsonl.bins.json").write_text("[]")
    assert predict(run_folder, served, tmp_path / "p.jsonl", "--workload", workload) == 2
    assert "w.jsonl.bins.json is there already" in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
    assert predict(run_folder, served, tmp_path / "p.jsonl", "--workload", workload, "--force") == 0
    assert len(json.loads((tmp_path / "w.jsonl.bins.json").read_text())) > 2
