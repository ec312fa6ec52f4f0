"""One small finished run and its exports, and a random served model, shared by the tests of all stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., Any]:
    """A function that makes a random two-layer Llama, the same each time, with further settings as given."""

    def make(vocab_size: int, **settings: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            **settings,
        )
        return LlamaForCausalLM(config).eval()

    return make
