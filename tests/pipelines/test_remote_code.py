"""A model folder's own Python code runs only where its user says so, whatever stands in stdin."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main

BREAK_IN = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "its-own"
class Model(LlamaForCausalLM):
    config_class = Config
"""
AUTO_MAP = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a folder's code writes when it runs; stdin says yes to all questions."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "it-ran"


def spoil(folder: Path, marker: Path, model_type: str) -> None:
    """Give a model folder code of its own."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP, "model_type": model_type}))
    (folder / "own.py").write_text(BREAK_IN.format(marker=str(marker)))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a refusal."""
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("stage", ["collect", "evaluate"])
def test_a_served_models_own_code_is_refused_in_one_line(
    stage: str,
    random_llama: Callable[..., Any],
    tiny_encoder: Path,
    exports: dict[str, Path],
    records_file: Path,
    marker: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And runs with --trust-remote-code."""
    folder = tmp_path / "model"
    random_llama(300, eos_token_id=3, pad_token_id=0, bos_token_id=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder / name, folder)
    capsys.readouterr()
    spoil(folder, marker, "its-own")
    argv = [stage, "--served-model", str(folder), "--prompts", str(records_file), "--out", str(tmp_path / "out")]
    argv += ["--max-new-tokens", "4", "--limit", "2"]
    argv += ["--predictor", str(exports["fp32"]), "--policies", "fcfs"] if stage == "evaluate" else ["--draws", "1"]
    assert main(argv) == 2
    assert "--trust-remote-code" in one_line(capsys)
    assert not marker.exists()
    assert main([*argv, "--trust-remote-code"]) == 0
    assert marker.exists()


def test_an_encoders_own_code_never_runs(
    tiny_encoder: Path, records_file: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`amin train` refuses the folder."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    spoil(folder, marker, "its-own")
    assert main(["train", "--data", str(records_file), "--out", str(tmp_path / "run"), "--encoder", str(folder)]) == 2
    assert "never runs" in one_line(capsys)
    assert not marker.exists()


def test_a_runs_own_code_never_runs(
    run_folder: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`amin export` of a run from elsewhere."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    spoil(folder / "predictor", marker, "its-own")
    assert main(["export", str(folder), "--out", str(tmp_path / "serving")]) == 2
    one_line(capsys)
    assert not marker.exists()
