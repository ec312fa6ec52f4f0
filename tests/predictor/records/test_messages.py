import json
from typing import Any

import pytest

from predictor.records.chat_turns import ChatOptions, open_prompt
from predictor.records.messages import NotMessages, Turn, joined_text, last_user_text, turn_of, turns_of


def said(messages: Any) -> list[tuple[str, str]]:
    """Role and text of each turn."""
    return [(turn.role, turn.text) for turn in turns_of(messages)]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        [{"role": "User", "content": ["Why?"]}, {"role": "Chatbot", "content": {"type": "text", "text": "So."}}],
        [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        [{"from": "human", "value": "Why?"}, {"from": "ai", "value": "So."}],
        [{"speaker": "user", "text": "Why?"}, {"speaker": "bot", "text": "So."}],
        [{"type": "human", "content": "Why?"}, {"type": "ai", "data": {"content": "So."}}],
        [{"human": "Why?", "assistant": "So."}],
        [["Why?", "So."]],
        [{"role": "user", "parts": [{"text": "Why?"}]}, {"role": "model", "parts": [{"text": "So."}]}],
        [
            {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["Why?"]}},
            {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["So."]}},
        ],
    ],
    ids=["openai", "parts", "sharegpt", "ai", "speaker", "langchain", "keys", "pairs", "gemini", "export"],
)
def test_a_conversation_reads_alike_in_every_spelling(messages: list[Any]) -> None:
    """Roles and texts are the same, given as a list or as its JSON text."""
    assert said(messages) == [("user", "Why?"), ("assistant", "So.")]
    assert said(json.dumps(messages)) == said(messages)


def test_a_developer_speaks_as_the_system() -> None:
    """And who is unknown keeps the name that the log gives."""
    turns = turns_of([{"role": "developer", "content": "Be brief."}, {"role": "moderator", "content": "No."}])
    assert [(turn.role, turn.speaker) for turn in turns] == [("system", "developer"), ("", "moderator")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"], "a\n\nb\n\nc"),
        ([{"type": "text", "text": {"value": "a", "annotations": []}}], "a"),
        ([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}], ""),
        ([{"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], "a"),
        ([3, None], ""),
        (7, ""),
        ([], ""),
    ],
)
def test_the_text_of_a_message_is_that_of_its_parts(content: Any, text: str) -> None:
    """An image alone has none."""
    assert turn_of({"role": "assistant", "content": content}).text == text


def test_what_a_model_thought_is_kept_apart() -> None:
    """In a field of its own or in a part."""
    in_field = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    in_part = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "So."}],
    }
    for message in (in_field, in_part):
        (turn,) = turns_of([message])
        assert (turn.text, turn.reasoning, turn.has_other) == ("So.", "Hm.", False)


def test_messages_in_a_row_are_one_prompt() -> None:
    """Those without text are passed over; an answer ends the row."""
    image = {"role": "user", "content": [{"type": "image_url"}]}
    turns = turns_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, image])
    assert last_user_text(turns) == ""
    turns = [*turns, Turn("user", "c"), Turn("user", "d")]
    assert last_user_text(turns) == "c\n\nd" == open_prompt(turns, ChatOptions())
    assert last_user_text([*turns, Turn("assistant", "e")]) == "c\n\nd"
    assert last_user_text([]) == joined_text([]) == ""


@pytest.mark.parametrize("value", ["hello", 5, {"role": "user"}, [5], ["hello"], [["a", "b", "c"]], b"[]", "[" * 9999])
def test_what_is_no_conversation_is_refused(value: Any) -> None:
    """In one line without the place, which the caller knows."""
    with pytest.raises(NotMessages, match="must be") as caught:
        turns_of(value)
    assert "\n" not in str(caught.value)


def test_other_keys_of_a_message_are_no_roles() -> None:
    """A message may name its model or its user next to what it says."""
    assert said([{"content": "a", "model": "gpt-4", "user": "u7"}]) == [("", "a")]


@pytest.mark.parametrize("kind", [[], ["text"], {"a": 1}, 5])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_part_of_a_strange_type_is_no_text(kind: Any, role: str) -> None:
    """The rest of the message is read."""
    parts = [{"type": kind, "text": "unread"}, {"type": "text", "text": "So."}]
    (turn,) = turns_of([{"role": role, "content": parts}])
    assert (turn.text, turn.reasoning, turn.has_other) == ("So.", "", True)
