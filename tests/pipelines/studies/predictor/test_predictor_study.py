"""The tables of docs/results/predictor.md: what they calibrate on is never what they measure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.studies.predictor import tables as predictor_tables
from pipelines.studies.predictor.study import records_of_all
from pipelines.studies.predictor.tables import Predicted
from predictor.records.records import Records


@pytest.fixture(scope="module")
def records(records_file: Path) -> Records:
    """The made-up records with their splits."""
    return records_of_all(records_file)


def test_what_calibrates_is_not_measured(run_folder: Path, records: Records) -> None:
    """Neither within one set of prompts nor from another."""
    every = Predicted.of(run_folder, records)
    rows = np.arange(0, len(every.table.prompts), 2)
    measured = every.recalibrated("made-up", every, rows)
    assert set(measured.records.prompts) == set(every.table.prompts) - {every.table.prompts[row] for row in rows}
    other = every.of_split(True)
    assert set(other.recalibrated("made-up", every.of_split(False), np.arange(50)).records.prompts) == set(
        other.table.prompts
    )


def test_calibration_fixes_a_wrong_predictor(run_folder: Path, records: Records) -> None:
    """Answers three times as long as those it was calibrated on."""
    long = replace(records, output_lens=tuple(3 * lengths for lengths in records.output_lens))
    every = Predicted.of(run_folder, long)
    rows = np.random.default_rng(0).choice(len(long.prompts), 80, replace=False)
    before = every.measured("made-up").quality(predictor_tables.TAU, 600).coverage
    after = every.recalibrated("made-up", every, rows).quality(predictor_tables.TAU, 600).coverage
    assert before > 0.97
    assert after == pytest.approx(
        1 - predictor_tables.TAU, abs=0.1
    )  # calibration on 80 prompts and a test on the rest have sd 0.05


def test_resplits_cover_on_average(run_folder: Path, records: Records) -> None:
    """The mean over random divisions is the level that was asked for, even of a predictor of two epochs."""
    row = predictor_tables.resplits([run_folder], records, ["made-up"]).splitlines()[2].split("|")
    mean, deviation = (float(value) for value in row[2].split("±"))
    assert row[1].strip() == "made-up"
    assert mean == pytest.approx(0.9, abs=0.03)
    assert deviation > 0


def test_an_interval_of_no_difference_holds_zero(run_folder: Path, records: Records) -> None:
    """A predictor compared with itself."""
    measured = Predicted.of(run_folder, records).measured("made-up")
    loss, order = predictor_tables.bootstrap([measured], measured)
    assert [float(value) for value in (*loss.split(" to "), *order.split(" to "))] == [0.0] * 4
    turned = Predicted.of(run_folder, records.select(np.arange(len(records.prompts))[::-1])).measured("made-up")
    with pytest.raises(ValueError, match="different prompts, or in another order"):
        predictor_tables.bootstrap([measured], turned)
