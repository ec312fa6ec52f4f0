import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.scheduling import policy_options, tuned_tau
from pipelines.simulate import tune as tune_stage
from pipelines.simulate.tune import CANDIDATES, choose
from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.spec import PredictorSpec
from scheduler.errors import InputError

BINS = LengthBins.from_list([0, 10, 20, 40, 80])


class StubPredictor:
    """Predicts the same for every prompt."""

    def __init__(self) -> None:
        self.survival = np.array([1.0, 0.8, 0.5, 0.2, 0.0])
        draws = [np.array([5 + 3 * (i % 20)]) for i in range(60)]
        calibration = PitCalibration.fit(BINS, np.tile(self.survival, (60, 1)), draws)
        self.spec = PredictorSpec(BINS, 16, 0, ("m",), "m", (), {"m": calibration}, {})

    def survivals(self, prompts: list[str]) -> Any:
        """The one curve, for the one served model."""
        return np.tile(self.survival, (len(prompts), 1, 1))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Records with prompt tokens."""
    rows = [
        {"prompt": f"p{i}", "prompt_id": f"p{i}", "model": "m", "split": "calibration", "num_prompt_tokens": 5 + i % 7,
         "output_lens": [5 + 3 * (i % 20), 12], "is_truncated": [False, False]}
        for i in range(40)
    ]  # fmt: skip
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tune(folder: Path, records: Path, *more: str) -> int:
    """Run `amin tune` on few requests."""
    common = ["--kv-budget", "300", "--requests", "80", "--seeds", "3", "--no-progress"]
    return main(["tune", str(folder), "--data", str(records), *common, *more])


def test_tuning_writes_what_simulation_reads(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has every candidate, one a policy is chosen, and `amin simulate` takes the file."""
    monkeypatch.setattr(tune_stage, "resolve_predictor", lambda path: StubPredictor())
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    cost = tmp_path / "cost.json"
    cost.write_text('{"seconds_per_iteration": 0.01, "seconds_per_prefill_token": 1e-4}')
    assert tune(folder, records, "--cost-model", str(cost), "--load", "1.1") == 0
    printed = capsys.readouterr().out
    assert printed.count("chosen") == len(CANDIDATES)
    assert all(candidate.name in printed for candidates in CANDIDATES.values() for candidate in candidates)
    written = json.loads((folder / "scheduling.json").read_text())
    assert written["served_model"] == "m"
    assert tuned_tau(folder) in {candidate.tau for candidate in CANDIDATES["amin"]}
    out = ["--policies", "amin-survival", "--seeds", "1", "--out", str(tmp_path / "out"), "--predictions", "noise:0.4"]
    simulated = ["simulate", "lmsys-shaped:50", "--kv-budget", "4000", *out]
    assert main([*simulated, "--scheduling", str(folder)]) == 0
    levels = {"policies": {"amin-survival": {"options": {"max_reserve": 0.0, "pack_level": 0.9}}}}
    (folder / "scheduling.json").write_text(json.dumps(levels))
    assert policy_options(folder, "amin-survival") == levels["policies"]["amin-survival"]["options"]
    latencies = []
    for more in ([], ["--scheduling", str(folder / "scheduling.json")]):
        assert main([*simulated, "--force", *more]) == 0
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        latencies.append(results["policies"]["amin-survival"]["mean"]["mean_latency"])
    assert latencies[0] != latencies[1]


def test_what_was_tuned_stays_without_force(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before any work, with --force replaced, and nothing but the file is left in the folder."""
    monkeypatch.setattr(tune_stage, "resolve_predictor", lambda path: StubPredictor())
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "scheduling.json").write_text("mine")
    assert tune(folder, records) == 2
    assert "scheduling.json is there already; replace it with --force" in capsys.readouterr().err
    assert (folder / "scheduling.json").read_text() == "mine"
    assert tune(folder, records, "--force", "--load", "0.01", "--kv-budget", "100000") == 0
    printed = capsys.readouterr().out
    assert "chosen\n" not in printed
    assert "amin-survival: nothing chosen, its default stays: all do the same here" in printed
    assert json.loads((folder / "scheduling.json").read_text())["policies"]["amin"]["tau"] == 0.1
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "scheduling.json"}


def test_a_log_without_prompt_tokens_is_tuned_on(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What `amin train` writes of a log of prompts and lengths counts prompts as 0 tokens, and says so."""
    monkeypatch.setattr(tune_stage, "resolve_predictor", lambda path: StubPredictor())
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "manifest.json").write_text("{}")
    rows = [{**json.loads(line), "num_prompt_tokens": None} for line in records.read_text().splitlines()]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tune(tmp_path / "serving", records) == 0
    assert "prompts count as 0 tokens" in caplog.text


def test_requests_of_a_log_that_nobody_answered_are_left_out(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log has some; where it has nothing else the first is named."""
    monkeypatch.setattr(tune_stage, "resolve_predictor", lambda path: StubPredictor())
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "manifest.json").write_text("{}")
    asked = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    line = json.dumps({"request": asked, "response": None, "split": "calibration"}) + "\n"
    records.write_text(line + records.read_text())
    assert tune(tmp_path / "serving", records) == 0
    assert f"left out: 1 no answer (first: {records.name} row 1)" in caplog.text
    records.write_text(line)
    assert tune(tmp_path / "serving", records, "--force") == 2


def test_nothing_is_chosen_within_noise() -> None:
    """The default stays unless another is better beyond the interval of their difference; then the best counts."""
    candidates = CANDIDATES["amin-survival"][:3]
    names = [candidate.name for candidate in candidates]
    noisy = {
        names[0]: [{"mean_latency": v} for v in (10.0, 12.0, 11.0)],
        names[1]: [{"mean_latency": v} for v in (9.0, 12.5, 11.2)],
        names[2]: [{"mean_latency": v} for v in (20.0, 22.0, 21.0)],
    }
    assert choose(candidates, noisy) == candidates[0]
    clear = noisy | {names[1]: [{"mean_latency": v} for v in (9.0, 11.0, 10.1)]}
    assert choose(candidates, clear) == candidates[1]


def test_the_objective_decides() -> None:
    """What is best by mean latency, by its tail and by goodput may be three candidates."""
    candidates = CANDIDATES["amin-survival"][:3]
    figures = [(1.0, 9.0, 1.0), (2.0, 3.0, 1.0), (2.0, 9.0, 5.0)]
    runs = {
        candidate.name: [
            {"mean_latency": mean + step, "p99_latency": tail + step, "goodput": good} for step in (0.0, 0.01, 0.02)
        ]
        for candidate, (mean, tail, good) in zip(candidates, figures, strict=True)
    }
    assert [choose(candidates, runs, objective) for objective in ("mean", "p99", "goodput")] == candidates


def test_what_the_user_can_fix(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    monkeypatch.setattr(tune_stage, "resolve_predictor", lambda path: StubPredictor())
    (tmp_path / "manifest.json").write_text("{}")
    for more, message in (
        (["--load", "much"], "--load is 'much'"),
        (["--seeds", "1"], "--seeds: must be at least 2"),
        (["--cost-model", "none.json"], "none.json"),
        (["--model", "other"], "'other' is not known"),
        (["--split", "test"], "test"),
        (["--objective", "goodput"], "give --ttft-target"),
    ):
        assert tune(tmp_path, records, *more) == 2
        assert message in capsys.readouterr().err
    assert policy_options(None, "amin-survival") == {}
    with pytest.raises(InputError, match="amin tune writes it"):
        policy_options(tmp_path / "missing.json", "amin")
    broken = tmp_path / "scheduling.json"
    broken.write_text("[1]")
    with pytest.raises(InputError, match="as amin tune writes it"):
        policy_options(broken, "amin")
    broken.write_text('{"policies": {"amin-survival": {"options": {"reserve": 0.05}}}}')
    with pytest.raises(
        InputError, match=r"scheduling.json: policy 'amin-survival' has no option 'reserve'; it has .*reserve_sd"
    ):
        policy_options(broken, "amin-survival")
    for options, message in (
        ({"pack_level": "high"}, "pack_level is 'high'"),
        ({"pack_level": 0}, "pack_level is 0"),
        ({"pack_level": 1}, "pack_level is 1"),
        ({"reserve_sd": -1}, "reserve_sd is -1"),
        ({"max_reserve": True}, "max_reserve is True"),
        ({"tail": -1}, "tail is -1"),
        ([1], "must be an object"),
    ):
        broken.write_text(json.dumps({"policies": {"amin-survival": {"options": options}}}))
        with pytest.raises(InputError, match=rf"scheduling.json: .*{re.escape(message)}"):
            policy_options(broken, "amin-survival")
    broken.write_text('{"policies": {"amin": {"options": {"refinement": "often"}}}}')
    with pytest.raises(InputError, match="refinement is 'often'"):
        policy_options(broken, "amin")
    broken.write_text('{"policies": {"fifo": {}}}')
    with pytest.raises(InputError, match="unknown policy 'fifo'"):
        policy_options(broken, "amin")
    for tau in ("x", 7, 0, True):
        broken.write_text(json.dumps({"policies": {"amin": {"tau": tau}}}))
        with pytest.raises(InputError, match=r"scheduling.json: tau of amin is"):
            tuned_tau(broken)
