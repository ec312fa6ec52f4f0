"""What each part of the product may import, checked in a fresh interpreter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING = frozenset({"torch", "transformers", "lightning", "sklearn", "datasets"})
SETTINGS = """
from importlib import import_module
import pipelines.settings.parser
from pipelines.cli import COMMANDS
for command in COMMANDS.values():
    import_module(command.settings.rpartition(".")[0])
"""
REPORT = "import sys; print(sorted({name.split('.')[0] for name in sys.modules}))"
CORE = "import scheduler.policies, scheduler.loop, scheduler.workload, scheduler.metrics"
EVERYTHING_ELSE = TRAINING | {"pyarrow", "matplotlib", "onnx", "onnxruntime", "tokenizers", "predictor", "pipelines"}


def interpret(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the repository to its good end."""
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished


def forbidden_imports(code: str, forbidden: frozenset[str]) -> set[str]:
    """Return the top-level modules among `forbidden` that a script has loaded when it ends."""
    loaded = interpret("-c", f"{code}\n{REPORT}").stdout.splitlines()[-1]
    return set(re.findall(r"'([^']*)'", loaded)) & forbidden


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        (CORE, EVERYTHING_ELSE),
        ("import predictor.serving", TRAINING | {"onnx", "scheduler", "pipelines"}),
        ("import predictor.sidecar.app", TRAINING | {"onnx", "scheduler", "pipelines"}),
        ("import pipelines.cli, pipelines.simulate.stage", TRAINING),
        (SETTINGS, TRAINING),
    ],
    ids=["scheduler", "predictor.serving", "predictor.sidecar.app", "simulate", "settings"],
)
def test_importing_a_part_leaves_out_what_it_does_not_need(code: str, forbidden: frozenset[str]) -> None:
    """No module of these packages is loaded, directly or through another."""
    assert forbidden_imports(code, forbidden) == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (f"{CORE}\nimport pyarrow", {"pyarrow"}),
        (f"{CORE}\nimport pipelines.files", {"pipelines"}),
        ("def late():\n    from tokenizers import models\nlate()", {"tokenizers"}),
    ],
    ids=["direct", "own package", "submodule in a function"],
)
def test_a_forbidden_import_is_seen(code: str, found: set[str]) -> None:
    """The check above can fail."""
    assert found <= forbidden_imports(code, EVERYTHING_ELSE)


def imported(log: str) -> set[str]:
    """Return the top-level modules in the log of `-X importtime`."""
    return {
        line.rpartition("|")[2].strip().split(".")[0] for line in log.splitlines() if line.startswith("import time:")
    }


def test_help_lists_every_stage_without_torch() -> None:
    """`python -m pipelines.cli --help` loads no training library."""
    finished = interpret("-X", "importtime", "-m", "pipelines.cli", "--help")
    assert finished.stdout.startswith("usage: amin")
    for stage in ("demo", "collect", "train", "predict", "export", "simulate", "evaluate"):
        assert stage in finished.stdout
    modules = imported(finished.stderr)
    assert {"pipelines", "argparse"} <= modules  # the log is read right
    assert modules.isdisjoint(TRAINING)


def test_the_import_log_shows_a_library() -> None:
    """The check above can fail."""
    assert "pyarrow" in imported(interpret("-X", "importtime", "-c", "import pyarrow").stderr)
