import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.studies import paper


def test_the_papers_experiments_on_a_small_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every claim gets a figure and a verdict, every run a row, and what must hold at any size holds."""
    monkeypatch.setattr(paper, "NUM_REQUESTS", 400)
    monkeypatch.setattr(paper, "CURVE_SIZE", 1000)
    monkeypatch.setattr(paper, "CONFIRMED_SIZE", 1000)
    monkeypatch.setattr(paper, "SHARES", (0.1, 0.9))
    lengths = tmp_path / "lengths.parquet"
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"n_tok": np.clip(rng.lognormal(4.5, 1, 3000), 1, 511).astype(np.int64)}), lengths)
    out = tmp_path / "out"
    assert main(["paper", "--lengths", str(lengths), "--seeds", "2", "--quick", "--out", str(out)]) == 0
    results = json.loads((out / "paper.json").read_text())
    printed = capsys.readouterr().out
    verdicts = {"holds", "holds only for amin", "holds only for amin-eviction", "does not hold"}
    assert all(claim["claim"] in printed and claim["verdict"] in verdicts for claim in results["claims"])
    assert {run["experiment"] for run in results["runs"]} == {
        "latency", "sensitivity", "ratio", "confirmed", "growth", "amax",
    }  # fmt: skip
    assert all(run["ratio_to_hindsight"] == 1 for run in results["runs"] if run["policy"] == "hindsight")
    amax = [run for run in results["runs"] if run["experiment"] == "amax" and run["policy"] == "amax"]
    # Hindsight's last batch is at most a tenth of these requests, see AMAX_SIZE.
    assert all(0.9 * run["x"] <= run["ratio_to_hindsight"] <= 1.05 * run["x"] for run in amax)
    assert results["lengths"] == "lengths.parquet"
    for name in ("latency", "ratio", "growth"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "message"), [(["--seeds", "0"], "--seeds: must be at least 1"), (["--lengths", "no.csv"], "no.csv")]
)
def test_bad_input_is_one_line(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and nothing is written."""
    assert main(["paper", *more, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
