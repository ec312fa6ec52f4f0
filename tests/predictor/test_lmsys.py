from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor.errors import InputError
from predictor.lmsys import load_hub_dataset, load_records


def conversation(index: int, **changed: Any) -> dict[str, Any]:
    """One row in the schema of lmsys/lmsys-chat-1m."""
    turns = [
        {"content": f"write about river {index}", "role": "user"},
        {"content": "river night " * (index + 1), "role": "assistant"},
        {"content": "more", "role": "user"},
        {"content": "garden", "role": "assistant"},
    ]
    row = {"conversation_id": f"c{index}", "model": "vicuna-13b", "conversation": turns, "turn": 2}
    return {**row, "language": "English", "redacted": False, **changed}


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """Five conversations of one model and one of another; one has no answer."""
    rows = [conversation(i) for i in range(5)] + [conversation(9, model="koala-13b")]
    rows[3]["conversation"] = rows[3]["conversation"][:1]
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_first_exchange_becomes_a_record(chat_file: Path, tiny_encoder: Path) -> None:
    """Its length is the answer in tokens plus the end token; the language is the group."""
    records = load_records(str(chat_file), "vicuna-13b", str(tiny_encoder))
    assert records.prompts == tuple(f"write about river {i}" for i in (0, 1, 2, 4))
    lengths = np.concatenate(records.output_lens)
    assert np.all(np.diff(lengths - 1) % (lengths[0] - 1) == 0)
    assert lengths[-1] - 1 == 5 * (lengths[0] - 1)
    assert set(records.datasets) == {"English"}
    assert records.prompt_ids == ("c0", "c1", "c2", "c4")


def test_answers_at_a_known_cap_are_truncated(chat_file: Path, tiny_encoder: Path) -> None:
    """The data set does not say so itself."""
    free = load_records(str(chat_file), "vicuna-13b", str(tiny_encoder))
    cap = int(free.output_lens[1][0])
    capped = load_records(str(chat_file), "vicuna-13b", str(tiny_encoder), cap)
    assert [bool(flags[0]) for flags in capped.is_truncated] == [False, True, True, True]
    assert max(int(lens[0]) for lens in capped.output_lens) == cap


def test_conversations_need_a_tokenizer_and_a_model(chat_file: Path) -> None:
    """Words are no substitute for tokens."""
    with pytest.raises(InputError, match="--tokenizer"):
        load_records(str(chat_file), "vicuna-13b")
    with pytest.raises(InputError, match="koala-13b, vicuna-13b"):
        load_records(str(chat_file), None)


def test_a_hub_data_set_out_of_reach_says_where_to_accept_its_terms(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path
) -> None:
    """One line with the address and the login command."""
    import datasets

    def refuse(name: str, **_: Any) -> None:
        raise ConnectionError("gated\nor offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match="--model"):
        load_hub_dataset("lmsys/lmsys-chat-1m", None, str(tiny_encoder))
    with pytest.raises(InputError) as caught:
        load_records("lmsys/lmsys-chat-1m", "vicuna-13b", str(tiny_encoder))
    message = str(caught.value)
    assert "https://huggingface.co/datasets/lmsys/lmsys-chat-1m" in message
    assert "hf auth login" in message
    assert "\n" not in message


def test_a_hub_data_set_becomes_records(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path) -> None:
    """The rows of the chosen model alone."""
    import datasets

    rows = [conversation(0), conversation(1, model="koala-13b"), conversation(2)]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: datasets.Dataset.from_list(rows))
    records = load_records("lmsys/lmsys-chat-1m", "vicuna-13b", str(tiny_encoder))
    assert records.prompt_ids == ("c0", "c2")
    with pytest.raises(InputError, match="no row of 'gpt-9'"):
        load_records("lmsys/lmsys-chat-1m", "gpt-9", str(tiny_encoder))
