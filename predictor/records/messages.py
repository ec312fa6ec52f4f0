"""Who speaks in a chat message and what it says, in the spellings of APIs and logs; the standard library alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "humanmessage"), "user"),
    **dict.fromkeys(
        ("assistant", "ai", "bot", "chatbot", "gpt", "chatgpt", "bing", "bard", "model", "llm", "aimessage"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer", "systemmessage"), "system"),
    **dict.fromkeys(
        ("tool", "function", "function_call", "function_response", "observation", "ipython", "toolmessage"), "tool"
    ),
}
"""Role of a speaker by the name that a log gives it, in lower case."""

_SPEAKER_KEYS = ("role", "from", "speaker", "author")
_TEXT_KEYS = ("content", "value", "text", "parts")
_ROLE_KEYS = frozenset({"system", "user", "human", "assistant", "gpt", "ai", "bot"})  # one object, several turns
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TURN_KEYS = frozenset(
    (
        *_SPEAKER_KEYS,
        *_TEXT_KEYS,
        *_ROLE_KEYS,
        *_REASONING_KEYS,
        "type",
        "data",
        "tool_calls",
        "function_call",
        "redacted",
    )
)
"""The keys of a message that are read."""
# A tuple: a part may give its type as a list or an object, which no set can be asked for.
_REASONING_PARTS = ("thinking", "reasoning", "reasoning_text", "summary_text")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is user, assistant, system, tool or "" (unknown), `speaker` the name the log gives it."""

    role: str
    text: str
    """What it says; "" where it has no text, an image alone for example."""
    speaker: str = ""
    reasoning: str = ""
    """What the model thought before it said so, where the log keeps it."""
    has_other: bool = False
    """Whether it holds something besides text: an image, a number, an unknown part."""
    calls_tools: bool = False
    is_redacted: bool = False


class NotMessages(ValueError):  # noqa: N818 - what was found, for the caller to name the place
    """A value that is no conversation; the message says what it is, without the place."""


def turns_of(messages: Any) -> list[Turn]:
    """Return the turns of a conversation: a list of messages, or such a list as JSON text; None has no turns.

    A message is {"role", "content"}, {"from", "value"}, {"speaker", "text"}, {"human": ..., "assistant": ...} or a pair
    [question, answer].

    Raises:
        NotMessages: it is something else.
    """
    if isinstance(messages, str):
        messages = _parsed(messages)
    if isinstance(messages, Mapping) and "messages" in messages:
        messages = messages["messages"]
    if messages is None:
        return []
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise NotMessages(f"must be a list of messages {{role, content}}, not {type(messages).__name__}")
    return [turn for message in messages for turn in _turns_of_one(message)]


def turn_of(message: Mapping[str, Any]) -> Turn:
    """Return the turn of one message that names its speaker."""
    speaker = speaker_of(message)
    nested = message.get("data")  # as langchain has it
    body = nested if isinstance(nested, Mapping) else message
    text, has_other = "", False
    for key in _TEXT_KEYS:
        if body.get(key) is not None:
            text, has_other = _read_content(body[key])
            break
    calls = bool(message.get("tool_calls") or message.get("function_call"))
    return Turn(
        ROLES.get(speaker.lower(), ""), text, speaker, _reasoning(body), has_other, calls, body.get("redacted") is True
    )


def speaker_of(message: Mapping[str, Any]) -> str:
    """Return the name that a message gives its speaker, "" where it gives none."""
    value = next((message[key] for key in _SPEAKER_KEYS if message.get(key) is not None), None)
    if isinstance(value, Mapping):  # ChatGPT's export: {"author": {"role": ...}}
        value = value.get("role")
    if value is None and str(message.get("type", "")).lower() in ROLES:
        value = message["type"]
    return "" if value is None else str(value).strip()


def last_user_text(turns: Sequence[Turn]) -> str:
    """Return what the user said last: messages in a row are one prompt. "" where the user said nothing in words."""
    end = prompt_end(turns)
    return joined_text(turns[run_start(turns, end) : end])


def prompt_end(turns: Sequence[Turn]) -> int:
    """Return the place after the user's last message, 0 where the user said nothing."""
    return next((place + 1 for place in reversed(range(len(turns))) if turns[place].role == "user"), 0)


def run_start(turns: Sequence[Turn], end: int) -> int:
    """Return where the user's messages in a row that end before `end` begin."""
    while end and turns[end - 1].role == "user":
        end -= 1
    return end


def joined_text(turns: Sequence[Turn]) -> str:
    """Return the texts of several messages as one, in paragraphs."""
    return "\n\n".join(turn.text for turn in turns if turn.text.strip())


def is_unicode(text: str) -> bool:
    """Return whether no half of a surrogate pair stands alone, which JSON can escape and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        raise NotMessages("must be a list of messages {role, content}, or such a list as JSON, not text") from None


def _turns_of_one(message: Any) -> Iterator[Turn]:
    if isinstance(message, Mapping):
        named = [key for key in message if key in _ROLE_KEYS and message[key] is not None]
        if named and not speaker_of(message) and not any(message.get(key) is not None for key in _TEXT_KEYS):
            yield from (turn_of({"role": key, "content": message[key]}) for key in named)
        else:
            yield turn_of(message)
    elif isinstance(message, Sequence) and len(message) == 2 and all(isinstance(said, str) for said in message):
        yield Turn("user", message[0], "user")
        yield Turn("assistant", message[1], "assistant")
    else:
        raise NotMessages(f"a turn must be an object with role and content, not {type(message).__name__}")


def _read_content(content: Any) -> tuple[str, bool]:
    """Return the text of a content, its parts in paragraphs, and whether there is something else in it."""
    if isinstance(content, str):
        return content, False
    if content is None:
        return "", False
    if isinstance(content, Mapping):  # one part, or in ChatGPT's export several
        content = content["parts"] if isinstance(content.get("parts"), list) else [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        return "", True
    texts = [_part_text(part) for part in content]
    return "\n\n".join(text for text in texts if text), any(text is None for text in texts)


def _part_text(part: Any) -> str | None:
    """Return the text of a part, "" for what the model thought, None for what is no text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if kind in _REASONING_PARTS:
        return ""
    text = part.get("text")
    if isinstance(text, Mapping):  # the Assistants API: {"text": {"value": ...}}
        text = text.get("value")
    is_text = kind is None or str(kind) in ("text", "input_text", "output_text", "refusal")
    if kind == "refusal":
        text = part.get("refusal", text)
    return text if is_text and isinstance(text, str) else None


def _reasoning(message: Mapping[str, Any]) -> str:
    given = next((message[key] for key in _REASONING_KEYS if isinstance(message.get(key), str)), "")
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else ()
    thoughts = [
        part.get("thinking") or part.get("text") or part.get("reasoning") or ""
        for part in parts
        if isinstance(part, Mapping) and part.get("type") in _REASONING_PARTS
    ]
    return "\n\n".join(text for text in (given, *thoughts) if isinstance(text, str) and text)
