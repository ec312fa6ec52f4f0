"""`amin collect --states`: what is kept next to the records, and what survives an interruption."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipelines.collect.states
from pipelines.cli import main
from pipelines.collect.answer_tokens import AnswerTokens
from predictor.errors import InputError
from predictor.probe.states import States, read_source, read_states

CAP = 20


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven prompts of different lengths."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "river " * k + f"night {k}"}) + "\n" for k in range(7)))
    return path


def collect(chat_model: Path, prompts: Path, out: Path, *more: str) -> int:
    """Exit code of `amin collect --states 1,2`, two draws a prompt."""
    argv = ["collect", "--served-model", str(chat_model), "--prompts", str(prompts), "--out", str(out)]
    settings = ["--states", "1,2", "--draws", "2", "--max-new-tokens", str(CAP), "--device", "cpu"]
    return main([*argv, *settings, *more])


def read(out: Path) -> States:
    """All states next to records `out`."""
    folder = out.with_name(out.name + ".states")
    source, digest = read_source(folder)
    assert (source.served_model, source.layers, source.hidden_size) == ("random-chat", (1, 2), 32)
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    return States.concatenate(list(read_states(folder, source)))


def check_all_there(out: Path) -> None:
    """Every answer has its states wherever it goes on, and no others."""
    states, rows = read(out), pq.read_table(out).to_pylist()
    expected = [
        (i, d, t)
        for i, row in enumerate(rows)
        for d, length in enumerate(row["output_lens"])
        for t in (0, 8, 16)
        if t < length
    ]
    assert list(zip(states.prompt, states.draw, states.generated, strict=True)) == expected
    for part in (states.last, states.recent, states.prompt_mean):
        assert np.isfinite(part).all()


def test_states_are_kept_next_to_the_records(
    chat_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every answer; the size is said first; the answers are those of a call without states."""
    out, plain = tmp_path / "records.parquet", tmp_path / "plain.parquet"
    assert collect(chat_model, prompts_file, out) == 0
    said = capsys.readouterr().out
    assert "states: at most 0 MiB" in said.splitlines()[0]
    check_all_there(out)
    assert main([
        "collect", "--served-model", str(chat_model), "--prompts", str(prompts_file), "--out", str(plain),
        "--draws", "2", "--max-new-tokens", str(CAP), "--device", "cpu",
    ]) == 0  # fmt: skip
    assert pq.read_table(plain).to_pylist() == pq.read_table(out).to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plain.parquet",
        "records.parquet",
        "records.parquet.states",
    ]
    before = {path: path.read_bytes() for path in (tmp_path / "records.parquet.states").iterdir()}
    assert collect(chat_model, prompts_file, out) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "records.parquet.states").iterdir()} == before


def interrupting(patch: pytest.MonkeyPatch, name: str, after: int) -> None:
    """Let the user interrupt the call of this function of the stage that follows `after` others."""
    original, calls = getattr(pipelines.collect.states, name), []

    def counted(*arguments: Any, **more: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(None)
        return original(*arguments, **more)

    patch.setattr(pipelines.collect.states, name, counted)


def test_interrupted_states_end_as_without_an_interruption(
    chat_model: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are there stay; the same bytes come out; nothing counts as finished before."""
    monkeypatch.setattr(pipelines.collect.states, "ANSWERS_IN_SHARD", 4)
    contents = []
    for name in ("whole", "interrupted"):
        out = tmp_path / name / "records.parquet"
        folder = out.with_name(out.name + ".states")
        for after in (0, 2, 1) if name == "interrupted" else ():
            with monkeypatch.context() as patch:
                interrupting(patch, "answer_states", after)
                assert collect(chat_model, prompts_file, out) == 130
            assert not out.exists()
            with pytest.raises(InputError, match="amin collect --states"):
                read_source(folder)
        assert collect(chat_model, prompts_file, out) == 0
        check_all_there(out)
        contents.append({path.name: path.read_bytes() for path in sorted([out, *folder.iterdir()])})
        assert sorted(path.name for path in out.parent.iterdir()) == [out.name, folder.name]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2 + 4


def test_answers_keep_their_tokens_over_interruptions(
    chat_model: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it generates, again and again, every answer has the states of its own tokens."""
    import pipelines.collect.draws

    monkeypatch.setattr("pipelines.served_model.answers.SECONDS_BETWEEN_SNAPSHOTS", 0.0)
    monkeypatch.setattr("pipelines.served_model.answers.MAX_SHARE_OF_SNAPSHOTS", math.inf)
    out, calls = tmp_path / "records.parquet", 0
    original = pipelines.collect.draws.PartialFile.keep
    while not out.exists():
        kept: list[int] = []

        def keep(self: Any, collected: Any, kept: list[int] = kept) -> None:
            if len(kept) == 5:
                raise KeyboardInterrupt
            kept.append(original(self, collected))

        with monkeypatch.context() as patch:
            patch.setattr(pipelines.collect.draws.PartialFile, "keep", keep)
            assert collect(chat_model, prompts_file, out, "--max-running", "4") in (0, 130)
        calls += 1
    assert calls > 3
    check_all_there(out)


def test_half_a_line_of_tokens_is_no_answer(tmp_path: Path) -> None:
    """A kill may leave one; the answer that was being added is drawn again, and its later line counts."""
    file = AnswerTokens(tmp_path / "records")
    file.add({(0, 0): [1, 2], (1, 0): [3]})
    with file.path.open("ab") as lines:
        lines.write(b"[2,0,[4,")
    again = AnswerTokens(tmp_path / "records")
    assert again.read({(0, 0): (2, False)}) == {(0, 0): [1, 2]}
    again.add({(0, 0): [1, 2], (1, 0): [5, 6]})
    assert AnswerTokens(tmp_path / "records").read({(1, 0): (2, False)}) == {(1, 0): [5, 6]}
    with pytest.raises(InputError, match="prompt 1, draw 0: not its 1 tokens"):
        again.read({(1, 0): (1, False)})
    file.path.write_text("[0]\n")
    with pytest.raises(InputError, match="damaged"):
        again.read({})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--states", "3"], "random-chat has layers 0 (the embedding) to 2, not 3"),
        (["--states", "1,1"], "--states: must name layers, each once"),
        (["--states", "last"], "--states: must name layers, each once"),
        (["--endpoint", "http://localhost:1/v1"], "--states: a server hands out no states"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_work(
    chat_model: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    """Exit code 2, and nothing is left behind."""
    assert collect(chat_model, prompts_file, tmp_path / "records.parquet", *more) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_states_of_other_answers_are_not_taken(
    chat_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records that are gone, another folder, other layers: refused in a line, replaced only with --force."""
    out = tmp_path / "records.parquet"
    assert collect(chat_model, prompts_file, out) == 0
    assert collect(chat_model, prompts_file, out, "--states", "1") == 2
    assert "was made with states [1, 2], now it is [1]" in capsys.readouterr().err
    out.unlink()
    assert collect(chat_model, prompts_file, out) == 2
    assert "states of answers that are gone" in capsys.readouterr().err
    assert collect(chat_model, prompts_file, out, "--force") == 0
    check_all_there(out)
    out.unlink()
    (tmp_path / "records.parquet.states" / "letter.txt").write_text("mine")
    capsys.readouterr()
    assert collect(chat_model, prompts_file, out, "--force") == 2
    assert "letter.txt, which are no states" in capsys.readouterr().err
