"""A new served model: other heads against new ones, on the same prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.studies.predictor.new_model import INIT, NEW, Start, chosen, few, table
from predictor.errors import InputError
from predictor.records.records import Records, records_from_rows, write_records
from predictor.records.rows import read_rows
from predictor.training.config import TrainConfig

CONFIG = TrainConfig(epochs=0, max_length=256, num_bins=16, progress=False, accelerator="cpu")


@pytest.fixture(scope="module")
def of_another(records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up records, answered by a model that the run does not know."""
    records = records_from_rows(read_rows(records_file, one_model=False))
    path = tmp_path_factory.mktemp("new") / "records.parquet"
    write_records(replace(records, models=("another",) * len(records)), path)
    return path


@pytest.fixture(scope="module")
def records(of_another: Path) -> Records:
    """Those records, read as the study reads them."""
    return chosen(of_another, ["another"], [])


def test_prompts_come_from_their_own_splits(records: Records) -> None:
    """As many as asked for, none twice, another choice with another seed, and the whole test split."""
    splits = few(records, "another", 60, 0)
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 33, "validation": 9, "calibration": 18, "test": 40,
    }  # fmt: skip
    for name, part in splits.items():
        assert set(part.splits or ()) == {name}
        assert len(set(part.prompt_ids)) == len(part)
    assert set(few(records, "another", 20, 0)["train"].prompt_ids) < set(splits["train"].prompt_ids)
    assert set(few(records, "another", 60, 1)["train"].prompt_ids) != set(splits["train"].prompt_ids)
    with pytest.raises(InputError, match="ask for fewer"):
        few(records, "another", 3000, 0)


def test_the_heads_of_another_are_ahead_where_prompts_are_few(run_folder: Path, records: Records) -> None:
    """The run's heads know these very prompts; new ones have seen 33 of them for two epochs, and repeat themselves."""
    splits = few(records, "another", 60, 0)
    start = Start.read(run_folder, [splits], CONFIG)
    measured = {(60, 2, heads, "another", 0): start.measured(splits, 2, 0, heads) for heads in (INIT, NEW)}
    known, new = measured.values()
    assert known.kendall_tau > new.kendall_tau
    assert start.measured(splits, 2, 0, NEW) == new
    first, second = (line.split("|") for line in table(measured).splitlines()[2:])
    assert first[-2].strip() == "1 of 1"
    assert second[-2].strip() == "0 of 1"


def test_the_whole_network_trains_on_text(run_folder: Path, records: Records) -> None:
    """From the run and from its encoder; the run stays as it was."""
    before = (run_folder / "predictor" / "model.safetensors").read_bytes()
    splits = few(records, "another", 60, 0)
    start = Start.read(run_folder, [splits], replace(CONFIG, epochs=1))
    assert np.isfinite([start.measured(splits, 2, 0, heads).pinball_loss for heads in (INIT, NEW)]).all()
    assert (run_folder / "predictor" / "model.safetensors").read_bytes() == before


def test_a_start_that_knows_the_model_is_refused(run_folder: Path, records_file: Path, of_another: Path) -> None:
    """It would not be new; nor is a model without rows."""
    with pytest.raises(InputError, match="knows made-up already"):
        Start.read(run_folder, [few(chosen(records_file, ["made-up"], []), "made-up", 60, 0)], CONFIG)
    with pytest.raises(InputError, match="no row of missing"):
        chosen(of_another, ["another", "missing"], [])
