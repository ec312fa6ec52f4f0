import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.records.chats import load_data
from predictor.records.records import read_prompts, read_records, write_records

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Name a prime."}]}
USED = {"usage": {"output_tokens": 5}}
CHOICE = {"message": {"role": "assistant", "content": "It is 7."}, "finish_reason": "stop"}


def lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write a line per row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(count: int, **changed: Any) -> dict[str, Any]:
    """The body of an answer in OpenAI's form."""
    return {"choices": [CHOICE], "usage": {"prompt_tokens": 9, "completion_tokens": count}, **changed}


LOGGED = [
    {"request": ASKED, "response": answered(5)},
    {"request_body": json.dumps(ASKED), "response_body": json.dumps(answered(5))},
    {"request": {"body": ASKED}, "response": {"status_code": 200, "body": answered(5)}},
    {**ASKED, "usage": {"prompt_tokens": 9, "completion_tokens": 5}},
    {**ASKED, "prompt_tokens": 9, "completion_tokens": 5, "response": {"choices": [CHOICE]}, "startTime": "2026-11-27"},
    {"type": "GENERATION", "model": "m", "input": ASKED["messages"], "output": {"role": "assistant", "content": "7"},
     "usageDetails": {"input": 9, "output": 5}, "modelParameters": {"temperature": 0.5}},
    {"model": "m", "input": json.dumps(ASKED["messages"]), "output": "7", "promptTokens": 9, "completionTokens": 5},
    {"request": {"model": "m", "input": "Name a prime."},
     "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "7"}]}],
                  "usage": {"input_tokens": 9, "output_tokens": 5}}},
    {"request": ASKED, "response": {"content": [{"type": "text", "text": "7"}], "stop_reason": "end_turn",
                                    "usage": {"input_tokens": 4, "cache_read_input_tokens": 5, "output_tokens": 5}}},
]  # fmt: skip


@pytest.mark.parametrize(
    "row", LOGGED, ids=["pair", "text", "gateway", "usage", "litellm", "langfuse", "v2", "responses", "anthropic"]
)
def test_a_log_gives_the_prompt_and_the_counts_of_its_server(row: dict[str, Any], tmp_path: Path) -> None:
    """Whichever gateway or tracer wrote it; no tokenizer is needed."""
    records = load_data(str(lines(tmp_path / "log.jsonl", [row, row]))).records
    assert records.prompts == ("Name a prime.",) * 2
    assert [lengths.tolist() for lengths in records.output_lens] == [[5], [5]]
    assert records.num_prompt_tokens == (9, 9)
    assert records.models == ("m", "m")
    assert not any(flags.any() for flags in records.is_truncated)
    assert records.recorded


@pytest.mark.parametrize(
    ("response", "is_cut"),
    [
        (answered(5, choices=[{**CHOICE, "finish_reason": "length"}]), True),
        (answered(5, choices=[{**CHOICE, "finish_reason": "content_filter"}]), True),
        (answered(5, choices=[{**CHOICE, "finish_reason": "tool_calls"}]), False),
        ({"stop_reason": "max_tokens", "content": [], **USED}, True),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, **USED}, True),
    ],
)  # fmt: skip
def test_an_answer_that_would_have_gone_on_is_cut(response: dict[str, Any], is_cut: bool, tmp_path: Path) -> None:
    """In the words of each API."""
    rows = [{"request": ASKED, "response": response}, {"request": ASKED, "response": answered(3)}]
    records = load_data(str(lines(tmp_path / "log.jsonl", rows))).records
    assert [bool(flags[0]) for flags in records.is_truncated] == [is_cut, False]


def test_a_finish_reason_beside_a_length_counts_too(tmp_path: Path) -> None:
    """Of one draw or of several; what is_truncated says wins."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "output_len": 3, "finish_reason": "length"},
        {"prompt": "b", "output_lens": [3, 4], "finish_reason": ["stop", "length"]},
        {"prompt": "c", "output_len": 3, "finish_reason": "length", "is_truncated": False},
    ]
    records = read_records(lines(tmp_path / "r.jsonl", rows))
    assert [flags.tolist() for flags in records.is_truncated] == [[True], [False, True], [False]]


def test_reasoning_counts_whether_the_server_added_it_or_not(tmp_path: Path, tiny_encoder: Path) -> None:
    """As tokens of the answer, from the usage or from its text."""
    inside = {"completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 40}}
    apart = {"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 40}}
    rows = [{"request": ASKED, "response": answered(1, usage=usage)} for usage in (inside, apart)]
    assert [lens.tolist() for lens in load_data(str(lines(tmp_path / "u.jsonl", rows))).records.output_lens] == [
        [50],
        [50],
    ]
    said = [{"role": "user", "content": "write"}, {"role": "assistant", "content": "river"}]
    thought = [said[0], {**said[1], "reasoning_content": "river night " * 20}]
    chats = lines(tmp_path / "c.jsonl", [{"messages": said}, {"messages": thought}])
    plain, reasoned = load_data(str(chats), None, str(tiny_encoder)).records.output_lens
    assert reasoned[0] > 20 * plain[0] / 2


def test_the_halves_of_a_batch_are_joined_by_custom_id(tmp_path: Path) -> None:
    """In a folder, in any order; answers alone are a workload but no records."""
    (tmp_path / "batch").mkdir()
    asked = [{"custom_id": f"c{i}", "method": "POST", "url": "/v1", "body": ASKED} for i in range(4)]
    body = [{"status_code": 200, "body": answered(5 + i)} for i in range(3)] + [{"status_code": 500, "body": {}}]
    answers = [{"custom_id": f"c{i}", "response": response, "error": None} for i, response in enumerate(body)]
    lines(tmp_path / "batch" / "output.jsonl", answers)
    with pytest.raises(InputError, match=r"3 no prompt .*give a folder or a pattern with its input file"):
        load_data(str(tmp_path / "batch"))
    for name in ("a_input.jsonl", "z_input.jsonl"):
        lines(tmp_path / "batch" / name, asked)
        loaded = load_data(str(tmp_path / "batch"))
        assert [lens.tolist() for lens in loaded.records.output_lens] == [[5], [6], [7]]
        assert loaded.records.prompts == ("Name a prime.",) * 3
        assert loaded.dropped == {"request failed": 1}
        (tmp_path / "batch" / name).unlink()


def test_what_a_log_cannot_tell_is_counted_with_its_first_row(tmp_path: Path) -> None:
    """Failed requests, several answers with one count, images, nothing generated, spans of a trace."""
    image = {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    rows = [
        {"request": ASKED, "response": answered(5)},
        {"request": ASKED, "response": answered(9, choices=[CHOICE, CHOICE])},
        {"request": image, "response": answered(5)},
        {"request": ASKED, "response": answered(0)},
        {"request": ASKED, "response": answered(0)},
        {"request": ASKED, "error": {"message": "overloaded"}},
        {"request": ASKED, "response": {"error": {"message": "overloaded"}}},
        *({"request": ASKED, "response": nothing} for nothing in (None, {}, "", {"choices": []})),
        {"type": "SPAN", "input": "x", "output": "y"},
    ]
    loaded = load_data(str(lines(tmp_path / "log.jsonl", rows)))
    assert loaded.dropped == {
        "several answers in one row": 1, "no prompt in words": 1, "no token generated": 2, "request failed": 2,
        "no answer": 4, "no generation": 1,
    }  # fmt: skip
    assert loaded.first_dropped["no token generated"] == "log.jsonl row 4"


def test_a_log_may_begin_with_a_request_that_nobody_answered(tmp_path: Path) -> None:
    """It is no conversation whose answers a tokenizer would count; requests alone have nothing to learn from."""
    rows = [{"request": ASKED, "response": None}, {"request": ASKED, "response": answered(5)}]
    loaded = load_data(str(lines(tmp_path / "log.jsonl", rows)))
    assert ([lens.tolist() for lens in loaded.records.output_lens], loaded.dropped) == ([[5]], {"no answer": 1})
    with pytest.raises(InputError, match="no row can be used: 2 no answer"):
        load_data(str(lines(tmp_path / "asked.jsonl", [{"request": ASKED}] * 2)))


def test_prompts_of_a_log_are_those_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A request that failed can be asked again, one without words cannot; among records it is an error."""
    image = {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    rows = [{"request": ASKED, "response": None}, {"request": image, "response": answered(5)}]
    asked = read_prompts(lines(tmp_path / "log.jsonl", rows))
    assert [(row.index, row.prompt) for row in asked] == [(0, "Name a prime.")]
    assert "left out: 1 no prompt in words (first: log.jsonl row 2)" in caplog.text
    with pytest.raises(InputError, match="no row can be used: 1 no prompt in words"):
        read_prompts(lines(tmp_path / "images.jsonl", rows[1:]))
    with pytest.raises(InputError, match="row 1: messages: no user message with text"):
        read_prompts(lines(tmp_path / "records.jsonl", [image]))


SHAPES: list[dict[str, Any]] = [
    {"prompt": "write", "completion": "river night"},
    {"prompt": [{"role": "user", "content": "write"}], "completion": [{"role": "assistant", "content": "river night"}]},
    {"messages": [{"role": "user", "content": "write"}, {"role": "assistant", "content": "river night"}]},
    {"instruction": "write", "input": "", "output": "river night"},
    {"question": "write", "answer": "river night"},
    {"system": "brief", "conversations": [{"from": "human", "value": "write"}, {"from": "ai", "value": "river night"}]},
]


@pytest.mark.parametrize("row", SHAPES, ids=["text", "trl", "messages", "alpaca", "question", "system"])
def test_a_prompt_with_its_answer_is_a_conversation(row: dict[str, Any], tmp_path: Path, tiny_encoder: Path) -> None:
    """As data sets for tuning have it; the answer is counted by the tokenizer."""
    records = load_data(str(lines(tmp_path / "d.jsonl", [row, row])), None, str(tiny_encoder)).records
    assert {prompt.strip() for prompt in records.prompts} == {"write"}
    expected = load_data(str(lines(tmp_path / "e.jsonl", [SHAPES[2]])), None, str(tiny_encoder)).records
    assert records.output_lens[0].tolist() == expected.output_lens[0].tolist()
    assert records.contexts is not None
    assert {context.system_prompt for context in records.contexts} == {row.get("system", "")}


def test_every_format_holds_the_same_records(tmp_path: Path) -> None:
    """JSON lines with a mark of byte order or not, an array, an object, compressed, CSV, parquet, arrow."""
    rows = [{"prompt": "a", "output_len": 3, "model": "m"}, {"prompt": "b", "output_len": 4, "model": "m"}]
    text = "".join(json.dumps(row) + "\r\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.JSON").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({"data": rows, "meta": {"page": 1}}, indent=1))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "e.csv").write_text("# made up\nprompt;output_len;model\na;3.0;m\n\nb;4;m;\n")
    (tmp_path / "g.json").write_text(text)
    with pa.CompressedOutputStream(str(tmp_path / "f.jsonl.zst"), "zstd") as sink:
        sink.write(text.encode())
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "h.PARQUET")
    for name, new in (("i.arrow", pa.ipc.new_stream), ("j.arrow", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as out:
            out.write_table(table)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for file in files:
        records = read_records(file)
        assert (records.prompts, records.models) == (("a", "b"), ("m", "m")), file
        assert [lens.tolist() for lens in records.output_lens] == [[3], [4]], file


def test_numbers_and_absence_follow_one_rule(tmp_path: Path) -> None:
    """A whole float and its text are counts, NaN is absent, true is no number."""
    (tmp_path / "r.jsonl").write_text(
        '{"prompt": "a", "output_len": 3.0, "num_prompt_tokens": 12.0, "model": NaN, "max_new_tokens": NaN}\n'
        '{"prompt": "b", "output_len": "4", "num_prompt_tokens": null, "split": null, "is_truncated": 0.0}\n'
    )
    records = read_records(tmp_path / "r.jsonl")
    assert (records.models, records.max_new_tokens, records.num_prompt_tokens) == (("", ""), None, (12, None))
    for value in (True, -4, 2.5, "many"):
        lines(tmp_path / "bad.jsonl", [{"prompt": "a", "output_len": 3, "num_prompt_tokens": value}])
        with pytest.raises(InputError, match=r"row 1: num_prompt_tokens: .* is not a whole number"):
            read_records(tmp_path / "bad.jsonl")


def test_a_folder_holds_what_is_visible(tmp_path: Path) -> None:
    """Names that begin with a dot are no data; the names of hive folders are columns; saved folders are read."""
    row = {"prompt": "a", "output_len": 3}
    for name in ("day=1/model=m", "day=2/model=n", ".ipynb_checkpoints"):
        (tmp_path / "hive" / name).mkdir(parents=True)
        lines(tmp_path / "hive" / name / "part.jsonl", [row])
    lines(tmp_path / "hive" / ".hidden.jsonl", [row])
    assert load_data(str(tmp_path / "hive")).records.models == ("m", "n")
    assert load_data(str(tmp_path / "hive" / "*" / "*" / "*.jsonl")).records.models == ("m", "n")
    import datasets

    datasets.Dataset.from_list([row, {**row, "prompt": "b"}]).save_to_disk(tmp_path / "saved")
    assert load_data(str(tmp_path / "saved")).records.prompts == ("a", "b")


def test_the_conversation_and_what_the_request_said_are_kept(tmp_path: Path) -> None:
    """For the chat template and for the network; what is not mentioned is not known."""
    said = [{"role": "developer", "content": "Be brief."}, *ASKED["messages"], {"role": "assistant", "content": "7"}]
    messages = [*said, {"role": "user", "content": "Another."}]
    body = {"model": "m", "messages": messages, "max_tokens": 9, "temperature": 0, "tools": [{}, {}], "n": 1,
            "response_format": {"type": "json_object"}, "thinking": {"type": "enabled", "budget_tokens": 100},
            }  # fmt: skip
    path = lines(
        tmp_path / "log.jsonl",
        [{"request": body, "response": answered(5)}, {"request": ASKED, "response": answered(5)}],
    )
    first, second = read_prompts(path)
    assert first.messages == (
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a prime."},
        {"role": "assistant", "content": "7"}, {"role": "user", "content": "Another."},
    )  # fmt: skip
    assert first.prompt == "Another."
    assert first.context == RequestContext("Be brief.", 2, 14, 1, 2, 9, 0.0, True, 100, True, 1)
    assert second.messages is None
    assert (second.context.num_tools, second.context.is_json, second.context.temperature) == (None, None, None)
    assert read_prompts(lines(tmp_path / "p.jsonl", [{"prompt": "a"}]))[0].context == RequestContext()


def test_contexts_groups_and_arrivals_survive_a_file(tmp_path: Path) -> None:
    """As do those of a record that states them itself."""
    rows = [
        {
            "prompt": "a",
            "output_len": 3,
            "system": "",
            "tools": 2,
            "thinking": 64,
            "group": "g",
            "class": "batch",
            "arrival_time": "2026-11-27",
        },
        {"prompt": "b", "output_len": 4, "temperature": 0.7, "is_json": True, "arrival_time": "2026-11-28"},
    ]
    records = read_records(lines(tmp_path / "r.jsonl", rows))
    assert records.contexts is not None
    assert (records.contexts[0].thinking, records.contexts[0].thinking_budget, records.contexts[0].num_tools) == (
        True,
        64,
        2,
    )
    assert records.groups == ("g", "")
    assert records.classes == ("batch", "")
    assert records.arrival_times is not None
    assert records.arrival_times[1] - records.arrival_times[0] == 86_400
    write_records(records, tmp_path / "again.parquet")
    again = read_records(tmp_path / "again.parquet")
    assert (again.contexts, again.groups, again.classes, again.arrival_times) == (
        records.contexts,
        records.groups,
        records.classes,
        records.arrival_times,
    )


def test_a_cap_reaches_records_and_logs(tmp_path: Path) -> None:
    """Answers at it are cut there, whatever the file says."""
    rows = [{"prompt": "a", "output_lens": [3, 9]}, {"prompt": "b", "output_len": 5}]
    records = load_data(str(lines(tmp_path / "r.jsonl", rows)), length_cap=5).records
    assert [lens.tolist() for lens in records.output_lens] == [[3, 5], [5]]
    assert [flags.tolist() for flags in records.is_truncated] == [[False, True], [True]]


def test_an_unknown_role_is_named_with_its_row(tmp_path: Path) -> None:
    """In records; in conversations it is a reason to leave a row out."""
    rows = [{"messages": [{"role": "narrator", "content": "a"}, {"role": "user", "content": "b"}], "output_len": 3}]
    with pytest.raises(InputError, match="row 1: messages: role 'narrator' is unknown"):
        read_records(lines(tmp_path / "r.jsonl", rows))


def test_a_prompt_is_numbered_among_the_rows_of_its_data(tmp_path: Path) -> None:
    """From 0 whatever the file: the header of a table is no row, and the files of a folder follow one another."""
    (tmp_path / "a.csv").write_text("prompt,split\na,train\n\nb,test\n")
    assert [row.index for row in read_prompts(tmp_path / "a.csv")] == [0, 1]
    assert [row.index for row in read_prompts(tmp_path / "a.csv", split="test")] == [1]
    (tmp_path / "b.csv").write_text("prompt,split\nc,test\n")
    assert [(row.index, row.prompt) for row in read_prompts(tmp_path, split="test")] == [(1, "b"), (2, "c")]


def test_a_log_with_odd_times_trains_all_the_same(tmp_path: Path) -> None:
    """Only a split by time needs them; in records a bad time is an error."""
    for odd in ("yesterday", None):
        logged = [{"request": ASKED, "response": answered(5), "created": when} for when in (1_764_271_830, odd)]
        assert load_data(str(lines(tmp_path / "log.jsonl", logged))).records.arrival_times is None
    rows = [{"prompt": "a", "output_len": 3, "arrival_time": when} for when in (1_764_271_830, "yesterday")]
    with pytest.raises(InputError, match="row 2: arrival_time: 'yesterday' must be a number"):
        read_records(lines(tmp_path / "r.jsonl", rows))
    whole = [{"request": ASKED, "response": answered(5), "created": 1_764_271_830 + i} for i in range(2)]
    assert load_data(str(lines(tmp_path / "log.jsonl", whole))).records.arrival_times == (1_764_271_830, 1_764_271_831)
