"""What the vLLM plug-in reads of a request without vLLM's help."""

import pytest

from scheduler.integrations.vllm_settings import group_and_class


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
