"""The conversation of a row: all that was said up to the prompt, however the row says it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.served_model.chats import chat_of
from predictor.records.records import read_records, select_rows, write_records

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}


def chats(path: Path) -> list[list[dict[str, str]]]:
    """Return the conversations of a file."""
    return [chat_of(row) for row in select_rows(path)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Why?"}, [USER]),
        ({"prompt": "Why?", "system": "Be brief."}, [SYSTEM, USER]),
        ({"prompt": "Why?", "system_prompt": "Be brief."}, [SYSTEM, USER]),
        ({"prompt": "Why?", "system": " "}, [USER]),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"messages": [USER], "system": "Be brief."}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER], "system": "Be brief."}, [SYSTEM, USER]),
    ],
)
def test_a_system_prompt_is_said_once(tmp_path: Path, row: dict[str, Any], said: list[dict[str, str]]) -> None:
    """As a field next to a prompt or to messages, or as a message."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert chats(path) == [said]


def test_records_that_training_writes_keep_the_system_prompt(tmp_path: Path) -> None:
    """So `amin evaluate --prompts RUN/test.parquet` asks what was asked."""
    path, written = tmp_path / "log.jsonl", tmp_path / "test.parquet"
    path.write_text(json.dumps({"messages": [SYSTEM, USER], "output_len": 3}) + "\n")
    write_records(read_records(path), written)
    assert chats(written) == [[SYSTEM, USER]]
