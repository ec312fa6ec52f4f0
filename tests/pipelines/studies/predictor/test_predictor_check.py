"""What predictors reach on records, known models and unknown ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.export import quality
from pipelines.studies.predictor.check import TAU, chosen, measured
from pipelines.studies.predictor.tables import TITLES, cells
from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.bounds.metrics import CLIPPED_AT
from predictor.errors import InputError
from predictor.prompts.request_features import Contexts
from predictor.records.prompt_table import prompt_table
from predictor.records.records import Records, write_records
from predictor.spec import LengthPredictorLike, PredictorSpec

BINS = LengthBins.log_spaced(2048, 40)
SPLITS = ("train", "calibration", "test")


class Known(LengthPredictorLike):
    """Says of every prompt that its answers are exponential, twice as long for model b."""

    def __init__(self, spec: PredictorSpec) -> None:
        self.spec = spec

    def survivals(self, prompts: Sequence[str], contexts: Contexts = None) -> FloatArray:
        """Return [N, 2, K+1]."""
        curves = np.exp(-BINS.as_array() / np.array([[80.0], [160.0]]))
        return np.repeat(curves[None], len(prompts), axis=0)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """300 prompts of models a, b and an unknown c."""
    rng, models = np.random.default_rng(0), ("a", "b", "c") * 100
    lengths = [
        np.maximum(rng.exponential({"a": 80, "b": 160, "c": 120}[model], 4).astype(np.int64), 1) for model in models
    ]
    prompts = tuple(f"p{i // 3}" for i in range(300))
    flags = tuple(np.zeros(4, dtype=np.bool_) for _ in models)
    splits = tuple(SPLITS[i // 3 % 3] for i in range(300))
    ids = tuple(f"r{i}" for i in range(300))
    path = tmp_path / "records.parquet"
    write_records(Records(prompts, tuple(lengths), flags, ids, models, ("x",) * 300, splits), path)
    return path


def test_known_models_are_measured_by_themselves_and_all_as_the_average(records: Path) -> None:
    """Coverage is near what was promised either way; an unknown model counts as the average alone."""
    spec = PredictorSpec(BINS, 8, 0, ("a", "b"), "average", (), {}, {})
    calibration = chosen(records, "calibration", [], [])
    calibration = calibration.select(np.flatnonzero(np.asarray(calibration.models) != "c"))
    known = Known(spec)
    table = prompt_table(calibration, ("a", "b"))
    known.spec = spec.recalibrated(known.survivals(table.prompts), table)
    test = chosen(records, "test", [], [])
    own, average, new = (
        measured(known, test),
        measured(known, test, as_average=True),
        measured(known, test, as_new=True),
    )
    assert [len(each.records) for each in (own, average, new)] == [66, 99, 99]
    assert all(0.84 <= each.quality(TAU, CLIPPED_AT).coverage <= 0.97 for each in (own, average, new))
    assert len(cells(own.quality(TAU, CLIPPED_AT).to_dict())) == len(TITLES)


def test_a_served_model_without_records_is_not_measured(records: Path) -> None:
    """Records of one of two leave the other out, by itself and in what is pooled."""
    known = Known(PredictorSpec(BINS, 8, 0, ("a", "b"), "average", (), {}, {}))
    for split in ("calibration", "test"):
        part = chosen(records, split, [], [])
        names = ("a", "b") if split == "calibration" else ("a",)
        table = prompt_table(part.select(np.flatnonzero(np.isin(part.models, names))), ("a", "b"))
        if split == "calibration":
            known.spec = known.spec.recalibrated(known.survivals(table.prompts), table)
    found = quality(known.spec, known.survivals(table.prompts), table, TAU)
    assert set(found["models"]) == {"a"}
    assert found["models"]["a"]["pinball_loss"] == found["pinball_loss"]


def test_a_choice_without_records_is_refused(records: Path) -> None:
    """In one line that names it."""
    with pytest.raises(InputError, match="no row of split 'test' and data sets y"):
        chosen(records, "test", ["y"], [])
