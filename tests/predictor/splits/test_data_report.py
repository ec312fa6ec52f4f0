"""The account that `amin train` gives of its data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines.settings.parser import parse
from pipelines.settings.train import TrainSettings
from pipelines.train import stage as train
from pipelines.train.data import load_splits
from pipelines.train.resume import check_settings
from predictor.errors import InputError
from predictor.records.chat_turns import ChatOptions
from predictor.records.chats import load_data
from predictor.splits.data_report import split_and_audit
from predictor.training.config import TrainConfig

MADE_UP = Path(__file__).parents[1] / "records" / "made_up_chats.py"
GIB = 1 << 30
FIXED = 64 << 20  # buffers that do not grow with the data


def test_splits_made_here_leak_nothing_and_the_line_says_so(records_file: Path) -> None:
    """Rows, splits, clusters and the pairs found by the audit."""
    rows = [json.loads(line) for line in records_file.read_text().splitlines()]
    for row in rows:
        del row["split"]
    path = records_file.with_name("no-splits.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names, report = split_and_audit(load_data(str(path)), 0)
    assert report.num_crossing_pairs == 0
    assert report.warning() is None
    assert report.num_prompts == {name: names.count(name) for name in ("train", "validation", "calibration", "test")}
    assert sum(report.num_prompts.values()) == report.num_kept == 160
    assert report.line().startswith("data: 160 rows, 0 dropped, 160 kept; train 96, validation 16, calibration 24,")
    assert report.line().endswith(f"{report.num_clusters} clusters, 0 near-duplicate pairs cross splits")
    assert "\n" not in report.line()


def test_splits_given_are_audited_with_a_warning(
    records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are kept as they are."""
    rows = [json.loads(line) for line in records_file.read_text().splitlines()]
    rows += [
        {**row, "split": "test", "prompt_id": f"{row['prompt_id']}-again"} for row in rows if row["split"] == "train"
    ]
    path = tmp_path / "leaky.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(data=str(path), tau=0.2, progress=False)
    splits, report = load_splits(config, ChatOptions())
    copies = len(rows) - 160
    assert report.num_crossing_pairs >= copies
    assert len(splits["test"]) == copies + 40
    shown = capsys.readouterr()
    assert f"splits as given, {report.num_crossing_pairs} near-duplicate pairs cross splits" in shown.out
    assert "warning" in shown.err
    assert f"{report.num_crossing_pairs} near-duplicate pairs" in shown.err
    assert shown.out.count("\n") == 1


def settings(out: Path, *argv: Any) -> TrainSettings:
    """The settings as the command line gives them, if the run in `out` may go on with them."""
    given = parse(TrainSettings, ["--data", "d", "--out", str(out), *map(str, argv)], "amin train", "")
    check_settings(given)
    return given


def test_a_resumed_run_reads_conversations_as_it_began(tmp_path: Path, records_file: Path) -> None:
    """And its account says whether lengths were recorded."""
    assert settings(tmp_path).conversations == ChatOptions()
    chosen = settings(tmp_path, "--turn", "last", "--context-turns", 3, "--language", "English")
    assert chosen.conversations == ChatOptions("last", 3, 2000, "English")
    splits, report = load_splits(TrainConfig(data=str(records_file), tau=0.2, progress=False), ChatOptions())
    train.begin(chosen, splits, report, {})
    assert json.loads((tmp_path / "data.json").read_text())["is_recorded"] is False
    for words in ((), ("--context-turns", 3)):
        assert settings(tmp_path, "--resume", *words).conversations == chosen.conversations
    with pytest.raises(InputError, match="turn: the run has 'last', not 'first'"):
        settings(tmp_path, "--resume", "--turn", "first")


def test_memory_stays_within_8_gib_for_a_million_conversations(tmp_path: Path) -> None:
    """Reading, clusters and audit, scaled down; AMIN_CHATS=1000000 measures the whole."""
    count = int(os.environ.get("AMIN_CHATS", "10000"))
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    data, environment = tmp_path / "chats.parquet", {**os.environ, "RAYON_NUM_THREADS": "1"}
    subprocess.run([sys.executable, MADE_UP, "write", data, str(count)], check=True)
    done = subprocess.run(
        [sys.executable, MADE_UP, "read", data, tmp_path],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["report"]["num_rows"] == count
    assert measured["report"]["dropped"] == {"redacted": -(-count // 50)}
    assert measured["report"]["num_crossing_pairs"] == 0
    assert measured["peaks"]["all"] - measured["peaks"]["base"] < 8 * GIB * count / 1_000_000 + FIXED
    assert np.isfinite(measured["seconds"]["all"])


def test_splits_by_time_follow_the_arrivals_of_a_log(tmp_path: Path) -> None:
    """Whatever splits the data has, and what comes again later is no fault; without times it is refused."""
    rows = [
        {
            "prompt": f"Why {i % 7}?",
            "output_len": 3 + i,
            "split": "train",
            "timestamp": 1_764_271_830 + 3_600 * (i * 7 % 100),
        }
        for i in range(100)
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_data(str(path))
    names, report = split_and_audit(loaded, 0, by_time=True)
    times = np.asarray(loaded.records.arrival_times)
    last = [times[np.asarray(names) == name].max() for name in ("train", "validation", "calibration", "test")]
    assert last == sorted(last)
    assert "splits by time" in report.line()
    assert report.num_crossing_pairs > 0
    assert report.warning() is None
    path.write_text("".join(json.dumps({**row, "timestamp": None}) + "\n" for row in rows))
    with pytest.raises(InputError, match="--split-by time: the data has no times"):
        split_and_audit(load_data(str(path)), 0, by_time=True)
