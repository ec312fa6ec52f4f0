import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor.errors import InputError
from predictor.records.chat_turns import MAX_PROMPT_CHARACTERS, ChatOptions
from predictor.records.chats import LoadedData, load_data
from predictor.records.records import read_records, write_records
from predictor.records.rows import Row

SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
HELLO = [("user", "write about a river"), ("assistant", "river night")]


def turns(pairs: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Turns in the shape of LMSYS-Chat-1M."""
    return [{"content": content, "role": role} for role, content in pairs]


def lmsys(index: int, **changed: Any) -> dict[str, Any]:
    """One row in the schema of lmsys/lmsys-chat-1m."""
    said = [("user", f"write about river {index}"), ("assistant", "river night " * (index + 1))]
    conversation = turns([*said, ("user", "more"), ("assistant", "garden")])
    row = {"conversation_id": f"c{index}", "model": "vicuna-13b", "conversation": conversation, "turn": 2}
    moderation = [{"categories": {"hate": False}, "flagged": False}] * 4
    return {**row, "language": "English", "openai_moderation": moderation, "redacted": False, **changed}


def wildchat(index: int, *, redacted: Sequence[bool] = (False,) * 4, **changed: Any) -> dict[str, Any]:
    """One row in the schema of allenai/WildChat-1M."""
    said = [("user", f"write about garden {index}"), ("assistant", "winter"), ("user", "again"), ("assistant", "river")]
    conversation = [
        {
            "content": content, "country": "Italy", "hashed_ip": "0f", "header": {"user-agent": "x"},
            "language": "English", "redacted": is_redacted, "role": role, "state": None, "timestamp": None,
            "toxic": False, "turn_identifier": 7 + place,
        }
        for place, ((role, content), is_redacted) in enumerate(zip(said, redacted, strict=True))
    ]  # fmt: skip
    row = {"conversation_hash": f"h{index}", "model": "gpt-4", "conversation": conversation, "turn": 2}
    flags = {"toxic": True, "redacted": any(redacted), "country": "Italy"}
    return {**row, "language": "English", "detoxify_moderation": [{"toxicity": 0.5}], **flags, **changed}


def sharegpt(index: int, said: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One row in the schema of ShareGPT."""
    return {"id": f"s{index}", "conversations": [{"from": SHAREGPT_ROLES[r], "value": v} for r, v in said]}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows in the format that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tiny_encoder: Path) -> str:
    """The tokenizer that counts answers, here one token a word."""
    return str(tiny_encoder)


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """Five conversations of one model and one of another; one has no answer."""
    rows = [lmsys(i) for i in range(5)] + [lmsys(9, model="koala-13b")]
    rows[3]["conversation"] = rows[3]["conversation"][:1]
    return write(tmp_path / "chat.parquet", rows)


def load_said(path: Path, tokenizer: str, said: Sequence[tuple[str, Any]], **options: Any) -> LoadedData:
    """Load one conversation after a plain one."""
    rows = [{"conversation_id": "plain", "conversation": turns(HELLO)}, {"conversation": turns(said)}]
    return load_data(str(write(path / "said.jsonl", rows)), None, tokenizer, None, ChatOptions(**options))


def test_the_first_exchange_becomes_a_record(chat_file: Path, tokenizer: str) -> None:
    """Its length is the answer in tokens plus the end token; the language is the group; other rows are counted."""
    loaded = load_data(str(chat_file), "vicuna-13b", tokenizer)
    records = loaded.records
    assert records.prompts == tuple(f"write about river {i}" for i in (0, 1, 2, 4))
    lengths = np.concatenate(records.output_lens)
    assert np.all(np.diff(lengths - 1) % (lengths[0] - 1) == 0)
    assert lengths[-1] - 1 == 5 * (lengths[0] - 1)
    assert set(records.datasets) == {"English"}
    assert records.prompt_ids == ("c0", "c1", "c2", "c4")
    assert (loaded.num_rows, loaded.dropped) == (6, {"no answer": 1, "model": 1})


def test_answers_at_a_known_cap_are_truncated(chat_file: Path, tokenizer: str) -> None:
    """The data set does not say so itself; where all are, there is nothing to learn from."""
    free = load_data(str(chat_file), "vicuna-13b", tokenizer).records
    cap = int(free.output_lens[1][0])
    capped = load_data(str(chat_file), "vicuna-13b", tokenizer, cap).records
    assert [bool(flags[0]) for flags in capped.is_truncated] == [False, True, True, True]
    assert max(int(lens[0]) for lens in capped.output_lens) == cap
    with pytest.raises(InputError, match="is_truncated: every answer was cut"):
        load_data(str(chat_file), "vicuna-13b", tokenizer, 1)


def test_a_tokenizer_that_panics_is_one_line(chat_file: Path, tokenizer: str, tmp_path: Path) -> None:
    """Rust's panics are no Exception: one while it is read, one at a text that its regular expression gives up."""
    file = json.loads((Path(tokenizer) / "tokenizer.json").read_text())
    spoilt = tmp_path / "tokenizer.json"
    spoilt.write_text(json.dumps({**file, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}))
    with pytest.raises(InputError, match=r"tokenizer\.json: damaged"):
        load_data(str(chat_file), "vicuna-13b", str(spoilt))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$|(?=b)"}, "behavior": "Isolated", "invert": False}
    spoilt.write_text(json.dumps({**file, "pre_tokenizer": split}))
    with pytest.raises(InputError, match="of 5001 characters: the tokenizer cannot read it"):
        load_said(tmp_path, str(spoilt), [("user", "why"), ("assistant", "a" * 5000 + "c")])


def test_conversations_need_a_tokenizer_and_a_model(chat_file: Path, tokenizer: str) -> None:
    """Words are no substitute for tokens."""
    with pytest.raises(InputError, match="--tokenizer"):
        load_data(str(chat_file), "vicuna-13b")
    with pytest.raises(InputError, match="koala-13b, vicuna-13b"):
        load_data(str(chat_file), None, tokenizer)
    with pytest.raises(InputError, match="no row of 'x'; the file has koala-13b, vicuna-13b"):
        load_data(str(chat_file), "x", tokenizer)


def test_a_hub_data_set_out_of_reach_says_where_to_accept_its_terms(
    monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    """One line with the address and the login command."""
    import datasets

    def refuse(name: str, **_: Any) -> None:
        raise ConnectionError("gated\nor offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match="--model"):
        load_data("lmsys/lmsys-chat-1m", None, tokenizer)
    with pytest.raises(InputError) as caught:
        load_data("lmsys/lmsys-chat-1m", "vicuna-13b", tokenizer)
    message = str(caught.value)
    assert "https://huggingface.co/datasets/lmsys/lmsys-chat-1m" in message
    assert "hf auth login" in message
    assert "\n" not in message


def test_a_hub_data_set_becomes_records(monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    """The rows of the chosen model alone."""
    import datasets

    rows = [lmsys(0), lmsys(1, model="koala-13b"), lmsys(2)]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: datasets.Dataset.from_list(rows))
    records = load_data("lmsys/lmsys-chat-1m", "vicuna-13b", tokenizer).records
    assert records.prompt_ids == ("c0", "c2")
    with pytest.raises(InputError, match="no row of 'gpt-9'"):
        load_data("lmsys/lmsys-chat-1m", "gpt-9", tokenizer)
    plain = datasets.Dataset.from_list([{"text": "a", "model": "m"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: plain)
    with pytest.raises(InputError, match="conversation: missing; the data set has model, text"):
        load_data("some/corpus", "m", tokenizer)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_wildchat_goes_by_the_marks_on_its_turns(suffix: str, tmp_path: Path, tokenizer: str) -> None:
    """A redaction in a later turn spares the first exchange, not the last; toxic conversations stay."""
    late, early = (False, False, True, False), (True, False, False, False)
    rows = [wildchat(0), wildchat(1, redacted=late), wildchat(2, redacted=early), wildchat(3, language="French")]
    path = str(write(tmp_path / f"wild{suffix}", rows))
    first = load_data(path, "gpt-4", tokenizer, None, ChatOptions(language="english"))
    assert first.records.prompt_ids == ("h0", "h1")
    assert first.dropped == {"redacted": 1, "language": 1}
    last = load_data(path, "gpt-4", tokenizer, None, ChatOptions(turn="last"))
    assert last.records.prompt_ids == ("h0", "h2", "h3")
    assert set(last.records.prompts) == {"again"}


def test_a_redacted_conversation_without_marks_on_turns_is_left_out(tmp_path: Path, tokenizer: str) -> None:
    """As LMSYS-Chat-1M has it."""
    path = write(tmp_path / "chat.parquet", [lmsys(0, redacted=True), lmsys(1)])
    loaded = load_data(str(path), None, tokenizer)
    assert loaded.records.prompt_ids == ("c1",)
    assert loaded.dropped == {"redacted": 1}


def test_sharegpt_reads_alike_in_all_formats(tmp_path: Path, tokenizer: str) -> None:
    """A JSON array, JSONL and parquet; the system's turn is context, a conversation opened by the model is left out."""
    rows = [
        sharegpt(0, [("system", "be brief"), *HELLO]),
        sharegpt(1, [("assistant", "hello"), *HELLO]),
        sharegpt(2, [("user", "a winter list"), ("tool", "{}"), ("assistant", "river")]),
        sharegpt(3, [("user", "a winter poem"), ("assistant", "river"), ("user", "more"), ("assistant", "night")]),
    ]
    for suffix in (".json", ".jsonl", ".parquet"):
        loaded = load_data(str(write(tmp_path / f"share{suffix}", rows)), None, tokenizer)
        assert loaded.records.prompts == ("write about a river", "a winter poem")
        assert loaded.records.prompt_ids == ("s0", "s3")
        assert loaded.dropped == {"assistant first": 1, "tool turn": 1}
        with pytest.raises(InputError, match="no field model; leave --model out"):
            load_data(str(tmp_path / f"share{suffix}"), "gpt-4", tokenizer)


def test_the_last_turn_carries_as_much_context_as_asked(tmp_path: Path, tokenizer: str) -> None:
    """Counted in messages and in characters, the latest first."""
    said = [("system", "brief"), *HELLO, ("user", "more"), ("assistant", "garden"), ("user", "unanswered")]
    earlier = "system: brief\n\nuser: write about a river\n\nassistant: river night"
    for changed, prompt in (
        ({}, "more"),
        ({"context_turns": 1}, "assistant: river night\n\nuser: more"),
        ({"context_turns": 9}, f"{earlier}\n\nuser: more"),
        ({"context_turns": 9, "context_characters": 5}, "night\n\nuser: more"),
        ({"context_turns": 9, "context_characters": 0}, "more"),
        ({"turn": "first", "context_turns": 9}, "system: brief\n\nuser: write about a river"),
    ):
        records = load_said(tmp_path, tokenizer, said, **{"turn": "last", **changed}).records
        assert records.prompts[1] == prompt
    with pytest.raises(InputError, match="turn: must be first or last"):
        ChatOptions(turn="middle")
    with pytest.raises(InputError, match="context_turns: must be at least 0"):
        ChatOptions(context_turns=-1)


def test_a_conversation_to_answer_is_rendered_as_in_training(tmp_path: Path, tokenizer: str) -> None:
    """What `amin predict` asks for messages that end with the user's is what training saw for the answered ones."""
    said = [("system", "brief"), *HELLO, ("user", "more"), ("user", "please")]
    asked = [{"role": role, "content": content} for role, content in said]
    for options in ({}, {"context_turns": 1}, {"context_turns": 9, "context_characters": 20}):
        answered = load_said(tmp_path, tokenizer, [*said, ("assistant", "garden")], turn="last", **options).records
        row = Row("file", 1, {"messages": asked})
        assert row.prompt(ChatOptions(**options)) == answered.prompts[1]
    assert row.prompt() == "more\n\nplease"
    with pytest.raises(InputError, match="row 1: messages: no user message"):
        Row("file", 1, {"messages": [*asked, {"role": "assistant", "content": "garden"}]}).prompt(ChatOptions())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "empty"),
        ([("system", "be brief")], "empty"),
        ([("user", " \n"), ("assistant", "a")], "empty"),
        ([("user", "a"), ("assistant", "")], "empty"),
        ([("user", None), ("assistant", "a")], "empty"),
        ([("user", "a"), ("assistant", None)], "empty"),
        ([("user", "a")], "no answer"),
        ([("user", "a"), ("system", "b"), ("assistant", "c")], "no answer"),
        ([("assistant", "a"), ("user", "b")], "assistant first"),
        ([("tool", "a"), ("assistant", "b")], "tool turn"),
        ([("user", "a"), ("function_call", "b"), ("assistant", "c")], "tool turn"),
        ([("user", "a"), ("assistant", None), ("tool", "b"), ("assistant", "c")], "tool turn"),
        ([("user", "a"), ("moderator", "b")], "unknown role 'moderator'"),
        ([(None, "a"), ("assistant", "b")], "no role"),
        ([("user", 3), ("assistant", "b")], "not text"),
        ([("user", [{"type": "image"}]), ("assistant", "b")], "not text"),
        ([("user", "\ud800"), ("assistant", "b")], "bad Unicode"),
        ([("user", "a"), ("assistant", "\udfff")], "bad Unicode"),
        ([("user", "x" * (MAX_PROMPT_CHARACTERS + 1)), ("assistant", "b")], "too long"),
    ],
)
def test_a_conversation_without_a_usable_exchange_is_counted(
    tmp_path: Path, tokenizer: str, said: list[tuple[str, Any]], reason: str
) -> None:
    """By the reason, and the others stay."""
    loaded = load_said(tmp_path, tokenizer, said)
    assert loaded.dropped == {reason: 1}
    assert loaded.records.prompt_ids == ("plain",)


@pytest.mark.parametrize("turn", ["first", "last"])
def test_turns_in_a_row_are_one_prompt_and_the_first_answer(tmp_path: Path, tokenizer: str, turn: str) -> None:
    """The model read all the messages, and stopped where its first answer ended."""
    said = [("user", "a river"), ("user", ""), ("user", "a night"), ("assistant", "river"), ("assistant", "x y z")]
    records = load_said(tmp_path, tokenizer, said, turn=turn).records
    assert records.prompts[1] == "a river\n\na night"
    assert records.output_lens[1] < records.output_lens[0]


def test_the_last_turn_of_a_conversation_opened_by_the_model_counts(tmp_path: Path, tokenizer: str) -> None:
    """Its opening is context."""
    said = [("assistant", "hi"), *HELLO]
    records = load_said(tmp_path, tokenizer, said, turn="last", context_turns=2).records
    assert records.prompts[1] == "assistant: hi\n\nuser: write about a river"


def test_prompts_of_all_scripts_and_sizes_come_through_unchanged(tmp_path: Path, tokenizer: str) -> None:
    """Right to left, emoji with joiners, combining marks, and 100,000 characters."""
    prompts = [
        "اكتب قصة عن النهر",
        "👩‍👩‍👧‍👦 🇮🇹 explain",
        "e\u0301crire un poe\u0300me",
        "\u202eabc\u0000",
        "ж" * 100_000,
    ]
    rows = [{"conversation": turns([("user", prompt), ("assistant", prompt)])} for prompt in prompts]
    for suffix in (".parquet", ".jsonl", ".json"):
        loaded = load_data(str(write(tmp_path / f"odd{suffix}", rows)), None, tokenizer)
        assert loaded.records.prompts == tuple(prompts)
        assert loaded.records.prompt_ids == tuple(f"row-{i}" for i in range(1, 6))
        assert not loaded.dropped


def test_a_folder_and_a_pattern_are_read_as_one(tmp_path: Path, tokenizer: str) -> None:
    """In order of name; ids that come again are counted; a row that states its length needs no count."""
    folder = tmp_path / "data" / "deep"
    folder.mkdir(parents=True)
    write(folder / "train-00001.parquet", [lmsys(2), lmsys(0)])
    write(folder / "train-00000.parquet", [lmsys(0), lmsys(1)])
    (folder / "README.md").write_text("chats")
    for data in (tmp_path / "data", folder / "*.parquet", tmp_path / "**" / "train-?????.parquet"):
        loaded = load_data(str(data), None, tokenizer)
        assert loaded.records.prompt_ids == ("c0", "c1", "c2")
        assert (loaded.num_rows, loaded.dropped) == (4, {"duplicate id": 1})
    with pytest.raises(InputError, match="no such file"):
        load_data(str(folder / "*.jsonl"), None, tokenizer)
    write(folder / "z.parquet", [{"prompt": "p", "output_len": 3, "model": "vicuna-13b"}])
    mixed = load_data(str(folder), None, tokenizer).records
    assert (mixed.prompts[-1], mixed.output_lens[-1].tolist()) == ("p", [3])


def test_a_pattern_is_no_hub_name(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it may hold one slash."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.parquet", [lmsys(0)])
    monkeypatch.chdir(tmp_path)
    for data in ("data/*", "data", "data/a.parquet"):
        assert load_data(data, None, tokenizer).records.prompt_ids == ("c0",)
    with pytest.raises(InputError, match="no such file"):
        load_data("data/b.parquet", None, tokenizer)


def test_languages_that_are_not_there_are_named(tmp_path: Path, tokenizer: str) -> None:
    """Or that there are none."""
    path = str(write(tmp_path / "a.jsonl", [lmsys(0), lmsys(1, language="Thai")]))
    with pytest.raises(InputError, match="language: no row of 'German'; the data has English, Thai"):
        load_data(path, None, tokenizer, None, ChatOptions(language="German"))
    plain = str(write(tmp_path / "b.jsonl", [{"conversation": turns(HELLO)}]))
    with pytest.raises(InputError, match="no field language; leave --language out"):
        load_data(plain, None, tokenizer, None, ChatOptions(language="German"))


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "a.jsonl",
            [lmsys(0), lmsys(1, conversation="hello")],
            "row 2: conversation: must be a list of messages .* not text",
        ),
        ("a.jsonl", [lmsys(0), lmsys(1, conversation=["hello"])], "row 2: conversation: a turn must be an object"),
        ("a.jsonl", [lmsys(0), [1]], "row 2: must be a JSON object, not list"),
        ("a.json", [lmsys(0), 7], "row 2: must be a JSON object, not int"),
        ("a.parquet", [lmsys(0, conversation="hello")], "row 1: conversation: must be a list of messages .* not text"),
        (
            "a.parquet",
            [lmsys(0, conversation=[{"text": "a"}])],
            r"can be used \(1 no role \(first: a.parquet row 1\)\)",
        ),
        ("a.parquet", [lmsys(0, conversation=7)], "row 1: conversation: must be a list of messages .* not int"),
        ("a.jsonl", [lmsys(0, split="dev")], "row 1: split: 'dev' is not one of train"),
        ("a.jsonl", [lmsys(0, split="test"), lmsys(1)], "split: missing in some rows"),
        ("a.jsonl", [lmsys(0), lmsys(1, model=None)], r"model: several in one file; .* \(none\), vicuna-13b"),
        (
            "a.jsonl",
            [lmsys(0, conversation=None), lmsys(1, conversation=[])],
            r"can be used \(2 empty \(first: a.jsonl row 1\)\)",
        ),
    ],
)
def test_data_of_another_shape_is_named(tmp_path: Path, tokenizer: str, name: str, rows: Any, message: str) -> None:
    """File, row and field in one line."""
    path = write(tmp_path / name, rows)
    with pytest.raises(InputError, match=message) as caught:
        load_data(str(path), None, tokenizer)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_named(tmp_path: Path, tokenizer: str) -> None:
    """Parquet without its end or with a damaged page, JSONL and an array broken off."""
    whole = write(tmp_path / "whole.parquet", [lmsys(i) for i in range(200)]).read_bytes()
    damaged = bytearray(whole)
    damaged[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)
    array, lines = json.dumps([lmsys(0), lmsys(1)]), json.dumps(lmsys(0))
    for name, content, message in (
        ("cut.parquet", whole[: len(whole) // 2], "not a readable parquet file"),
        ("damaged.parquet", bytes(damaged), "not a readable parquet file"),
        ("empty.parquet", b"", "not a readable parquet file"),
        ("cut.json", array[:-40].encode(), "row 2: not JSON, cut short"),
        ("cut.jsonl", f"{lines}\n{lines[:50]}".encode(), "row 2: not JSON"),
        ("bytes.jsonl", f"{lines}\n".encode() + b"\xff\xfe", "not UTF-8"),
        ("none.json", b"[]", "no rows"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            load_data(str(tmp_path / name), None, tokenizer)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_an_array_is_read_piece_by_piece(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the pieces end."""
    path = write(tmp_path / "a.json", [lmsys(i) for i in range(3)])
    expected = load_data(str(path), None, tokenizer).records.prompts
    for size in (1, 2, 7, 64):
        monkeypatch.setattr("predictor.records.text_files.PIECE", size)
        assert load_data(str(path), None, tokenizer).records.prompts == expected


def test_recorded_lengths_stay_marked_as_such(chat_file: Path, records_file: Path, tokenizer: str) -> None:
    """Through selection and a file; drawn ones are not."""
    records = load_data(str(chat_file), "vicuna-13b", tokenizer).records
    assert records.recorded
    write_records(records.select([2, 0]), chat_file.with_name("kept.parquet"))
    assert read_records(chat_file.with_name("kept.parquet")).recorded
    assert not load_data(str(records_file)).records.recorded


def test_records_take_no_choice_of_turns(records_file: Path) -> None:
    """Their lengths belong to the prompt they state; rows of other models are counted."""
    loaded = load_data(str(records_file), "made-up")
    assert (len(loaded.records), loaded.num_rows, loaded.dropped) == (160, 160, {})
    with pytest.raises(InputError, match="these are records"):
        load_data(str(records_file), None, None, None, ChatOptions(turn="last"))
