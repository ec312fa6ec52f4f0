"""`predictor.serving`: time limits, threads, and exports that are not whole."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import InputError
from predictor.serving import LengthPredictor

PROMPTS = [f"Write a story about {'night ' * (i % 12)}" for i in range(40)]
FILES = ("manifest.json", "model.onnx", "tokenizer.json")


@pytest.fixture(scope="module")
def export(exports: dict[str, Path]) -> Path:
    """The fp32 export of the tiny run."""
    return exports["fp32"]


@pytest.fixture(scope="module")
def length_predictor(export: Path) -> LengthPredictor:
    """It, loaded."""
    return LengthPredictor(export, num_threads=1)


def test_without_time_every_row_is_marginal(length_predictor: LengthPredictor) -> None:
    """The bound and median of the calibration lengths, limits respected, and survival on the same bins."""
    limits = [None] * 39 + [2]
    predictions = length_predictor.predict(PROMPTS, 0.2, limits, timeout=0.0)
    calibration = length_predictor.spec.calibration()
    assert predictions.is_fallback.all()
    assert set(predictions.lower_bounds[:-1]) == {calibration.marginal_bound(0.2)}
    assert set(predictions.medians[:-1]) == {calibration.marginal_median()}
    assert predictions.lower_bounds[-1] <= 2
    survival = predictions.survival
    assert survival.shape == (40, length_predictor.bins.num_bins + 1)
    assert (survival[:, 0] == 1).all()
    assert (np.diff(survival, axis=1) <= 0).all()


def test_with_time_to_spare_nothing_changes(length_predictor: LengthPredictor) -> None:
    """No row falls back, and bounds are those without a limit."""
    expected, limited = length_predictor.predict(PROMPTS), length_predictor.predict(PROMPTS, timeout=60.0)
    assert not expected.is_fallback.any()
    assert not limited.is_fallback.any()
    np.testing.assert_allclose(limited.survival, expected.survival, atol=1e-6)
    assert not length_predictor.predict(PROMPTS, timeout=float("inf")).is_fallback.any()
    assert length_predictor.predict([], timeout=1.0).lower_bounds.shape == (0,)


def test_batches_at_once_give_what_one_after_the_other_gives(export: Path, length_predictor: LengthPredictor) -> None:
    """Each prompt has the row that it has alone, whichever thread computed its batch."""
    both = LengthPredictor(export, batch_size=3, num_threads=1, num_batches_at_once=2)
    np.testing.assert_allclose(both.survivals(PROMPTS), length_predictor.survivals(PROMPTS), atol=1e-6)


def test_a_limit_on_the_answer_is_a_whole_number_of_at_least_one(length_predictor: LengthPredictor) -> None:
    """One of numpy's as well."""
    limits: Any = np.int64(5)
    assert length_predictor.predict(PROMPTS, max_new_tokens=limits).lower_bounds.max() <= 5
    wrong: Any
    for wrong in (-3, 0, 2.5, [4] * (len(PROMPTS) - 1) + [0]):
        with pytest.raises(ValueError, match="at least 1"):
            length_predictor.predict(PROMPTS, max_new_tokens=wrong)


class Timer:
    """Is over when the third batch begins."""

    def __init__(self, seconds: float, stop: Callable[[], None]) -> None:
        self.stop, self.num_batches = stop, 0

    def start(self) -> None:
        """Wait for batches."""
        Timer.latest = self

    def cancel(self) -> None:
        """Not needed."""


def test_a_limit_in_the_middle_keeps_what_was_predicted(
    length_predictor: LengthPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows are predicted, the network stops in its third batch, and the rest are marginal."""
    predict_batch = length_predictor._survivals

    def counted(*arguments: Any) -> np.ndarray:
        Timer.latest.num_batches += 1
        if Timer.latest.num_batches == 3:
            Timer.latest.stop()
        return predict_batch(*arguments)

    prompts = PROMPTS * 50
    with monkeypatch.context() as patch:
        patch.setattr("predictor.serving.threading.Timer", Timer)
        patch.setattr(length_predictor, "_survivals", counted)
        predictions = length_predictor.predict(prompts, timeout=0.2)
        assert Timer.latest.num_batches == 3
    num_predicted = int(np.sum(~predictions.is_fallback))
    assert num_predicted == 16
    assert not predictions.is_fallback[:num_predicted].any()
    expected = length_predictor.survival(prompts[:num_predicted])
    np.testing.assert_allclose(predictions.survival[:num_predicted], expected, atol=1e-6)


def test_threads_share_one_predictor(length_predictor: LengthPredictor) -> None:
    """The limit of one call stops no other."""

    def predict(i: int) -> tuple[bool, np.ndarray]:
        predictions = length_predictor.predict(PROMPTS[i : i + 4], timeout=0.0 if i % 3 == 0 else 60.0)
        return bool(predictions.is_fallback.all()), predictions.survival

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(predict, range(36)))
    for i, (is_fallback, survival) in enumerate(answers):
        assert is_fallback == (i % 3 == 0)
        if not is_fallback:
            np.testing.assert_allclose(survival, length_predictor.survival(PROMPTS[i : i + 4]), atol=1e-6)


def copy_of(export: Path, folder: Path) -> Path:
    """Return a copy of the export to spoil."""
    return Path(shutil.copytree(export, folder, dirs_exist_ok=True))


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused; whether another error comes is the question."""
    with pytest.raises(InputError) as caught:
        LengthPredictor(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spoilt_files_are_refused_in_one_line(
    data: st.DataObject, export: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut anywhere, or a byte changed anywhere: graph and tokenizer always, a manifest unless it reads as one still."""
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((export / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    folder = copy_of(export, tmp_path_factory.getbasetemp() / "spoilt")
    (folder / name).write_bytes(content)
    if name != "manifest.json":
        assert f"{name}: not the file that manifest.json describes" in refusal(folder)
        return
    with contextlib.suppress(InputError):
        assert LengthPredictor(folder).predict(["Write a poem"], tau=0.2).lower_bounds[0] >= 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, export: Path, tmp_path: Path) -> None:
    """Each of the three."""
    folder = copy_of(export, tmp_path / "x")
    (folder / name).unlink()
    assert f"{name}: no such file" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format_version", 1, "format_version: 1 is not 2"),
        ("bins", [0, 5, 5], "edges: must increase"),
        ("bins", "many", "edges: must be a list"),
        ("bins", [0, 1, 256], "predicts an array"),
        ("max_length", 40, "max_length: 40"),
        ("precision", "intX", "precision: intX"),
        ("max_prompt_tokens", -4, "max_prompt_tokens: -4"),
        ("max_prompt_tokens", "many", "many"),
        ("pad_token_id", 10**9, "model.onnx"),
        ("models", [], "models"),
        ("models", ["a", "b"], "served_model"),
        ("served_model", "other", "served_model"),
        ("terms", [1, 2, "x"], "terms"),
        ("calibrations", {}, "calibrations"),
        ("calibrations", [], "not whole"),
        ("sha256", None, "not whole"),
        ("sha256", {}, "model.onnx: not the file"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(
    field: str, value: object, says: str, export: Path, tmp_path: Path
) -> None:
    """With the field."""
    folder = copy_of(export, tmp_path / "x")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    assert says in refusal(folder)


def test_a_calibration_cannot_claim_more_prompts(export: Path, tmp_path: Path) -> None:
    """A finer tau than the prompts support would be served."""
    folder = copy_of(export, tmp_path / "x")
    value = json.loads((folder / "manifest.json").read_text())
    next(iter(value["calibrations"].values()))["pit"]["num_prompts"] *= 1000
    (folder / "manifest.json").write_text(json.dumps(value))
    assert "pit: num_prompts" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "spoil", "says"),
    [
        ("pit", {"num_prompts": 0}, "num_prompts: 0"),
        ("pit", {"scores": []}, "0 scores"),
        ("pit", {"scores": [2.0], "cumulated": [1.0]}, "scores"),
        ("lengths", {"scores": [30, 20], "cumulated": [1.0, 2.0]}, "not increasing"),
        ("lengths", {"scores": [float("nan")], "cumulated": [1.0]}, "not increasing"),
        ("lengths", {"scores": ["7"], "cumulated": [1.0]}, "not a number"),
        ("lengths", {"cumulated": None}, "not whole"),
    ],
)
def test_a_calibration_with_a_wrong_value_is_refused(
    part: str, spoil: dict[str, object], says: str, export: Path, tmp_path: Path
) -> None:
    """A table that would give wrong bounds without a word."""
    folder = copy_of(export, tmp_path / "x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["calibrations"]["made-up"][part].update(spoil)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert says in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 2}'])
def test_a_manifest_of_another_kind_is_refused(content: bytes, export: Path, tmp_path: Path) -> None:
    """Not JSON, or JSON of something else."""
    folder = copy_of(export, tmp_path / "x")
    (folder / "manifest.json").write_bytes(content)
    refusal(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.onnx", b"no graph"), ("model.onnx", b""), ("tokenizer.json", b"{}"), ("tokenizer.json", b"\xff")],
)
def test_a_file_that_matches_its_hash_and_is_none_is_refused(
    name: str, content: bytes, export: Path, tmp_path: Path
) -> None:
    """Written so by another program."""
    folder = copy_of(export, tmp_path / "x")
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert name in refusal(folder)
