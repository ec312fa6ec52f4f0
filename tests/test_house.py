"""Rules of the house that no linter knows: rooms that a newcomer overlooks at a glance, and settings in one shape."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("predictor", "scheduler", "pipelines")
MOST_FILES = 22
MOST_LINES = 330


def breaches(root: Path) -> Iterator[str]:
    """Each breach of the packages in `root`, in words."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    for folder, count in Counter(file.parent for file in files).items():
        if count > MOST_FILES:
            yield f"{folder.relative_to(root)}: {count} files"
    for file in files:
        name, text = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        if file.name in ("utils.py", "helpers.py"):
            yield f"{name}: the name says nothing"
        if (length := text.count("\n")) > MOST_LINES:
            yield f"{name}: {length} lines"
        if not name.startswith("pipelines/studies/") and _takes_namespace(ast.parse(text)):
            yield f"{name}: takes a Namespace"


def _takes_namespace(tree: ast.Module) -> bool:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    annotations = (each.annotation for node in functions for each in ast.walk(node.args) if isinstance(each, ast.arg))
    return any(each is not None and "Namespace" in ast.unparse(each) for each in annotations)


def test_the_packages_keep_the_rules() -> None:
    """Folders of 22 files at most, modules of a few pages, and settings that are dataclasses."""
    assert list(breaches(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("scheduler/utils.py", "", "scheduler/utils.py: the name says nothing"),
        ("predictor/long.py", "\n" * (MOST_LINES + 1), f"predictor/long.py: {MOST_LINES + 1} lines"),
        ("pipelines/stage.py", "def run(args: 'argparse.Namespace') -> None: ...\n", "takes a Namespace"),
        ("pipelines/studies/study.py", "def run(args: argparse.Namespace) -> None: ...\n", None),
    ],
)
def test_a_breach_is_told(file: str, text: str, told: str | None, tmp_path: Path) -> None:
    """So the test above can fail; a study may read its own command line."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    found = list(breaches(tmp_path))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_a_crowded_folder_is_told(tmp_path: Path) -> None:
    """23 files are one too many."""
    (tmp_path / "scheduler").mkdir()
    for number in range(MOST_FILES + 1):
        (tmp_path / "scheduler" / f"m{number}.py").touch()
    assert list(breaches(tmp_path)) == ["scheduler: 23 files"]
