"""Another predictor is taken up in front of a running engine."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.current_bounds import CurrentBounds
from pipelines.plug_ins import background_predictions
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.request import Request

BUNDLED = Path(__file__).parents[2] / "checkpoints/length-predictor-small"
FOR_EVER = 3600.0


@pytest.fixture
def serving(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A folder that an engine predicts by."""
    return Path(shutil.copytree(exports["fp32"], tmp_path / "serving"))


@pytest.fixture
def put_in_place(serving: Path) -> Callable[[Path], None]:
    """A function that puts a copy of an export in place of that folder."""

    def put(export: Path) -> None:
        new = shutil.copytree(export, serving.with_name("new"))
        (new / "manifest.json").touch()  # a copy keeps the time of what it is a copy of
        shutil.rmtree(serving)
        new.rename(serving)

    return put


def survival(predictions: BackgroundPredictions) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Return what is predicted for a request that arrives now."""
    predictions.add(Request("r", 3, 1000), [5, 6, 7])
    (request,) = predictions.take(wait=True)
    assert request.forecast is not None
    return np.asarray(request.forecast.survival)


def test_each_engine_of_a_configuration_predicts_by_another_export_from_the_next_request_on(
    serving: Path, exports: dict[str, Path], put_in_place: Callable[[Path], None]
) -> None:
    """Two engines share the folder, and both go over to the int8 export."""
    bounds = CurrentBounds(serving, None, 0.1, FOR_EVER)
    engines = [background_predictions(bounds, lambda ids: f"write {list(ids)}", timeout=60.0) for _ in range(2)]
    before = [survival(engine) for engine in engines]
    bounds.look()
    assert np.array_equal(survival(engines[0]), before[0])
    put_in_place(exports["int8"])
    bounds.look()
    after = [survival(engine) for engine in engines]
    assert np.array_equal(before[0], before[1])
    assert np.array_equal(after[0], after[1])
    assert not np.array_equal(before[0], after[0])
    assert bounds.current().marginal(Request("r", 3, 1000)).output_len_lower_bound >= 1
    for engine in engines:
        engine.close()
    bounds.stop()


@pytest.mark.parametrize("kind", ["spoilt", "other bins", "gone"])
def test_what_cannot_take_its_place_changes_nothing(
    kind: str, serving: Path, put_in_place: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged export, one with other length bins, an empty place; the first two are a line in the log."""
    bounds = CurrentBounds(serving, None, 0.1, FOR_EVER)
    before = bounds.current()
    if kind == "other bins":
        put_in_place(BUNDLED)
    elif kind == "gone":
        shutil.rmtree(serving)
    else:
        (serving / "manifest.json").write_text("{}")
    bounds.look()
    assert bounds.current() is before
    said = {"spoilt": "manifest.json", "other bins": "other length bins; restart the engine", "gone": ""}[kind]
    assert said in caplog.text
    assert bool(caplog.records) == (kind != "gone")
    bounds.stop()
