"""Predictions in vLLM's process follow the answers, on their own thread; without vLLM."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.request_bounds import RequestBounds
from pipelines.vllm_learning import LearningPredictions, state_file_of
from pipelines.watched_folder import WatchedFolder
from predictor.errors import InputError
from predictor.serving import LengthPredictor
from scheduler.policy import Status
from scheduler.request import Request

SERVING = Path(__file__).parents[2] / "checkpoints/length-predictor-small"


@pytest.fixture(scope="module")
def bounds() -> RequestBounds:
    """The bundled predictor."""
    return RequestBounds(LengthPredictor(SERVING, num_threads=1), "average", 0.1)


def decode(token_ids: Sequence[int]) -> str:
    """A prompt that says how long it is."""
    return f"write {len(token_ids)} words on rivers"


def predict(predictions: LearningPredictions, names: Sequence[str]) -> dict[str, int]:
    """Return the lower bounds of requests that arrive now."""
    for name in names:
        predictions.background.add(Request(name, 10, 100_000), [1] * 10)
    found: dict[str, int] = {}
    deadline = time.monotonic() + 30
    while len(found) < len(names) and time.monotonic() < deadline:
        found |= {r.request_id: r.output_len_lower_bound for r in predictions.background.take(wait=True)}
    return found


def test_answers_that_end_early_lower_the_bounds_and_a_restart_keeps_that(
    bounds: RequestBounds, tmp_path: Path
) -> None:
    """Four hundred answers of two tokens: below every bound, so the next bounds are lower; also after a restart."""
    file = tmp_path / "learnt.json"
    predictions = LearningPredictions(bounds, decode, 30.0, file)
    first = predict(predictions, ["first"])["first"]
    assert first > 2
    for wave in range(40):
        names = [f"{wave}-{i}" for i in range(10)]
        predict(predictions, names)
        for name in names:
            predictions.learn(name, Status.ANSWERED, 2)
    predictions.learn("first", Status.ANSWERED, 2)
    last = predict(predictions, ["x", "y"])["y"]
    assert last < first
    predictions.close()
    again = LearningPredictions(bounds, decode, 30.0, file)
    assert predict(again, ["z"])["z"] == pytest.approx(last, abs=2)
    again.close()


def test_requests_that_leave_are_forgotten(bounds: RequestBounds) -> None:
    """Whether they leave while they are predicted, before a token or after some."""
    predictions = LearningPredictions(bounds, decode, 30.0)
    rng = np.random.default_rng(0)
    for i in range(60):
        predictions.background.add(Request(f"r{i}", 10, 1000), [1] * 10)
        if i % 3 == 0:
            predictions.background.discard(f"r{i}")
            predictions.learn(f"r{i}", Status.CANCELLED, 0)
    predict(predictions, ["last"])
    for i in range(60):
        predictions.learn(f"r{i}", Status.CANCELLED, int(rng.integers(0, 5)))
    predict(predictions, ["one more"])
    assert set(predictions._tickets) <= {"last", "one more"}
    predictions.close()


def test_a_file_that_is_no_state_is_refused(bounds: RequestBounds, tmp_path: Path) -> None:
    """In one line that names it and says what to do."""
    file = tmp_path / "learnt.json"
    file.write_text("[]")
    with pytest.raises(InputError, match=r"learnt.json: not a state that amin wrote .*remove it to start afresh"):
        LearningPredictions(bounds, decode, 1.0, file)


def test_another_export_is_taken_up_by_a_running_engine(
    bounds: RequestBounds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bounds hold from the next request on; one that cannot be read, or with other bins, changes nothing."""
    folder, manifest = tmp_path / "serving", tmp_path / "serving/manifest.json"
    folder.mkdir()
    manifest.write_text("{}")
    new = [RequestBounds(LengthPredictor(SERVING, num_threads=1), "average", 0.4)]

    def read() -> RequestBounds:
        if not new:
            raise InputError("spoilt")
        return new[0]

    watched = WatchedFolder(folder, read, seconds=3600.0)
    predictions = LearningPredictions(bounds, decode, 30.0, renewed=watched)
    first = predict(predictions, ["a"])["a"]
    watched.look()
    assert predict(predictions, ["b"])["b"] == first
    predictions.learn("a", Status.ANSWERED, 2)
    put_in_place_of(manifest, "{ }")
    watched.look()
    second = predict(predictions, ["c"])["c"]
    assert second > first
    new.clear()
    put_in_place_of(manifest, "{  }")
    watched.look()
    assert predict(predictions, ["d"])["d"] == second
    assert "the predictor stays as it is: spoilt" in caplog.text
    predictions.close()


def put_in_place_of(file: Path, content: str) -> None:
    """Write a new file and give it the name."""
    new = file.with_name("new")
    new.write_text(content)
    new.replace(file)


def test_each_data_parallel_rank_keeps_what_it_learns(tmp_path: Path) -> None:
    """In a file of its own; the first rank in the one that is named, as an engine alone."""
    file = tmp_path / "learnt.json"
    files = [state_file_of(file, rank) for rank in range(3)]
    assert [path.name for path in files] == ["learnt.json", "learnt.1.json", "learnt.2.json"]
    assert {path.parent for path in files} == {tmp_path}
