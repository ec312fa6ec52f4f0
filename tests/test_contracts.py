"""The import contracts of `pyproject.toml`: kept as the tree stands, and able to fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("predictor", "scheduler", "pipelines")
BREACHES = {
    "pipelines use predictor and scheduler": ("scheduler/batch.py", "import predictor.spec"),
    "scheduler needs the standard library and numpy": ("scheduler/loop.py", "import torch"),
    "what runs next to an engine": ("scheduler/look_ahead.py", "import scheduler.simulation.simulate"),
    "torch and what trains": ("predictor/bounds/bins.py", "import torch"),
    "what serves imports neither": ("predictor/serving.py", "import predictor.splits.splits"),
    "the rooms of predictor": ("predictor/prompts/tokens.py", "import predictor.splits.splits"),
    "no stage imports a study": ("pipelines/predict.py", "import pipelines.studies.paper"),
    "settings are read before": ("pipelines/settings/serve.py", "import torch"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and of their contracts."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def outcomes(tree: Path) -> dict[str, str]:
    """The contracts by name, each KEPT or BROKEN."""
    command = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run()"
    options = ["--no-cache", "--no-logo"]
    done = subprocess.run(
        [sys.executable, "-c", command, *options], cwd=tree, capture_output=True, text=True, check=False
    )
    return {name.strip(): outcome for name, outcome in re.findall(r"^(.+?)\s*(KEPT|BROKEN)", done.stdout, re.MULTILINE)}


def test_every_contract_can_fail(tree: Path) -> None:
    """One forbidden import for each contract breaks it; without them all are kept."""
    before = outcomes(tree)
    assert before
    assert set(before.values()) == {"KEPT"}
    for file, line in BREACHES.values():
        with (tree / file).open("a") as source:
            source.write(f"\n{line}\n")
    after = outcomes(tree)
    for name in BREACHES:
        assert [outcome for contract, outcome in after.items() if contract.startswith(name)] == ["BROKEN"], name
    assert len(after) == len(BREACHES), "a contract without a breach: add one"
