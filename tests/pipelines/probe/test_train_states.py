"""`amin train --states` and the export of what it trains, on made-up states that know the remaining length."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from predictor.probe.probe import Probe
from predictor.probe.states import States, StateSource, write_shard, write_source

SOURCE = StateSource("made-up", "r1", "t1", (2, 5), 8)
POSITIONS = (0, 8, 16, 32)


@pytest.fixture(scope="module")
def collected(records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with states next to them in two shards; layer 5 shows the log of the remaining length."""
    rows = [json.loads(line) for line in records_file.read_text().splitlines()]
    out = tmp_path_factory.mktemp("collected") / "records.jsonl"
    out.write_text("".join(json.dumps({**row, "num_prompt_tokens": 9}) + "\n" for row in rows))
    places = np.array([
        (i, d, t, length - t)
        for i, row in enumerate(rows)
        for d, length in enumerate(row["output_lens"])
        for t in POSITIONS
        if t < length
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, len(places), 2, 8))
    states[:, :, 1, 0] = 2 * np.log(places[:, 3]) - 5 + rng.normal(0, 0.3, len(places))
    kept = States(*places.T[:3], *states.astype(np.float16))
    folder = out.with_name("records.jsonl.states")
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(places)), 2)):
        write_shard(folder / f"{number:05d}.safetensors", kept.select(part))
    write_source(folder, SOURCE, hashlib.sha256(out.read_bytes()).hexdigest())
    return out


def train(collected: Path, out: Path, *more: str) -> int:
    """Exit code of `amin train --states`."""
    states = str(collected.with_name("records.jsonl.states"))
    argv = ["train", "--data", str(collected), "--states", states, "--out", str(out), "--tau", "0.2", "--no-progress"]
    return main([*argv, *more])


@pytest.fixture(scope="module")
def probe_run(collected: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe trained next to a predictor of prompts."""
    out = tmp_path_factory.mktemp("runs") / "probe"
    assert train(collected, out, "--prompt-predictor", str(run_folder)) == 0
    return out


def test_a_probe_is_trained_and_measured_by_tokens_out(probe_run: Path) -> None:
    """The layer that knows is chosen; the probe orders the remaining lengths better than the prompt does."""
    metrics = json.loads((probe_run / "metrics.json").read_text())
    assert metrics["source"] == {**SOURCE.to_dict(), "layers": [5]}
    assert set(metrics["test"]) == {"probe", "conditioned", "both"}
    parts = {name: part["by_generated"] for name, part in metrics["test"].items()}
    assert set(parts["probe"]) >= {"0", "8", "16"}
    for t, row in parts["probe"].items():
        assert row["kendall_tau"] > parts["conditioned"][t]["kendall_tau"] + 0.1
        assert row["pinball_loss"] < parts["conditioned"][t]["pinball_loss"]
        assert row["coverage"] == pytest.approx(0.8, abs=0.15)
    assert metrics["share_of_probe_in_both"] >= 0.5
    assert metrics["test"]["probe"]["share_of_answers_with_all_bounds_held"]["levels_over_answer"] > 0.65
    assert (probe_run / "by_generated.png").read_bytes().startswith(b"\x89PNG")
    assert Probe.load(probe_run).mixture is not None


def test_the_same_call_gives_the_same_probe(collected: Path, probe_run: Path, run_folder: Path, tmp_path: Path) -> None:
    """To the byte; a finished run is left alone, and not replaced without a word."""
    out = tmp_path / "again"
    assert train(collected, out, "--prompt-predictor", str(run_folder)) == 0
    for name in ("probe.json", "probe.safetensors", "metrics.json"):
        assert (out / name).read_bytes() == (probe_run / name).read_bytes()
    before = (out / "metrics.json").stat().st_mtime_ns
    assert train(collected, out, "--prompt-predictor", str(run_folder)) == 2
    assert train(collected, out, "--prompt-predictor", str(run_folder), "--resume") == 0
    assert (out / "metrics.json").stat().st_mtime_ns == before


def test_an_export_is_small_and_needs_no_lightning(
    probe_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says the same as the probe that was trained; a fresh process loads it without what trains."""
    out = tmp_path / "export"
    assert main(["export", str(probe_run), "--out", str(out), "--license", "apache-2.0"]) == 0
    assert "probe of made-up, layer 5" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "probe.json", "probe.safetensors"]
    assert sum(file.stat().st_size for file in out.iterdir()) < 300_000
    assert (out / "probe.json").read_bytes() == (probe_run / "probe.json").read_bytes()
    assert (out / "probe.safetensors").read_bytes() == (probe_run / "probe.safetensors").read_bytes()
    assert "| 16 |" in (out / "README.md").read_text()
    code = (
        "import sys; from pathlib import Path; from predictor.probe.probe import Probe; Probe.load(Path(sys.argv[1])); "
        "sys.exit(', '.join({'lightning', 'transformers', 'sklearn'} & set(sys.modules)) or 0)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def other_records(collected: Path) -> None:
    """Change the records after their states were made."""
    collected.write_text(collected.read_text().replace("p1", "q1", 1))


def other_model(collected: Path) -> None:
    """Have the states say that they are of another model."""
    file = collected.with_name("records.jsonl.states") / "states.json"
    file.write_text(file.read_text().replace("made-up", "another"))


def a_draw_too_many(collected: Path) -> None:
    """Have a state of an answer that the records do not have."""
    folder = collected.with_name("records.jsonl.states")
    one = np.zeros((1, 2, 8), np.float16)
    write_shard(folder / "00002.safetensors", States(*np.array([[0], [9], [0]]), one, one, one))


def half_a_folder(collected: Path) -> None:
    """Have what an interrupted collect leaves."""
    (collected.with_name("records.jsonl.states") / "states.json").unlink()


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        (other_records, [], "has states of other records"),
        (other_model, [], "model: made-up; the states are of another"),
        (a_draw_too_many, [], "a state after 0 tokens of draw 9 of prompt_id 'p0'"),
        (half_a_folder, [], "give a folder of amin collect --states"),
        (None, ["--epochs", "3"], "--epochs: has no effect with --states"),
        (None, ["--prompt-predictor", "nowhere"], "nowhere"),
        (None, ["--tau", "0.001"], "at least"),
    ],
)
def test_what_does_not_fit_is_one_line(
    collected: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], Any] | None,
    more: list[str],
    told: str,
) -> None:
    """Exit code 2, and no run is begun."""
    copy = tmp_path / "records.jsonl"
    copy.write_bytes(collected.read_bytes())
    folder = tmp_path / "records.jsonl.states"
    folder.mkdir()
    for file in collected.with_name("records.jsonl.states").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if change is not None:
        change(copy)
    assert train(copy, tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_predictor_of_another_model_is_refused(
    collected: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot be mixed with what it does not know; alone it needs states."""
    file = run_folder / "predictor" / "predictor.json"
    other = tmp_path / "other"
    other.mkdir()
    for each in file.parent.iterdir():
        (other / each.name).write_bytes(each.read_bytes())
    (other / "predictor.json").write_text(file.read_text().replace("made-up", "llama"))
    assert train(collected, tmp_path / "run", "--prompt-predictor", str(other)) == 2
    assert "predicts for llama; the states are of made-up" in capsys.readouterr().err
    assert main(["train", "--data", "x", "--prompt-predictor", "y", "--out", str(tmp_path / "run")]) == 2
    assert "give --states as well" in capsys.readouterr().err


def test_a_study_divides_the_held_out_prompts_again(
    probe_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Coverage is near the target in the mean, by stage and over the answer; the probe orders better for certain."""
    from pipelines.studies.predictor import probe_divisions

    monkeypatch.setattr(probe_divisions, "NUM_RESAMPLES", 20)
    out = tmp_path / "figures.json"
    argv = ["probe_divisions", str(probe_run), "--divisions", "12", "--cap", "60", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    probe_divisions.main()
    found = json.loads(out.read_text())
    parts = found["divisions"]["by_generated"]
    for name in ("probe", "conditioned", "both"):
        for row in parts[name].values():
            assert 0.74 < row["coverage"] < 0.95  # lengths of a few tokens are whole: a bound holds for more than asked
        assert 0.74 < found["divisions"]["all_bounds_of_an_answer_held"][name] < 0.95
    assert found["order"]["gain_of_probe_over_conditioned_95"][0] > 0
    assert set(found["order"]["mean_16_to_192_by_cap"]) == {"none", "60"}
    assert "| 16 |" in capsys.readouterr().out


def test_options_of_other_exports_are_refused(
    probe_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A probe has no int8 graph, reads no prompt, knows one model and is not measured anew; other files stay."""
    out = tmp_path / "export"
    for more in (["--precision", "int8"], ["--max-prompt-tokens", "16"], ["--model", "made-up"], ["--tau", "0.2"]):
        assert main(["export", str(probe_run), "--out", str(out), *more]) == 2
        assert "is for predictors that read the prompt" in capsys.readouterr().err
    out.mkdir()
    (out / "mine.txt").write_text("")
    assert main(["export", str(probe_run), "--out", str(out), "--force"]) == 2
    assert "mine.txt" in capsys.readouterr().err
