import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.cli import main
from pipelines.served_model.loading import load_served_model


def truncate(folder: Path) -> None:
    """Half of the weights."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def forget_a_layer(folder: Path) -> None:
    """Weights for one layer fewer than the configuration has, which would be made up at random."""
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


def break_tokenizer(folder: Path) -> None:
    """A tokenizer that is no JSON."""
    (folder / "tokenizer.json").write_text('{"model": [')


def failing_template(folder: Path) -> None:
    """A chat template that raises."""
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")


def silent_template(folder: Path) -> None:
    """A chat template that gives nothing."""
    (folder / "chat_template.jinja").write_text("{# nothing #}")


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: "cannot be loaded",
    forget_a_layer: "are missing",
    break_tokenizer: "cannot be loaded",
    failing_template: "row 1: the chat template of damaged fails (no users here)",
    silent_template: "row 1: the chat template of damaged gives no tokens",
}


def collect(served_model: Path, prompts: Path, tmp_path: Path, *more: str) -> int:
    """Exit code of `amin collect`."""
    argv = ["collect", "--served-model", str(served_model), "--prompts", str(prompts), "--device", "cpu", *more]
    return main([*argv, "--max-new-tokens", "4", "--out", str(tmp_path / "records.parquet")])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """One prompt."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a river"}\n')
    return path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_is_one_line(
    chat_model: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    """Exit code 2, and no records."""
    folder = tmp_path / "damaged"
    shutil.copytree(chat_model, folder)
    damage(folder)
    assert collect(folder, prompts, tmp_path) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amin collect: error")]
    assert len(errors) == 1
    assert DAMAGES[damage] in errors[0]
    assert not (tmp_path / "records.parquet").exists()


def test_a_file_that_is_no_gguf_is_one_line(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"no model at all" * 9):
        file.write_bytes(content)
        assert collect(file, prompts, tmp_path) == 2
        assert "cannot be loaded" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_several_draws_of_the_likeliest_token_are_refused(
    chat_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would all be the same."""
    assert collect(chat_model, prompts, tmp_path, "--temperature", "0") == 2
    assert "all draws would be the same" in capsys.readouterr().err
    assert collect(chat_model, prompts, tmp_path, "--temperature", "0", "--draws", "1") == 0


def test_an_architecture_can_be_served_with_random_weights(chat_model: Path, tmp_path: Path) -> None:
    """Its folder needs no weights; those made up are of the configuration's shape, and say nothing of the real ones."""
    (folder := tmp_path / "shape").mkdir()
    for file in chat_model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    real = load_served_model(str(chat_model), 4, "cpu").model.state_dict()
    torch.manual_seed(17)
    drawn = load_served_model(f"random:{folder}", 4, "cpu").model.state_dict()
    assert {name: value.shape for name, value in drawn.items()} == {name: value.shape for name, value in real.items()}
    largest = max(real, key=lambda name: real[name].numel())
    assert not torch.equal(drawn[largest], real[largest])
