"""One small finished run and its exports, shared by the tests of all stages."""

from pathlib import Path

import pytest

from pipelines.cli import main


@pytest.fixture(scope="session")
def run_folder(tiny_encoder: Path, records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = "--epochs 2 --batch-size 16 --max-prompt-tokens 16 --max-length 256 --num-bins 16 --head-lr 0.01"
    argv = ["train", "--data", str(records_file), "--out", str(out), "--encoder", str(tiny_encoder)]
    assert main([*argv, *settings.split(), "--no-progress", "--accelerator", "cpu"]) == 0
    return out


@pytest.fixture(scope="session")
def exports(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both precisions of that run."""
    folders = {name: tmp_path_factory.mktemp("exports") / name for name in ("fp32", "int8")}
    for precision, folder in folders.items():
        assert main(["export", str(run_folder), "--out", str(folder), "--precision", precision, "--no-progress"]) == 0
    return folders
