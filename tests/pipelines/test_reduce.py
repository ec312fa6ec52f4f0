"""`amin reduce`, and training from what it leaves."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from predictor.quality import bounds_by_model
from predictor.records.prompt_table import prompt_table
from predictor.records.records import read_records
from predictor.training.checkpoint import load_predictor

QUICK = "--head-epochs 3 --max-length 256 --num-bins 16 --no-progress --accelerator cpu"


@pytest.fixture(scope="module")
def reduced_folder(run_folder: Path, records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the tiny run without their text."""
    out = tmp_path_factory.mktemp("reduced") / "log"
    words = ["reduce", "--data", str(records_file), "--encoder", str(run_folder), "--out", str(out), "--no-progress"]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def trained(reduced_folder: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on it."""
    out = tmp_path_factory.mktemp("from-reduced") / "run"
    words = ["train", "--data", str(reduced_folder), "--encoder", str(run_folder), "--out", str(out)]
    assert main([*words, *QUICK.split()]) == 0
    return out


def test_nothing_of_a_prompt_is_left(reduced_folder: Path, records_file: Path) -> None:
    """Names are random, and no text column or array holds a word of a prompt; lengths and splits are those given."""
    given, left = read_records(records_file), read_records(reduced_folder / "records.parquet")
    words = {word.lower() for prompt in given.prompts for word in prompt.split() if len(word) > 3}
    table = pq.read_table(reduced_folder / "records.parquet")
    texts = [str(value) for name in table.column_names for value in table[name].to_pylist()]
    with np.load(reduced_folder / "states.npz") as stored:
        texts += [str(name) for name in stored["names"]]
        assert {name for name in stored.files if stored[name].dtype.kind not in "fiu"} == {"names"}
    texts.append((reduced_folder / "reduced.json").read_text())
    assert not [word for word in words if any(word in text.lower() for text in texts)]
    assert len(set(left.prompts)) == len(set(given.prompts))
    order = {split: sorted(map(tuple, _of(given, split))) for split in ("train", "validation", "calibration", "test")}
    assert order == {split: sorted(map(tuple, _of(left, split))) for split in order}


def _of(records: object, split: str) -> list[list[int]]:
    rows = zip(records.output_lens, records.splits, strict=True)  # type: ignore[attr-defined]
    return [draws.tolist() for draws, name in rows if name == split]


def test_the_predictor_reads_text_as_it_read_the_states(trained: Path, records_file: Path) -> None:
    """What was measured from states in half precision is what the saved predictor reaches on the prompts themselves."""
    stored = json.loads((trained / "metrics.json").read_text())["test"]
    length_predictor = load_predictor(trained)
    records = read_records(records_file)
    test = records.select(np.flatnonzero(np.asarray(records.splits) == "test"))
    table = prompt_table(test, length_predictor.spec.models)
    survivals = length_predictor.survivals(table.prompts)
    quality = bounds_by_model(length_predictor.spec, survivals, table, 0.1)["made-up"].quality(0.1, 256)
    assert quality.pinball_loss == pytest.approx(stored["pinball_loss"], rel=0.02)
    assert quality.coverage == pytest.approx(stored["coverage"], abs=0.03)
    assert stored["kendall_tau"] > 0.2


def test_a_run_without_text_exports_as_it_was_trained(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its splits have no prompts, so what shifts the quantiles is refused; fp32 is not."""
    assert not (trained / "calibration.parquet").exists()
    assert main(["export", str(trained), "--out", str(tmp_path / "small"), "--precision", "int8"]) == 2
    assert "calibration.parquet: no such file" in capsys.readouterr().err
    assert main(["export", str(trained), "--out", str(tmp_path / "whole"), "--no-progress"]) == 0


@pytest.mark.parametrize(
    ("option", "told"),
    [("--epochs 2", "--epochs: must be 0"), ("--epochs 0 --teacher {run}", "--teacher: takes the text")],
)
def test_what_takes_text_is_refused_before_any_work(
    option: str, told: str, reduced_folder: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, nothing written."""
    words = ["train", "--data", str(reduced_folder), "--out", str(tmp_path / "run"), "--encoder", str(run_folder)]
    assert main([*words, *option.format(run=run_folder).split(), *QUICK.split()]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_encoder_is_refused(
    reduced_folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """States are read by the encoder that made them alone."""
    words = ["train", "--data", str(reduced_folder), "--out", str(tmp_path / "run"), "--encoder", str(trained)]
    assert main([*words, *QUICK.split()]) == 2
    assert "another encoder than" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "records.parquet"])
@pytest.mark.parametrize(
    "words",
    [
        "reduce --data {log} --out {out}",
        "predict {run} --data {log} --out {out}",
        "tune {run} --data {log} --kv-budget 900",
        "collect --prompts {log} --out {out}",
        "evaluate --predictor {run} --prompts {log} --out {out}",
    ],
)
def test_what_reads_prompts_refuses_a_log_without_text(
    words: str, name: str, reduced_folder: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its prompts are random names, which a predictor would take for text."""
    filled = words.format(log=reduced_folder / name, run=run_folder, out=tmp_path / "out")
    assert main(filled.split()) == 2
    assert "has no text, since amin reduce left it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_reducing_replaces_nothing_but_a_reduced_log(
    reduced_folder: Path, records_file: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a folder of the user's, not the log itself in it, even if its name is one of ours."""
    out = tmp_path / "mine"
    out.mkdir()
    log = out / "records.parquet"
    log.write_bytes(records_file.read_bytes())
    words = ["reduce", "--data", str(log), "--encoder", str(run_folder), "--out", str(out), "--no-progress", "--force"]
    assert main(words) == 2
    assert "holds records.parquet, which no amin reduce wrote" in capsys.readouterr().err
    assert log.read_bytes() == records_file.read_bytes()
    again = ["reduce", "--data", str(records_file), "--encoder", str(run_folder), "--out", str(reduced_folder)]
    assert main([*again, "--no-progress", "--force"]) == 0
    (reduced_folder / "thesis.txt").write_text("years of work")
    assert main([*again, "--no-progress", "--force"]) == 2
    assert "holds thesis.txt" in capsys.readouterr().err
    (reduced_folder / "thesis.txt").unlink()
