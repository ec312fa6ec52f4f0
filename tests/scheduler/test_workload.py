import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.workload import arrival_times, poisson_arrivals, read_workload

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
    workload = read_workload(write(tmp_path, row))
    request = workload.requests[0]
    assert workload.output_lens == [5]
    assert (request.request_id, request.num_prompt_tokens, request.max_new_tokens) == ("a", 3, 9)
    assert (request.output_len_lower_bound, request.output_len_upper_bound, request.output_len_prediction) == (2, 8, 4)
    assert request.arrival_time == 1.5
    assert request.survival is not None
    assert request.survival.tolist() == [1.0, 0.5, 0.0]


def test_what_a_line_leaves_out_has_a_default(tmp_path: Path) -> None:
    """All at 0, lower bound 1, no upper bound, the line as id; blank lines and unknown fields are skipped."""
    file = write(tmp_path, "", {"num_prompt_tokens": 0, "output_len": 1, "prompt": "hello"}, "  ", GOOD)
    workload = read_workload(file)
    first = workload.requests[0]
    assert workload.output_lens == [1, 5]
    assert first.arrival_time == 0
    assert first.output_len_lower_bound == 1
    assert first.output_len_upper_bound is first.output_len_prediction is first.survival is None
    assert first.request_id.endswith("line 2")
    assert workload.requests[1].request_id == "a"


@pytest.mark.parametrize(("longest", "limit"), [(1, 1), (2, 2), (5, 8), (8, 8), (9, 16)])
def test_one_limit_for_all_is_the_longest_output_rounded_up(tmp_path: Path, longest: int, limit: int) -> None:
    """To a power of two, for the lines that have no limit of their own."""
    rows = [GOOD | {"output_len": longest}, GOOD | {"output_len": 1, "max_new_tokens": 77}, GOOD | {"output_len": 1}]
    requests = read_workload(write(tmp_path, *rows)).requests
    assert [request.max_new_tokens for request in requests] == [limit, 77, limit]


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
        ('"text"', "must be an object"),
        ({"num_prompt_tokens": 3}, "output_len is None"),
        ({"output_len": 3}, "num_prompt_tokens is None"),
        (GOOD | {"output_len": "5"}, "output_len is '5'"),
        (GOOD | {"output_len": 5.0}, "output_len is 5.0"),
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


def test_all_at_once_is_zero() -> None:
    """Every request of the paper's setting is there at the start."""
    assert arrival_times("all-at-once", 3, np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_a_poisson_specification_is_the_poisson_process() -> None:
    """It draws from the generator that it is given."""
    times = arrival_times("poisson:0.5", 10, np.random.default_rng(4))
    assert times.tolist() == poisson_arrivals(10, 0.5, np.random.default_rng(4)).tolist()


@pytest.mark.parametrize("rate", [0.02, 3.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    """Times ascend from above 0; the gaps have the mean and the standard deviation 1/rate, within four errors."""
    size = 20_000
    times = poisson_arrivals(size, rate, np.random.default_rng(0))
    gaps = np.diff(times, prepend=0.0)
    assert times.shape == (size,)
    assert (gaps > 0).all()
    assert abs(gaps.mean() * rate - 1) < 4 / np.sqrt(size)
    assert abs(gaps.std() * rate - 1) < 4 * np.sqrt(2 / size)  # an exponential's squared deviation varies 8-fold


def test_a_file_of_times_is_sorted(tmp_path: Path) -> None:
    """The first `count` times of the file, in ascending order."""
    file = tmp_path / "times.txt"
    file.write_text("3\n0.5\n\n1e1\n0\n")
    assert arrival_times(str(file), 3, np.random.default_rng(0)).tolist() == [0.5, 3, 10]


@pytest.mark.parametrize("arrivals", ["poisson:0", "poisson:-1", "poisson:inf", "poisson:nan", "poisson:", "poisson:x"])
def test_a_poisson_rate_must_be_a_positive_number(arrivals: str) -> None:
    """The message repeats the specification."""
    with pytest.raises(InputError, match=f"arrivals are '{arrivals}'.*rate"):
        arrival_times(arrivals, 3, np.random.default_rng(0))


@pytest.mark.parametrize("arrivals", ["at-once", "", "/nowhere/times.txt"])
def test_an_unknown_specification_says_what_there_is(arrivals: str) -> None:
    """The message names the three forms."""
    with pytest.raises(InputError, match=r"all-at-once, poisson:RATE, or a file"):
        arrival_times(arrivals, 3, np.random.default_rng(0))


@pytest.mark.parametrize("text", ["1\n2\n", "1\n2\n-3\n", "1\ntwo\n3\n"])
def test_a_file_with_too_few_or_wrong_times_is_an_input_error(tmp_path: Path, text: str) -> None:
    """The message is one line that names the file."""
    file = tmp_path / "times.txt"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        arrival_times(str(file), 3, np.random.default_rng(0))
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("survival", ["x", ["a"], [[1.0], [0.5, 0.2]], {"a": 1}, 3, [0.5, 0.7], [1.5]])
def test_a_survival_curve_is_checked(tmp_path: Path, survival: object) -> None:
    """It must be a list of probabilities that never rises; the line and the field are named."""
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({"num_prompt_tokens": 1, "output_len": 2, "survival": survival}) + "\n")
    with pytest.raises(InputError, match="line 1: survival must be"):
        read_workload(path)


def test_other_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    """JSON allows U+2028 inside a string."""
    path = tmp_path / "w.jsonl"
    path.write_text('{"request_id": "a\u2028b", "num_prompt_tokens": 1, "output_len": 2}\n', encoding="utf-8")
    assert read_workload(path).requests[0].request_id == "a\u2028b"


@pytest.mark.parametrize("text", ["1\nnan\n", "1\ninf\n"])
def test_arrival_files_hold_finite_times(tmp_path: Path, text: str) -> None:
    """Not a number and infinity are refused."""
    path = tmp_path / "times.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="finite"):
        arrival_times(str(path), 2, np.random.default_rng(0))
