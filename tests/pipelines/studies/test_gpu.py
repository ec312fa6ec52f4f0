"""The check that the GPU studies begin with, and what they do when it fails."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.integrations.transformers_attention import STOCK

PROMPTS = [[5, 6, 7], list(range(4, 60)), [9] * 20]


@pytest.fixture
def served(chat_model: Path) -> Any:
    """The random chat model in single precision, so that equal attention gives equal tokens."""
    from pipelines.served_model.loading import load_served_model

    return load_served_model(str(chat_model), 32, "cpu", exact=True)


def test_our_attention_is_found_right(served: Any) -> None:
    """The same tokens as the stock one, and it is said which attention gave which; nothing is left switched."""
    from pipelines.studies.gpu.check import check, is_right

    ours, stock = check(served, PROMPTS)
    assert is_right(ours, stock)
    assert ours.tokens == stock.tokens
    assert (ours.attention, stock.attention) == ("each request over its own keys", "stock sdpa")
    assert ours.most_below < 1e-3
    assert STOCK not in os.environ


def test_a_wrong_attention_is_found_wrong(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that shows each query the newest key alone, and one that gives no numbers."""
    from pipelines.studies.gpu import check
    from scheduler.integrations import transformers_attention

    def newest_key_alone(pages: Any, layer: int, states: Any, scale: float, batch: Any) -> Any:
        query, _, value = states
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2)

    monkeypatch.setattr(check, "ROUNDING", 1e-3)  # random weights: likeliest tokens are close to each other
    monkeypatch.setattr(transformers_attention, "pages_attention", newest_key_alone)
    ours, stock = check.check(served, PROMPTS)
    assert not check.is_right(ours, stock)
    assert not check.is_right(replace(stock, most_below=float("nan")), stock)


def test_a_check_that_fails_leaves_stock_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and kept for when the study goes on."""
    from pipelines.studies.gpu.__main__ import choose_attention

    monkeypatch.setenv(STOCK, "0")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    choose_attention("smollm2", tmp_path / "found.json")
    assert os.environ[STOCK] == "1"
    assert "attention: STOCK, since the check failed (code 1)" in capsys.readouterr().out
    monkeypatch.setenv(STOCK, "0")
    monkeypatch.setattr(sys, "executable", None)  # nothing is run again
    choose_attention("smollm2", tmp_path / "found.json")
    assert os.environ[STOCK] == "1"


def test_a_check_that_passes_leaves_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the line says how an iteration compares, where it was timed."""
    from pipelines.studies.gpu.__main__ import choose_attention

    monkeypatch.setenv(STOCK, "0")
    each = {"attention": "own; 3 CUDA graphs", "tokens": [[1], [2]], "most_below": 0.1, "milliseconds": 5.0}
    found = {"is_right": True, "same_answers": 1, "ours": each, "stock": {**each, "milliseconds": 90.0}}
    (tmp_path / "found.json").write_text(json.dumps(found))
    choose_attention("smollm2", tmp_path / "found.json")
    assert os.environ[STOCK] == "0"
    line = capsys.readouterr().out
    assert line.startswith("attention: own; 3 CUDA graphs (1 of 2 answers as with stock")
    assert "5.0 ms, stock without graphs 90.0 ms" in line


@pytest.mark.parametrize("wrong", ["prompts", "served-model"])
def test_a_wrong_name_is_no_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    """Whoever mistypes it and runs again with the same folder does not get stock attention for it."""
    from pipelines.studies.gpu.__main__ import main

    prompts = Path(__file__).parents[3] / "checkpoints/prompts.jsonl"
    given = {"served-model": "smollm2", "prompts": str(prompts), wrong: str(tmp_path / "nothing")}
    out = tmp_path / "out"
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["gpu", "own", *options, "--out", str(out)])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert f"error: --{wrong}: " in capsys.readouterr().err
    assert not out.exists()
