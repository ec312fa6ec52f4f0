"""A predictor stays the same one while its predictions do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.predictor_digest import predictor_sha256


@pytest.fixture(params=["export", "run"])
def copied(request: pytest.FixtureRequest, exports: dict[str, Path], run_folder: Path, tmp_path: Path) -> Path:
    """A copy of an export, or of the predictor of a run."""
    source = exports["int8"] if request.param == "export" else run_folder / "predictor"
    return Path(shutil.copytree(source, tmp_path / "copied"))


@pytest.fixture
def change(copied: Path) -> Callable[[str, Any], None]:
    """A function that changes a field of what the copy states about itself."""
    (file,) = (copied / name for name in ("manifest.json", "predictor.json") if (copied / name).exists())

    def changed(name: str, value: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}, indent=1))

    return changed


def test_what_no_prediction_depends_on_does_not_count(copied: Path, change: Callable[[str, Any], None]) -> None:
    """Card, tuned levels, measures and versions."""
    before = predictor_sha256(copied)
    (copied / "README.md").write_text("another card")
    (copied / "scheduling.json").write_text("{}")
    change("versions", {"amin": "9"})
    change("measured", None)
    change("sha256", {"README.md": "0"})
    assert predictor_sha256(copied) == before


def test_what_a_prediction_depends_on_counts(copied: Path, change: Callable[[str, Any], None]) -> None:
    """Weights or graph, tokenizer, bins, calibrations and the cut of the prompt."""
    seen = {predictor_sha256(copied)}
    for file in [*sorted(copied.glob("model.*")), copied / "tokenizer.json"]:
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(predictor_sha256(copied))
    for name in ("bins", "calibrations", "max_prompt_tokens"):
        change(name, [0, 7])
        seen.add(predictor_sha256(copied))
    assert len(seen) == 6


def test_a_run_is_its_predictor(run_folder: Path) -> None:
    """Whichever folder is named."""
    assert predictor_sha256(run_folder) == predictor_sha256(run_folder / "predictor")
