"""The folders of the bundled predictors: cards that say first what they know, and an encoder that is read back."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipelines.studies.predictor.bundled import KNOWS, measured_of, rewrite_small
from pipelines.studies.predictor.encoder_of_export import encoder_weights
from predictor.errors import InputError
from predictor.export_folder import MANIFEST, read_export, sha256
from predictor.training.checkpoint import load_predictor


def test_the_card_of_an_export_says_first_what_it_knows(exports: dict[str, Path], tmp_path: Path) -> None:
    """Its manifest holds the new card's hash, and the export is read as before."""
    folder = tmp_path / "length-predictor-small"
    shutil.copytree(exports["int8"], folder)
    card = folder / "README.md"
    with pytest.raises(InputError, match="is the card of another"):
        rewrite_small(folder, KNOWS)
    card.write_text(card.read_text().replace("# int8\n", "# length-predictor-small\n"))
    rewrite_small(folder, KNOWS.format(instructed="9"))
    lines = card.read_text().split("# length-predictor-small\n")[1].splitlines()
    assert lines[1].startswith("**What it knows**")
    assert json.loads((folder / MANIFEST).read_text())["sha256"]["README.md"] == sha256(card)
    assert read_export(folder).models


def test_the_measures_of_a_run_are_those_of_a_card() -> None:
    """All together first, then each served model's."""
    metrics = {"test": {"tau": 0.1}, "models": {"a": {"test": {"tau": 0.1, "coverage": 0.9}}}}
    assert measured_of(metrics) == {"tau": 0.1, "models": {"a": {"tau": 0.1, "coverage": 0.9}}}


def test_an_encoder_is_read_back_from_int8(run_folder: Path, exports: dict[str, Path]) -> None:
    """Every matrix within the step of its rounding."""
    trained = load_predictor(run_folder).network.encoder.state_dict()
    found = encoder_weights(onnx.load(exports["int8"] / "model.onnx").graph)
    matrices = [name for name, value in trained.items() if value.ndim == 2 and "position_ids" not in name]
    assert matrices
    for name in matrices:
        exact = trained[name].numpy()
        assert np.abs(found[name] - exact).max() <= np.abs(exact).max() / 60
