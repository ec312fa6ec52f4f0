import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.request import Request
from scheduler.workload import NO_CAP, read_workload, workload_from_columns, workload_lines

GOOD = {"request_id": "a", "num_prompt_tokens": 3, "output_len": 5}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    """Write a line per row; a string is written as it is."""
    file = path / "workload.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_every_field_of_a_line_is_read(tmp_path: Path) -> None:
    """Bounds, prediction, survival, arrival and limit reach the request, the true length stays outside."""
    row = GOOD | {
        "max_new_tokens": 9,
        "arrival_time": 1.5,
        "output_len_lower_bound": 2,
        "output_len_upper_bound": 8,
        "output_len_prediction": 4,
        "survival": [1.0, 0.5, 0.0],
    }
    edges = np.array([0, 4, 8])
    workload = read_workload(write(tmp_path, row), edges=edges)
    request = workload.requests[0]
    assert workload.output_lens == [5]
    assert (request.request_id, request.num_prompt_tokens, request.max_new_tokens) == ("a", 3, 9)
    assert (request.output_len_lower_bound, request.output_len_upper_bound, request.output_len_prediction) == (2, 8, 4)
    assert request.arrival_time == 1.5
    assert request.forecast is not None
    assert request.forecast.edges is edges
    assert request.forecast.survival.tolist() == [1.0, 0.5, 0.0]


def test_what_a_line_leaves_out_has_a_default(tmp_path: Path) -> None:
    """All at 0, lower bound 1, no upper bound, the line as id; blank lines and unknown fields are skipped."""
    file = write(tmp_path, "", {"num_prompt_tokens": 0, "output_len": 1, "prompt": "hello"}, "  ", GOOD)
    workload = read_workload(file)
    first = workload.requests[0]
    assert workload.output_lens == [1, 5]
    assert first.arrival_time == 0
    assert first.output_len_lower_bound == 1
    assert first.output_len_upper_bound is first.output_len_prediction is first.forecast is None
    assert first.request_id.endswith("line 2")
    assert workload.requests[1].request_id == "a"


def test_no_limit_is_made_from_true_lengths(tmp_path: Path) -> None:
    """What a policy sees of a workload is the same whatever its longest answer, in lines as in columns."""
    rows = [GOOD | {"max_new_tokens": 77}, GOOD]
    seen = [read_workload(write(tmp_path, *rows, GOOD | {"output_len": n})).requests for n in (3, 300)]
    assert seen[0] == seen[1]
    assert [request.max_new_tokens for request in seen[0]] == [77, NO_CAP, NO_CAP]
    short, long = (workload_from_columns(**COLUMNS | {"output_lens": np.array([2, n])}).requests for n in (3, 300))
    assert short == long


def test_what_a_request_belongs_to_is_read_and_written(tmp_path: Path) -> None:
    """Group, class and priority reach the request; a line without them has none."""
    told = read_workload(write(tmp_path, GOOD | {"group": 7, "class": "batch", "priority": 2}, GOOD))
    first, second = told.requests
    assert (first.group, first.service_class, first.priority) == ("7", "batch", 2)
    assert (second.group, second.service_class, second.priority) == ("", "", 0)
    assert read_workload(write(tmp_path, *workload_lines(told))).requests[0] == first


def test_the_limit_can_be_given_and_clips_lower_bounds(tmp_path: Path) -> None:
    """A predicted lower bound above the limit becomes the limit: no output is longer."""
    file = write(tmp_path, GOOD | {"output_len_lower_bound": 50}, GOOD | {"max_new_tokens": 7})
    requests = read_workload(file, max_new_tokens=40).requests
    assert [request.max_new_tokens for request in requests] == [40, 7]
    assert [request.output_len_lower_bound for request in requests] == [40, 1]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "must be an object"),
        ('{"output_len": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (GOOD | {"output_len_prediction": -1}, "output_len_prediction is -1"),
        (GOOD | {"request_id": [1]}, "request_id is [1]"),
        ('"text"', "must be an object"),
        ({"num_prompt_tokens": 3}, "output_len is None"),
        ({"output_len": 3}, "num_prompt_tokens is None"),
        (GOOD | {"output_len": "5"}, "output_len is '5'"),
        (GOOD | {"output_len": 5.5}, "output_len is 5.5"),
        (GOOD | {"output_len": True}, "output_len is True"),
        (GOOD | {"output_len": 0}, "output_len is 0"),
        (GOOD | {"num_prompt_tokens": -1}, "num_prompt_tokens is -1"),
        (GOOD | {"num_prompt_tokens": 2.5}, "num_prompt_tokens is 2.5"),
        (GOOD | {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (GOOD | {"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        (GOOD | {"max_new_tokens": 4}, "output_len is 5, above max_new_tokens 4"),
        (GOOD | {"arrival_time": "soon"}, "arrival_time is 'soon'"),
        (GOOD | {"arrival_time": None}, "arrival_time is None"),
        (GOOD | {"arrival_time": False}, "arrival_time is False"),
        (GOOD | {"arrival_time": -1}, "arrival_time is -1"),
        (GOOD | {"arrival_time": float("nan")}, "arrival_time is nan"),
        (GOOD | {"arrival_time": float("inf")}, "arrival_time is inf"),
        (GOOD | {"arrival_time": 1.7e18}, "arrival_time is 1.7e+18, must be a number of seconds or iterations"),
        (GOOD | {"max_new_tokens": 2**63 - 1}, "max_new_tokens is above 9007199254740992"),
        (GOOD | {"output_len_lower_bound": 0}, "output_len_lower_bound is 0"),
        (GOOD | {"output_len_lower_bound": 4, "output_len_upper_bound": 3}, "output_len_upper_bound is 3"),
        (GOOD | {"output_len_upper_bound": [8]}, "output_len_upper_bound is [8]"),
        (GOOD | {"output_len_prediction": 4.5}, "output_len_prediction is 4.5"),
    ],
)
def test_a_bad_line_is_one_line_of_error(tmp_path: Path, line: dict[str, Any] | str, complaint: str) -> None:
    """The message names the file, the line and the field with its value."""
    file = write(tmp_path, GOOD, "", line)
    with pytest.raises(InputError) as raised:
        read_workload(file)
    message = str(raised.value)
    assert message.startswith(f"{file}: line 3: ")
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_request_is_an_input_error(tmp_path: Path, text: str) -> None:
    """The message names the file."""
    file = write(tmp_path, text)
    with pytest.raises(InputError, match="no request") as raised:
        read_workload(file)
    assert str(file) in str(raised.value)


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not text each give one line with the path."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(InputError) as raised:
            read_workload(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("survival", ["x", ["a"], [[1.0], [0.5, 0.2]], {"a": 1}, 3, [0.5, 0.7], [1.5]])
def test_a_survival_curve_is_checked(tmp_path: Path, survival: object) -> None:
    """It must be a list of probabilities that never rises; the line and the field are named."""
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({"num_prompt_tokens": 1, "output_len": 2, "survival": survival}) + "\n")
    with pytest.raises(InputError, match="line 1: survival must be"):
        read_workload(path)


@pytest.mark.parametrize("survival", [[1.0, 0.5], [1.0, 0.5, 0.2, 0.1], [0.9, 0.5, 0.2], []])
def test_a_survival_curve_fits_the_bins(tmp_path: Path, survival: list[float]) -> None:
    """One probability an edge, from 1 on; without the bins the curve says nothing and is left out."""
    path = write(tmp_path, GOOD | {"survival": survival})
    assert read_workload(path).requests[0].forecast is None
    with pytest.raises(InputError, match="line 1: survival must have 3 values from 1 on"):
        read_workload(path, edges=np.array([0, 4, 8]))


def test_other_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    """JSON allows U+2028 inside a string."""
    path = tmp_path / "w.jsonl"
    path.write_text('{"request_id": "a\u2028b", "num_prompt_tokens": 1, "output_len": 2}\n', encoding="utf-8")
    assert read_workload(path).requests[0].request_id == "a\u2028b"


COLUMNS = {
    "places": ["x: row 1", "x: row 2"],
    "num_prompt_tokens": np.array([3, 0]),
    "output_lens": np.array([5, 9]),
    "arrival_times": np.array([0.5, 0.0]),
}


@pytest.mark.parametrize(("given", "limits"), [(None, [NO_CAP, NO_CAP]), (12, [12, 12]), (np.array([5, 20]), [5, 20])])
def test_columns_make_the_workload_that_lines_make(given: Any, limits: list[int]) -> None:
    """A row a request, named by its place; there is no limit, one for all, or one each."""
    workload = workload_from_columns(**COLUMNS, max_new_tokens=given)
    expected = [("x: row 1", 3, limits[0], 0.5), ("x: row 2", 0, limits[1], 0.0)]
    assert workload.requests == [Request(*facts) for facts in expected]
    assert workload.output_lens == [5, 9]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"output_lens": np.array([5, 0])}, "x: row 2: output_len is 0, must be >= 1"),
        ({"max_new_tokens": 7}, "x: row 2: output_len is 9, above max_new_tokens 7"),
        ({"max_new_tokens": np.array([4, 9])}, "x: row 1: output_len is 5, above max_new_tokens 4"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, must be >= 1"),
        ({"num_prompt_tokens": np.array([3, -1])}, "'x: row 2': num_prompt_tokens is -1"),
        ({"arrival_times": np.array([np.nan, 0.0])}, "'x: row 1': arrival_time is nan"),
    ],
)
def test_columns_are_checked_as_lines_are(change: dict[str, Any], complaint: str) -> None:
    """The message names the place of the first bad row, the field and its value."""
    with pytest.raises(InputError) as raised:
        workload_from_columns(**COLUMNS | change)
    assert complaint in str(raised.value)


@pytest.mark.parametrize("field", ["request_id", "group", "class", "priority"])
def test_a_wrong_field_has_its_place_once(tmp_path: Path, field: str) -> None:
    """File, line and field, and none of them twice."""
    file = write(tmp_path, GOOD | {field: ["x"]})
    with pytest.raises(InputError) as raised:
        read_workload(file)
    assert str(raised.value).startswith(f"{file}: line 1: {field} is ['x'], must be ")


def test_a_name_of_a_prefix_stands_for_as_many_tokens_in_all_lines(tmp_path: Path) -> None:
    """Equal names would be unequal tokens otherwise; a line without a prefix says nothing."""
    known = GOOD | {"num_prompt_tokens": 40, "prefix": ["a"]}
    file = write(tmp_path, GOOD | {"prefix_tokens": 4}, known, known | {"prefix_tokens": 8})
    with pytest.raises(InputError, match="line 3: prefix_tokens is 8, and 16 in a line before"):
        read_workload(file)
    assert len(read_workload(write(tmp_path, GOOD | {"prefix_tokens": 4}, known)).requests) == 2
