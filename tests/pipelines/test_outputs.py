"""Where results go: nothing that is there is lost, and what cannot be written is refused before the work."""

import json
from pathlib import Path

import pytest

from pipelines.cli import main


def refused(argv: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of stderr with which a command ends."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """A workload of one request."""
    file = tmp_path / "w.jsonl"
    file.write_text('{"request_id": "a", "num_prompt_tokens": 3, "output_len": 4, "arrival_time": 0}\n')
    return file


def test_a_folder_cannot_be_where_a_file_is(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor below one, nor a file where a folder is."""
    for stage in ("simulate", "map"):
        for out in (workload, workload / "below"):
            error = refused([stage, workload, "--kv-budget", 100, "--out", out], capsys)
            assert "--out" in error
            assert str(workload) in error
    error = refused(["collect", "--served-model", "x", "--prompts", workload, "--out", workload.parent], capsys)
    assert "is a folder, where a file is to be written" in error


def test_an_input_is_not_written_over(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by --out nor by --workload, whatever the path looks like."""
    other = workload.parent / "." / workload.name
    assert "is an input" in refused(["predict", "run", "--data", workload, "--out", other], capsys)
    argv = ["predict", "run", "--data", workload, "--out", workload.parent / "p.jsonl", "--workload", other]
    assert "--workload" in refused(argv, capsys)
    same = ["predict", "run", "--data", workload, "--out", workload.parent / "p", "--workload", workload.parent / "p"]
    assert "--workload" in refused(same, capsys)


def test_the_system_refuses_in_one_line(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in which nobody can make one."""
    assert "cannot be written" in refused(["simulate", workload, "--kv-budget", 100, "--out", "/proc/x/y"], capsys)


def test_predictions_come_with_their_workload_or_not(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts without lengths make no workload, and then no predictions either."""
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "Name a river."}\n')
    argv = ["predict", run_folder, "--data", data, "--out", tmp_path / "p.jsonl", "--workload", tmp_path / "w.jsonl"]
    assert "no lengths to serve" in refused(argv, capsys)
    assert not (tmp_path / "p.jsonl").exists()


def test_an_export_replaces_nothing_but_an_export(
    run_folder: Path, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a run, not its predictor, not a folder of the user's, and not levels that were tuned for it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "is an input" in refused(["export", run_folder, "--out", run_folder, "--force"], capsys)
    for folder in (mine, run_folder / "predictor"):
        before = sorted(folder.rglob("*"))
        assert "is there already; replace it with --force" in refused(["export", run_folder, "--out", folder], capsys)
        assert "which no export wrote" in refused(["export", run_folder, "--out", folder, "--force"], capsys)
        assert sorted(folder.rglob("*")) == before
    (mine / "thesis.txt").unlink()
    assert main(["export", str(run_folder), "--out", str(mine), "--no-progress"]) == 0
    assert main(["export", str(run_folder), "--out", str(mine), "--no-progress", "--force"]) == 0
    assert {file.name for file in mine.iterdir()} == {file.name for file in exports["fp32"].iterdir()}
    (mine / "scheduling.json").write_text("{}")
    assert "was tuned for the export" in refused(["export", run_folder, "--out", mine, "--force"], capsys)
    assert (mine / "scheduling.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "said"),
    [("tau", "--tau: must be above 0 and below 1"), ("context_turns", "context_turns: must be at least 0")],
)
def test_a_run_whose_settings_are_damaged_is_refused(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit makes a word of a number: one line that names the option."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: x.jsonl\n{name}: 0n1\n")
    assert f"{said}, not '0n1'" in refused(["train", "--out", run, "--resume"], capsys)


def test_a_training_replaces_no_run_that_was_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The levels that `amin tune` wrote next to its predictor would go with it."""
    tuned = tmp_path / "run/predictor/scheduling.json"
    tuned.parent.mkdir(parents=True)
    tuned.write_text("{}")
    argv = ["train", "--data", "x.jsonl", "--out", tmp_path / "run", "--force"]
    assert "was tuned for the run that is there" in refused(argv, capsys)
    assert tuned.read_text() == "{}"


def test_a_demo_does_not_go_on_from_records_made_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does it start with a number that no stage takes."""
    assert "--limit: must be at least 1, not 0" in refused(["demo", "--out", tmp_path / "demo", "--limit", 0], capsys)
    folder = tmp_path / "demo"
    folder.mkdir()
    made = {"served_model": "m", "prompts": "p.jsonl", "draws": "1", "limit": "5"}
    (folder / "demo.json").write_text(json.dumps(made))
    argv = ["demo", "--out", folder, "--served-model", "m", "--prompts", "p.jsonl", "--limit", 200]
    assert "made with --limit 5, now it is 200" in refused(argv, capsys)
