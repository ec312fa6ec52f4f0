"""The study of bursts."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.simulate.workload_file import write_workload
from pipelines.studies.burst import gains_by_rate, main
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.workload import Workload, workload_from_columns


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


def test_late_predictions_lose_a_part_of_the_gain(tmp_path: Path) -> None:
    """Most is gained where every prediction is there at once, least at the slowest rate."""
    rng = np.random.default_rng(0)
    prompts, outputs = lmsys_shaped(150, rng)
    plain = workload_from_columns([f"r{i}" for i in range(150)], prompts, outputs, np.zeros(150))
    edges = np.concatenate([[0], np.unique(np.geomspace(1, 600, 40).astype(np.int64))])
    lens = plain.output_lens
    path = tmp_path / "workload.jsonl"
    write_workload(path, Workload(synthesize(plain.requests, lens, "noise:0.4", rng, edges), lens))
    gains = gains_by_rate(path, 256, 0.008)
    assert list(gains) == ["inf", "1500", "400", "133"]
    assert gains["inf"] > 1
    assert gains["inf"] > gains["400"] > gains["133"]
