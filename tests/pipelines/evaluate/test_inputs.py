"""What the runs of one evaluation share."""

from pathlib import Path

import pytest

from pipelines.evaluate.inputs import shared_by_runs
from pipelines.settings.evaluate import EvaluateSettings


@pytest.mark.parametrize("name", ["scheduling", "predictor", "prompts", "arrivals"])
def test_a_file_that_is_rewritten_is_another_input(name: str, tmp_path: Path) -> None:
    """Under the same name and of the same size: levels, predictor, prompts and times are compared by contents."""
    folder = tmp_path / "serving"
    folder.mkdir()
    files = {"predictor": folder / "manifest.json"} | {n: tmp_path / n for n in ("scheduling", "prompts", "arrivals")}
    for file in files.values():
        file.write_text("0.1")
    settings = EvaluateSettings(
        files["prompts"], tmp_path / "out", folder, scheduling=files["scheduling"], arrivals=str(files["arrivals"])
    )
    before = shared_by_runs(settings)
    assert shared_by_runs(settings) == before
    files[name].write_text("0.2")
    after = shared_by_runs(settings)
    assert {key for key in before if before[key] != after[key]} == {f"contents of {name}"}
