import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor.errors import InputError
from predictor.records.records import read_prompts, read_records, write_records


def write_jsonl(path: Path, *rows: Any) -> Path:
    """Write rows, dictionaries or raw lines."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


GOOD = {"prompt": "Why?", "output_lens": [3, 4], "prompt_id": "a", "model": "m"}


def test_records_come_back_from_parquet_as_they_were(records_file: Path, tmp_path: Path) -> None:
    """Every field, draw for draw."""
    records = read_records(records_file)
    write_records(records, tmp_path / "again.parquet")
    again = read_records(tmp_path / "again.parquet")
    fields = ("prompts", "prompt_ids", "models", "datasets", "splits", "max_new_tokens", "recorded")
    for name in (*fields, "num_prompt_tokens"):
        assert getattr(again, name) == getattr(records, name)
    for name in ("output_lens", "is_truncated"):
        for left, right in zip(getattr(again, name), getattr(records, name), strict=True):
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)


def test_single_draws_messages_and_missing_fields_are_understood(tmp_path: Path) -> None:
    """The last user message is the prompt; what is absent is empty."""
    turns = [("user", "one"), ("assistant", "x"), ("user", "two")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write_jsonl(
        tmp_path / "r.jsonl",
        {"messages": messages, "output_len": 7.0},
        {"prompt": "p", "output_len": 9, "is_truncated": True},
    )
    records = read_records(path)
    assert records.prompts == ("two", "p")
    assert [lens.tolist() for lens in records.output_lens] == [[7], [9]]
    assert [flags.tolist() for flags in records.is_truncated] == [[False], [True]]
    assert records.splits is None
    assert records.datasets == ("", "")


def test_select_keeps_order_and_fields(records_file: Path, tmp_path: Path) -> None:
    """Indices may repeat."""
    lines = records_file.read_text().splitlines()
    rows = [{**json.loads(line), "num_prompt_tokens": i} for i, line in enumerate(lines)]
    chosen = read_records(write_jsonl(tmp_path / "r.jsonl", *rows)).select([5, 2, 5])
    assert chosen.prompt_ids == ("p5", "p2", "p5")
    assert chosen.num_prompt_tokens == (5, 2, 5)
    assert len(chosen) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "prompt": "  "}, "row 2: prompt: empty"),
        ({**GOOD, "prompt": 3}, "row 2: prompt: must be text"),
        ({**GOOD, "prompt": "\ud800"}, "row 2: prompt: .*surrogate"),
        ({"output_len": 3, "model": "m"}, "row 2: prompt: missing"),
        ({"messages": [], "output_len": 3, "model": "m"}, "row 2: messages: no user message"),
        ({"messages": 5, "output_len": 3, "model": "m"}, "row 2: messages: must be a list of messages .* not int"),
        ({"prompt": "p", "model": "m"}, "row 2: output_lens: missing"),
        ({**GOOD, "output_lens": []}, "row 2: output_lens: empty list"),
        ({**GOOD, "output_lens": [3, -1]}, "row 2: output_lens: -1 is not positive"),
        ({**GOOD, "output_lens": [0]}, "row 2: output_lens: 0 is not positive"),
        ('{"prompt": "p", "model": "m", "output_len": NaN}', "row 2: output_lens: missing"),
        ('{"prompt": "p", "model": "m", "output_len": Infinity}', "row 2: output_len: inf is not a whole number"),
        ('{"prompt": "p", "model": "m", "output_lens": [3, NaN]}', "row 2: output_lens: nan is not a whole number"),
        ({**GOOD, "output_lens": [3, None]}, "row 2: output_lens: None is not a whole number"),
        ({"prompt": "p", "model": "m", "output_len": None}, "row 2: output_lens: missing"),
        ({"prompt": "p", "model": "m", "output_len": -3}, "row 2: output_len: -3 is not positive"),
        ({"prompt": "p", "model": "m", "output_len": "nine"}, "row 2: output_len: 'nine' is not a whole number"),
        ({**GOOD, "is_truncated": [True, None]}, "row 2: is_truncated: must be true or false"),
        ({**GOOD, "output_lens": [2.5]}, "row 2: output_lens: 2.5 is not a whole number"),
        ({**GOOD, "is_truncated": [True]}, "row 2: is_truncated: 1 values for 2 draws"),
        ({**GOOD, "output_lens": [5]}, "row 2: prompt_id: 'a' also stands in row 1"),
        ({**GOOD, "prompt_id": "b", "model": "n"}, "model: several in one file; choose one with --model: m, n"),
        ({**GOOD, "prompt_id": "b", "split": "dev"}, "row 1: split: '' is not one of train"),
        ({**GOOD, "prompt_id": "b", "max_new_tokens": 0}, "row 2: max_new_tokens: 0 is not positive"),
        ({"prompt": "p", "output_len": 3}, "row 2: model: missing, while other rows have it"),
        ("{", "row 2: not JSON"),
        ("[1]", "row 2: must be a JSON object"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path: Path, row: Any, message: str) -> None:
    """One line: file, row, field and what is wrong."""
    path = write_jsonl(tmp_path / "bad.jsonl", GOOD, row)
    with pytest.raises(InputError, match=message) as caught:
        read_records(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Missing, empty, truncated, of the wrong kind."""
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    pq.write_table(pa.table({"prompt": ["p"] * 100, "output_len": [1] * 100}), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    expected = {
        "absent.jsonl": "no such file",
        "empty.jsonl": "no rows",
        "binary.jsonl": "not UTF-8",
        "cut.parquet": "not a readable parquet file",
        "none.parquet": "no rows",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            read_records(tmp_path / name)


def test_lengths_in_parquet_are_checked_too(tmp_path: Path) -> None:
    """NaN, null and negative ones, in whole and in broken numbers."""
    for column, message in (
        (pa.array([3.0, float("nan")]), "row 2: output_lens: missing"),
        (pa.array([3, None]), "row 2: output_lens: missing"),
        (pa.array([3, -1]), "row 2: output_len: -1 is not positive"),
        (pa.array([[3], [3, None]]), "row 2: output_lens: None is not a whole number"),
        (pa.array([[3], []], pa.list_(pa.int64())), "row 2: output_lens: empty list"),
    ):
        name = "output_lens" if pa.types.is_list(column.type) else "output_len"
        pq.write_table(pa.table({"prompt": ["a", "b"], name: column}), tmp_path / "r.parquet")
        with pytest.raises(InputError, match=message):
            read_records(tmp_path / "r.parquet")


def test_a_json_array_holds_records_too(tmp_path: Path) -> None:
    """Rows are its places."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "prompt_id": "b"}]))
    assert read_records(path).prompt_ids == ("a", "b")
    path.write_text(json.dumps([GOOD, GOOD]))
    with pytest.raises(InputError, match="row 2: prompt_id: 'a' also stands in row 1"):
        read_records(path)


def test_an_unknown_model_gets_the_list_of_known_ones(tmp_path: Path) -> None:
    """In both formats; and a file without the field says so."""
    jsonl = write_jsonl(tmp_path / "m.jsonl", GOOD, {**GOOD, "model": "n"})
    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "model": "n"}]), tmp_path / "m.parquet")
    for path in (jsonl, tmp_path / "m.parquet"):
        assert len(read_records(path, "n")) == 1
        with pytest.raises(InputError, match="no row of 'x'; the file has m, n"):
            read_records(path, "x")
    with pytest.raises(InputError, match="no field model"):
        read_records(write_jsonl(tmp_path / "plain.jsonl", {"prompt": "p", "output_len": 1}), "x")


def test_prompts_need_no_lengths(tmp_path: Path) -> None:
    """Rows keep their place in the file; a split that is not there is named."""
    rows = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test", "max_new_tokens": 9}]
    path = write_jsonl(tmp_path / "p.jsonl", *rows)
    assert [row.prompt for row in read_prompts(path)] == ["a", "b"]
    only = read_prompts(path, split="test")
    assert [(row.index, row.prompt, row.max_new_tokens) for row in only] == [(1, "b", 9)]
    with pytest.raises(InputError, match="no row of 'validation'; the file has test, train"):
        read_prompts(path, split="validation")
