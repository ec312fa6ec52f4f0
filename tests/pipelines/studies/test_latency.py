import json
from pathlib import Path

import pytest

from pipelines.studies.latency import main


def test_latency_measures_time_and_quality_of_each_predictor(
    run_folder: Path, exports: dict[str, Path], records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and its exports; the quality is what the export's manifest states."""
    folders = [str(folder) for folder in (run_folder, exports["fp32"], exports["int8"])]
    main([*folders, "--data", str(records_file), "--split", "test", "--rounds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "latency.json").read_text())["predictors"]
    assert [row["precision"] for row in found] == ["torch", "fp32", "int8"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in found)
    assert found[2]["megabytes"] < found[1]["megabytes"]
    manifest = json.loads((exports["int8"] / "manifest.json").read_text())
    assert found[2]["quality"] == manifest["measured"]
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n") == 4
