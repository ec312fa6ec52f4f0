"""The study of bursts."""

import json
from pathlib import Path

import pytest

from pipelines.studies.burst import main


def test_every_case_of_a_burst_is_measured(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first as prompts came, the others by length; a row each on the terminal and in the file."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "word " * (1 + i % 5)}) + "\n" for i in range(9)))
    options = ["--prompts", str(prompts), "--size", "6", "--batches", "2,4", "--rounds", "1", "--out", str(tmp_path)]
    main([str(exports["fp32"]), *options])
    stored = json.loads((tmp_path / "burst.json").read_text())
    assert stored["size"] == 6
    cases = [
        (case["case"]["batch_size"], case["case"]["at_once"], case["case"]["by_length"]) for case in stored["cases"]
    ]
    assert cases == [(2, 1, False), (2, 1, True), (4, 1, True), (2, 2, True), (4, 2, True)]
    assert all(case["per_second"] > 0 and case["per_processor_second"] > 0 for case in stored["cases"])
    assert len(capsys.readouterr().out.splitlines()) == 7
