import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.simulate.traces import read_requests, read_trace
from scheduler.errors import InputError
from scheduler.workload import NO_CAP, Workload, read_workload, workload_lines

Columns = dict[str, list[Any]]

AZURE: Columns = {
    "TIMESTAMP": ["2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690", "2023-11-16 18:16:46.6805901"],
    "ContextTokens": [374, 396, 879],
    "GeneratedTokens": [44, 109, 55],
}
MOONCAKE: Columns = {
    "timestamp": [27000, 30500, 27482],
    "input_length": [6758, 7322, 0],
    "output_length": [500, 490, 1],
    "hash_ids": [[0, 1], [2], []],
}


def write_parquet(folder: Path, columns: Columns) -> Path:
    """The columns as a parquet file."""
    path = folder / "trace.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def write_csv(folder: Path, columns: Columns) -> Path:
    """The columns as a CSV file; lists in quotes."""
    path = folder / "trace.csv"
    cells = [[f'"{v}"' if isinstance(v, list) else str(v) for v in column] for column in columns.values()]
    rows = [list(columns), *zip(*cells, strict=True)]
    path.write_text("\r\n".join(",".join(row) for row in rows) + "\r\n")
    return path


def write_jsonl(folder: Path, columns: Columns) -> Path:
    """The columns as a JSONL file."""
    path = folder / "trace.jsonl"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Write = Callable[[Path, Columns], Path]
WRITERS = pytest.mark.parametrize("write", [write_parquet, write_csv, write_jsonl])


def read(path: Path, max_new_tokens: int | None = None) -> Workload:
    """The workload of a file."""
    return read_requests(path, max_new_tokens)


def facts(workload: Workload) -> tuple[list[int], list[int], list[float]]:
    """Prompt lengths, output lengths and arrival times."""
    requests = workload.requests
    return [r.num_prompt_tokens for r in requests], workload.output_lens, [r.arrival_time for r in requests]


@WRITERS
def test_azure_as_published(tmp_path: Path, write: Write) -> None:
    """Seconds since the first, to the microsecond; no limit."""
    workload = read(write(tmp_path, AZURE))
    assert facts(workload) == ([374, 396, 879], [44, 109, 55], [0, 4.314579, 60])
    assert {request.max_new_tokens for request in workload.requests} == {NO_CAP}
    assert len({request.request_id for request in workload.requests}) == 3


@WRITERS
def test_azure_in_snake_case(tmp_path: Path, write: Write) -> None:
    """As the published columns; dates may state UTC."""
    names = ["timestamp", "context_tokens", "generated_tokens"]
    columns = dict(zip(names, AZURE.values(), strict=True)) | {"timestamp": [f"{t}+00:00" for t in AZURE["TIMESTAMP"]]}
    assert facts(read(write(tmp_path, columns))) == facts(read(write(tmp_path, AZURE)))


def test_dates_may_have_the_type_of_dates(tmp_path: Path) -> None:
    """As pandas writes them to parquet."""
    dates = [datetime.fromisoformat(text) for text in AZURE["TIMESTAMP"]]
    assert facts(read(write_parquet(tmp_path, AZURE | {"TIMESTAMP": dates})))[2] == [0, 4.314579, 60]


@WRITERS
def test_mooncake(tmp_path: Path, write: Write) -> None:
    """Milliseconds become seconds since the earliest, in the order of the file; hashes are ignored."""
    assert facts(read(write(tmp_path, MOONCAKE))) == ([6758, 7322, 0], [500, 490, 1], [0, 3.5, 0.482])


@WRITERS
def test_sharegpt_lengths(tmp_path: Path, write: Write) -> None:
    """All at 0."""
    assert facts(read(write(tmp_path, {"prefill": [74, 290], "decode": [918, 905]}))) == ([74, 290], [918, 905], [0, 0])


@WRITERS
@pytest.mark.parametrize("name", ["n_tok", "output_len"])
def test_bare_lengths(tmp_path: Path, write: Write, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Prompts are unknown and count as 0, which is said."""
    with caplog.at_level(logging.WARNING):
        assert facts(read(write(tmp_path, {name: [7, 9]}))) == ([0, 0], [7, 9], [0, 0])
    assert "prompts count as 0 tokens" in caplog.text


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_records_give_their_first_draw(tmp_path: Path, write: Write) -> None:
    """Also with draws of different number, an arrival time and limits of their own."""
    columns: Columns = {"prompt": ["a", "b"], "num_prompt_tokens": [3, 4], "output_lens": [[5, 8], [6]]}
    assert facts(read(write(tmp_path, columns))) == ([3, 4], [5, 6], [0, 0])
    workload = read(write(tmp_path, columns | {"arrival_time": [0.5, 0.25], "max_new_tokens": [10, 20]}), 15)
    assert facts(workload) == ([3, 4], [5, 6], [0.5, 0.25])
    assert [request.max_new_tokens for request in workload.requests] == [10, 20]


def test_records_of_one_length(tmp_path: Path) -> None:
    """A length for each prompt, in parquet; whole numbers may be stored as floats."""
    path = write_parquet(tmp_path, {"num_prompt_tokens": [3.0, 4.0], "output_len": [5, 6]})
    assert facts(read(path, 32)) == ([3, 4], [5, 6], [0, 0])


def test_our_own_workload_is_read_as_ever(tmp_path: Path) -> None:
    """With bounds, limits and names; its errors are those of `read_workload`."""
    row = {"request_id": "a", "num_prompt_tokens": 3, "output_len": 5, "output_len_lower_bound": 2}
    path = tmp_path / "workload.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read(path) == read_workload(path)
    assert read(path, 9) == read_workload(path, 9)
    for text in ("", '{"request_id": "a", "output_len": 5}\n', json.dumps(row | {"output_len_lower_bound": 0})):
        path.write_text(text)
        with pytest.raises(InputError) as expected:
            read_workload(path)
        with pytest.raises(InputError) as raised:
            read(path)
        assert str(raised.value) == str(expected.value)


@WRITERS
def test_rows_without_output_are_dropped_and_counted(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """The others keep their place in the file and the clock of the whole file."""
    path = write(tmp_path, MOONCAKE | {"output_length": [0, 490, 0]})
    with caplog.at_level(logging.WARNING):
        workload = read(path)
    assert facts(workload) == ([7322], [490], [3.5])
    assert workload.requests[0].request_id.startswith(f"{path}: ")
    assert "left out: 2 with output_length 0 (first: trace" in caplog.text


BAD = [
    (AZURE, {"GeneratedTokens": [44, -1, 55]}, "GeneratedTokens is {}-1{}, must be a whole number of tokens"),
    (AZURE, {"ContextTokens": [374, 2.5, 3]}, "ContextTokens is {}2.5{}, must be a whole number of tokens"),
    (AZURE, {"TIMESTAMP": [AZURE["TIMESTAMP"][0], "soon", "later"]}, "TIMESTAMP is 'soon', must be a date and time"),
    (AZURE, {"TIMESTAMP": [AZURE["TIMESTAMP"][0], "2023-02-30 18:15:46", ""]}, "TIMESTAMP is '2023-02-30 18:15:46'"),
    (MOONCAKE, {"timestamp": [0, -3, 5]}, "timestamp is {}-3{}, must be a number, finite and at least 0"),
    (MOONCAKE, {"output_length": ["1", "many", "3"]}, "output_length is 'many', must be a whole number of tokens"),
    (MOONCAKE, {"output_length": [1, 2**60, 3]}, "output_length is {}1152921504606846976{}, must be a whole number"),
]


@WRITERS
@pytest.mark.parametrize(("columns", "change", "complaint"), BAD)
def test_a_bad_value_is_one_line_of_error(
    tmp_path: Path, write: Write, columns: Columns, change: Columns, complaint: str
) -> None:
    """It names the file, the second row as the user counts it, the column and the value."""
    path = write(tmp_path, columns | change)
    with pytest.raises(InputError) as raised:
        read(path)
    message = str(raised.value)
    place = {".parquet": "row 2", ".csv": "line 3", ".jsonl": "line 2"}[path.suffix]
    quote = "'" if path.suffix == ".csv" else ""
    assert message.startswith(f"{path}: {place}: {complaint.format(quote, quote)}")
    assert "\n" not in message


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_prompt_tokens", [1, None]),
        ("output_lens", [[1], None]),
        ("output_lens", [[1], []]),
        ("output_lens", [[1], [None, 3]]),
        ("arrival_time", [0.5, None]),
        ("max_new_tokens", [9, None]),
        ("num_prompt_tokens", [True, False]),
    ],
)
def test_a_null_is_an_input_error(tmp_path: Path, write: Write, name: str, values: list[Any]) -> None:
    """Of a number, a list, its first draw, a time or a limit; nor is true or false a number."""
    path = write(tmp_path, {"num_prompt_tokens": [3, 4], "output_lens": [[5, 8], [6]]} | {name: values})
    row = 1 if values[0] is True else 2
    with pytest.raises(InputError, match=f"(row|line) {row}: {name} is (missing;|\\[\\]|True|\\[None, 3\\])"):
        read(path)


@WRITERS
def test_an_output_above_the_limit_is_an_input_error(tmp_path: Path, write: Write) -> None:
    """As in a workload of our own."""
    with pytest.raises(InputError, match=r"(row|line) [23]: output_len is 109, above max_new_tokens 100"):
        read(write(tmp_path, AZURE), 100)


@WRITERS
def test_unknown_columns_are_an_input_error(tmp_path: Path, write: Write) -> None:
    """The message names what the file has and what is known."""
    path = write(tmp_path, {"timestamp": [1], "tokens": [3]})
    with pytest.raises(
        InputError, match=r"columns timestamp, tokens; must have one of .*: GeneratedTokens, .* n_tok"
    ) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")


@WRITERS
def test_a_file_without_output_has_no_request(tmp_path: Path, write: Write) -> None:
    """Every row dropped is an error, not an empty workload."""
    with pytest.raises(InputError, match="no request whose decode is above 0"):
        read(write(tmp_path, {"prefill": [1, 2], "decode": [0, 0]}))


@pytest.mark.parametrize("write", [write_parquet, write_csv])
@pytest.mark.parametrize("columns", [AZURE, MOONCAKE, {"n_tok": []}])
def test_a_table_without_rows_has_no_request(tmp_path: Path, write: Write, columns: Columns) -> None:
    """A header alone, or an empty parquet file."""
    with pytest.raises(InputError, match="no request"):
        read(write(tmp_path, {name: [] for name in columns}))


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.jsonl"])
def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path, name: str) -> None:
    """Missing, or bytes of something else: one line with the path."""
    path = tmp_path / name
    for content in (None, b"\xff\xfe\x00{,\n"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)


def test_a_ragged_line_is_an_input_error(tmp_path: Path) -> None:
    """Blank lines are skipped but counted."""
    path = tmp_path / "x.csv"
    path.write_text("prefill,decode\n1,2\n\n3\n")
    with pytest.raises(InputError, match="line 4: 1 columns, must be 2 as in the header"):
        read(path)


EPOCH = 1_764_271_830.5


@WRITERS
@pytest.mark.parametrize("ticks", [1.0, 1e3, 1e6])
def test_numbers_since_1970_tell_their_unit_by_their_size(tmp_path: Path, write: Write, ticks: float) -> None:
    """Seconds, milliseconds and microseconds, in parquet, CSV and JSON alike."""
    columns = {**AZURE, "TIMESTAMP": [EPOCH * ticks, (EPOCH + 2) * ticks, (EPOCH + 4.5) * ticks]}
    assert facts(read(write(tmp_path, columns)))[2] == [0, 2, 4.5]


@WRITERS
def test_fractions_beside_mooncakes_columns_are_seconds(tmp_path: Path, write: Write) -> None:
    """As in the traces of Qwen on Bailian; a unit that is given counts, whatever the numbers look like."""
    bailian = {**MOONCAKE, "timestamp": [27.0, 30.5, 27.482]}
    assert facts(read(write(tmp_path, bailian)))[2] == pytest.approx(facts(read(write(tmp_path, MOONCAKE)))[2])
    workload, report = read_trace(write(tmp_path, MOONCAKE), None, time_unit="s")
    assert facts(workload)[2] == [0, 3500, 482]
    assert "arriving over 3500 s (timestamp read as seconds" in report.line()


OTHERS: list[tuple[Columns, list[float]]] = [
    ({"Timestamp": [5, 45], "Model": ["a", "b"], "Request tokens": [3, 4], "Response tokens": [5, 6]}, [0, 40]),
    ({"arrived_at": [0.5, 0.75], "num_prefill_tokens": [3, 4], "num_decode_tokens": [5, 6]}, [0, 0.25]),
    ({"arrival_timestamp": [1.5, 2.5], "prompt_size": [3, 4], "token_size": [5, 6]}, [0, 1]),
    (
        {"startTime": ["2026-11-27T10:00:00Z", "2026-11-27T11:00:00+01:00"], "prompt_tokens": [3, 4],
         "completion_tokens": [5, 6]}, [0, 0],
    ),
    (
        {"NumImages": [0, 2], "TIMESTAMP": AZURE["TIMESTAMP"][:2], "ContextTokens": [3, 4],
         "GeneratedTokens": [5.0, 6.0]}, [0, 4.314579],
    ),
    ({"input_length": [3, 4], "output_length": [5, 6]}, [0, 0]),
]  # fmt: skip


@WRITERS
@pytest.mark.parametrize(
    ("columns", "times"), OTHERS, ids=["burst", "vidur", "splitwise", "gateway", "multimodal", "no times"]
)
def test_other_public_traces(tmp_path: Path, write: Write, columns: Columns, times: list[float]) -> None:
    """Columns go by any of their names, in any spelling."""
    assert facts(read(write(tmp_path, columns))) == ([3, 4], [5, 6], times)


def test_a_benchmark_result_of_vllm_is_its_requests(tmp_path: Path) -> None:
    """Without those that failed, also where several runs stand in one file."""
    result = {
        "model_id": "m", "input_lens": [3, 4, 9], "output_lens": [5, 6, 0], "start_times": [7.5, 8.0, 8.5],
        "errors": ["", "", "timed out"],
    }  # fmt: skip
    for name, text in (("r.json", json.dumps(result, indent=1)), ("r.jsonl", json.dumps(result) + "\n")):
        (tmp_path / name).write_text(text)
        workload, report = read_trace(tmp_path / name, None)
        assert facts(workload) == ([3, 4], [5, 6], [0, 0.5])
        assert f"left out: 1 request failed (first: {name} line 3)" in report.line()
    (tmp_path / "r.json").write_text(json.dumps({**result, "input_lens": [3]}))
    with pytest.raises(InputError, match="input_lens: 1 values for 3 of output_lens"):
        read(tmp_path / "r.json")


def test_a_log_with_requests_that_nobody_answered_is_simulated_without_them(tmp_path: Path) -> None:
    """Whatever the gateway wrote in place of an answer."""
    asked = {"messages": [{"role": "user", "content": "Why?"}]}
    answered = {"usage": {"prompt_tokens": 3, "completion_tokens": 5}}
    answers: list[Any] = [None, {"error": {"message": "overloaded"}}, answered, {}]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"request": asked, "response": answer}) + "\n" for answer in answers))
    workload, report = read_trace(path, None)
    assert facts(workload)[:2] == ([3], [5])
    assert (
        "left out: 2 no answer (first: log.jsonl line 1), 1 request failed (first: log.jsonl line 2)" in report.line()
    )


def test_a_field_that_only_later_rows_have_counts(tmp_path: Path) -> None:
    """The columns of a file are those of all its rows; a row that lacks a time is named."""
    path = tmp_path / "t.jsonl"
    rows = [
        {"num_prompt_tokens": 3, "output_lens": [5]},
        {"num_prompt_tokens": 3, "output_lens": [6], "arrival_time": 9},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="line 1: arrival_time is missing; fill it in"):
        read(path)
    rows[0]["arrival_time"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert facts(read(path))[2] == [2, 9]


@WRITERS
def test_our_own_workload_has_its_bounds_in_every_format(tmp_path: Path, write: Write) -> None:
    """Names and bounds, whatever the file; times as given, without one 0."""
    columns = {
        "request_id": ["a", "b"],
        "num_prompt_tokens": [3, 4],
        "output_len": [5, 6],
        "output_len_lower_bound": [2, 3],
    }
    for times in ({}, {"arrival_time": [1.5, 2.5]}):
        workload = read(write(tmp_path, {**columns, **times}), 16)
        assert facts(workload) == ([3, 4], [5, 6], list(times.get("arrival_time", [0, 0])))
        assert [(r.request_id, r.output_len_lower_bound) for r in workload.requests] == [("a", 2), ("b", 3)]


def test_the_report_says_how_the_times_were_read(tmp_path: Path) -> None:
    """The span of the arrivals, the column, the unit; what was left out."""
    assert read_trace(write_csv(tmp_path, AZURE), None)[1].line().endswith(
        "3 requests, arriving over 60 s (TIMESTAMP read as dates, from 2023-11-16 18:15:46 UTC)"
    )  # fmt: skip
    assert "all at 0 (no times)" in read_trace(write_csv(tmp_path, {"n_tok": [7, 0]}), None)[1].line()


@WRITERS
@pytest.mark.parametrize("size", [16, 512])
def test_hashes_of_a_trace_are_prefixes(tmp_path: Path, write: Write, size: int) -> None:
    """Their number says how many tokens each stands for; equal hashes after different ones are different."""
    columns: Columns = {
        "timestamp": [1000, 2000, 3000, 4000],
        "input_length": [3 * size, 2 * size + 1, size + 5, 3],
        "output_length": [5, 5, 5, 5],
        "hash_ids": [[7, 8, 9], [7, 8, 10], [11, 8], [12]],
    }
    workload, report = read_trace(write(tmp_path, columns), None)
    first, second, third, fourth = (request.prefix for request in workload.requests)
    assert [len(prefix) for prefix in (first, second, third, fourth)] == [3, 3, 2, 1]
    assert first[:2] == second[:2]
    assert len({*first, *second, *third, *fourth}) == 7
    assert {request.prefix_tokens for request in workload.requests} == {size}
    assert f"{2 * size / (6 * size + 9):.0%} of the prompt tokens begin an earlier prompt, too" in report.line()
    assert f"(hash_ids, in parts of {size} tokens)" in report.line()


def test_hashes_that_fit_no_size_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    """Two hashes for 6,758 tokens and one for 7,322."""
    workload, report = read_trace(write_jsonl(tmp_path, MOONCAKE), None)
    assert all(not request.prefix for request in workload.requests)
    assert "hash_ids not used: fit no size of parts" in report.line()


@WRITERS
def test_turns_of_a_chat_begin_with_the_prompt_of_the_turn_before(tmp_path: Path, write: Write) -> None:
    """Without hashes: two turns that follow one begin alike as far as its prompt goes, and no further."""
    columns: Columns = {
        "chat_id": [0, 1, 2, 3],
        "parent_chat_id": [-1, 0, 0, 77],
        "timestamp": [0.5, 1.5, 2.5, 3.5],
        "input_length": [40, 100, 120, 50],
        "output_length": [5, 5, 5, 5],
    }
    workload, report = read_trace(write(tmp_path, columns), None)
    first, left, right, other = (request.prefix for request in workload.requests)
    assert left[:2] == right[:2] == first
    assert not set(left[2:]) & set(right[2:])
    assert not set(other) & {*left, *right}
    assert "chat_id and parent_chat_id, in parts of 16 tokens" in report.line()


def test_a_prefix_of_our_own_workload_is_read_written_and_checked(tmp_path: Path) -> None:
    """Names are texts or numbers, of 16 tokens each unless all lines say otherwise; no more than the prompt has."""
    row = {"request_id": "a", "num_prompt_tokens": 70, "output_len": 3, "prefix": ["s", 4], "prefix_tokens": 32}
    path = tmp_path / "own.jsonl"
    for tokens, read in ((None, 16), (32, 32)):
        rows = [{**row, "request_id": name, "prefix_tokens": tokens} for name in "ab"]
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        workload, _ = read_trace(path, None)
        assert [request.prefix_tokens for request in workload.requests] == [read, read]
    path.write_text("".join(workload_lines(workload)))
    again, _ = read_trace(path, None)
    assert [request.prefix for request in again.requests] == [request.prefix for request in workload.requests]
    for wrong, message in (
        ({"prefix": "abc"}, "must be a list of names"),
        ({"prefix": [1.5]}, "must be a list of names"),
        ({"prefix": ["s"] * 4}, "more than the prompt's 70; say in prefix_tokens"),
        ({"prefix_tokens": 0}, "prefix_tokens is 0, must be >= 1"),
    ):
        path.write_text(json.dumps({**row, **wrong}) + "\n")
        with pytest.raises(InputError, match=message):
            read_trace(path, None)
