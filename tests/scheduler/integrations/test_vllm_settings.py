"""What the vLLM plug-in reads of a request without vLLM's help."""

from typing import Any

import pytest

from scheduler.errors import InputError
from scheduler.integrations.vllm_settings import Settings, group_and_class


@pytest.mark.parametrize(
    ("request_id", "arguments", "expected"),
    [
        ("cmpl-7", {}, ("", "")),
        ("0_cmpl-7", {}, ("cmpl-7", "")),
        ("11_cmpl-7", {}, ("cmpl-7", "")),
        ("0_cmpl-7", {"group": "job 3", "class": "batch"}, ("job 3", "batch")),
        ("a_b", {"group": 5}, ("5", "")),
    ],
)
def test_answers_to_one_prompt_are_a_group(request_id: str, arguments: dict, expected: tuple[str, str]) -> None:
    """By the name that vLLM gives each of several answers, unless the request says what it belongs to."""
    assert group_and_class(request_id, arguments) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"predictor": 5},
        {"probe": ["a"]},
        {"probe": ""},
        {"model": True},
        {"state": " "},
        {"tau": "0.1"},
        {"tau": 1},
        {"timeout": "50ms"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"policy": ["fcfs"]},
        {"policy": None},
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused_by_its_key(given: dict[str, Any]) -> None:
    """At the start, in a line, not as a traceback from where it is used."""
    with pytest.raises(InputError) as refused:
        Settings.read({"amin": given}, {})
    (key,) = given
    assert str(refused.value).startswith(f"additional_config: amin: {key}: {given[key]!r}, must be ")


def test_null_counts_as_not_given() -> None:
    """Configurations are made by templates, which leave out nothing."""
    given = {"predictor": "serving", "probe": None, "model": None, "state": None, "tau": None, "pack_level": 0.2}
    settings = Settings.read({"amin": given}, {})
    assert (settings.prediction, settings.options) == ({"predictor": "serving"}, {"pack_level": 0.2})
