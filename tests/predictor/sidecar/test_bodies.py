"""Bodies as engines are sent them: what is read of them, and what is answered without being read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from predictor.errors import InputError
from predictor.prompts.tokens import encode_prompts, load_tokenizer
from predictor.records.chat_turns import ChatOptions
from predictor.sidecar.asks import asks_of
from predictor.sidecar.schema import PredictRequest

USER = {"role": "user", "content": "Name a prime."}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("body", "prompts"),
    [
        ({"prompt": "x"}, ["x"]),
        ({"prompt": ["x", "y"], "stream": True, "logit_bias": {}}, ["x", "y"]),
        ({"prompt": [1, 2, 3]}, [None]),
        ({"prompt": [[1, 2], [3]]}, [None, None]),
        ({"messages": [{"role": "developer", "content": "s"}, USER]}, ["Name a prime."]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]}, ["a"]),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, [None]),
        ({"messages": [{"role": "system", "content": "x"}]}, [None]),
        ({"messages": [5]}, [None]),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, [None]),
        ({"input": "x"}, ["x"]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "instructions": "s"}, ["x"]),
        ({"prompt": "  "}, [None]),
        ({}, [None]),
    ],
)
def test_prompts_are_found_in_bodies_of_every_api(body: dict[str, Any], prompts: list[str | None]) -> None:
    """None: without text to read, which is said and raises nothing."""
    asks = asks_of(body, None)
    assert [None if ask.unusable else ask.prompt for ask in asks] == prompts


@pytest.mark.parametrize("name", ["max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_each_name_of_a_cap_is_read(name: str) -> None:
    """The least counts where there are several; what is no cap does not."""
    assert asks_of({"prompt": "x", name: 7}, None)[0].max_new_tokens == 7
    assert asks_of({"prompt": "x", name: 7, "max_tokens": 5}, None)[0].max_new_tokens == 5
    for wrong in (0, -1, True, "7", 2.0, None):
        assert asks_of({"prompt": "x", name: wrong}, None)[0].max_new_tokens is None


def test_a_request_says_more_than_its_text() -> None:
    """What the predictor may read apart from the prompt; what is no value of a request counts as not said."""
    said = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Two."}, USER]
    body = {
        "messages": said, "tools": [{}, {}], "temperature": 0.7, "n": 2, "max_tokens": 9,
        "response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    context = asks_of(body, None)[0].context
    assert (context.system_prompt, context.num_earlier_turns, context.last_answer_characters) == ("Be brief.", 2, 4)
    assert (context.num_tools, context.temperature, context.num_answers) == (2, 0.7, 2)
    assert (context.max_new_tokens, context.is_json, context.thinking) == (9, True, True)
    wrong = asks_of({**body, "temperature": "hot", "n": -1}, None)[0].context
    assert (wrong.temperature, wrong.num_answers, wrong.num_tools) == (None, None, 2)
    assert asks_of({"prompt": "x"}, None)[0].context.system_prompt is None


def test_several_prompts_of_one_request_have_ids_of_their_own() -> None:
    """And a prompt after its context where the predictor was trained so."""
    ids = [ask.request_id for ask in asks_of({"prompt": ["x", "y"], "request_id": "r"}, None)]
    assert ids == ["r-0", "r-1"]
    messages = [USER, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Another."}]
    asked = asks_of({"messages": messages}, ChatOptions(context_turns=1, context_characters=100))[0]
    assert asked.prompt == "assistant: Two.\n\nuser: Another."


def test_a_body_over_http_says_as_much_as_one_that_passes_the_proxy() -> None:
    """The checked body keeps what the context is read from, and names nothing that was not said."""
    body = {
        "messages": [USER], "reasoning_effort": "high", "temperature": 0.2, "tools": [{}], "n": 1, "max_tokens": 5,
        "response_format": {"type": "json_object"}, "instructions": "Be brief.", "unknown": 5,
    }  # fmt: skip
    for said in (body, {"messages": [USER]}, {"prompt": "x", "thinking": {"type": "enabled", "budget_tokens": 9}}):
        checked = PredictRequest.model_validate_json(json.dumps(said))
        assert checked.asks(None) == asks_of(said, None)
        assert checked.asks(None)[0].context == asks_of(said, None)[0].context
    assert asks_of(body, None)[0].context.thinking is True


class PanicException(BaseException):
    """As Rust code raises it."""


class PanickingTokenizer:
    """Panics at prompts of more than three characters."""

    def encode_batch_fast(self, prompts: list[str], add_special_tokens: bool = True) -> list[Any]:
        """Raise, or return no tokens."""
        if any(len(prompt) > 3 for prompt in prompts):
            raise PanicException("index out of bounds")
        return [SimpleNamespace(ids=[]) for _ in prompts]


def test_a_panic_of_the_tokenizer_is_an_ordinary_error_of_one_prompt() -> None:
    """So that predicting next to an engine goes on, and a command ends in one line; it shows no prompt."""
    with pytest.raises(InputError, match=r"^a prompt of 6 characters: .*\(index out of bounds\); leave it out$"):
        encode_prompts(PanickingTokenizer(), ["x", "secret", "y"], 8, [])  # type: ignore[arg-type]


def test_a_panic_while_a_tokenizer_is_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any damage is; what is no panic, such as Ctrl-C, goes through."""
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    raised: BaseException = PanicException("index out of bounds")

    def from_file(path: str) -> None:
        raise raised

    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_file=from_file))
    with pytest.raises(InputError, match="no tokenizer that can be read"):
        load_tokenizer(file)
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(file)
