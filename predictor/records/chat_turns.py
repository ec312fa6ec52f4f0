"""From the turns of a recorded conversation to one prompt and the answer it got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.errors import InputError

MAX_PROMPT_CHARACTERS = 200_000
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function", "function_call", "function_response", "observation", "ipython"), "tool"),
}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What of a conversation becomes a prompt; counts of turns are of messages, not of exchanges."""

    turn: str = "first"
    """`first`: the opening user message; `last`: the last user message that was answered."""
    context_turns: int = 0
    """Earlier turns put before the prompt, the system's included, at most."""
    context_characters: int = 2000
    """Characters of these earlier turns, at most; the latest stay."""
    language: str | None = None
    """Language of the conversations kept, as the data names it, case set aside; None keeps all."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        if self.turn not in ("first", "last"):
            raise InputError(f"turn: must be first or last, not {self.turn!r}")
        for name in ("context_turns", "context_characters"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is user, assistant, system, tool or "" (unknown); `content` is unchecked."""

    role: str
    content: Any
    is_redacted: bool = False

    @property
    def text(self) -> str:
        """The content where it is text, else ""."""
        return self.content if isinstance(self.content, str) else ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt, its context included, and the answer that was recorded for it."""

    prompt: str
    answer: str


class Unusable(Exception):  # noqa: N818 - a finding about one conversation, not an error of the program
    """A conversation that gives no exchange; the message is the reason, a few words."""


def turn_of(fields: Mapping[str, Any]) -> Turn:
    """Return the turn in {"role", "content"} or {"from", "value"}, other keys ignored but `redacted`."""
    role = fields.get("role") if fields.get("role") is not None else fields.get("from")
    content = fields.get("content") if fields.get("content") is not None else fields.get("value")
    return Turn(ROLES.get(str(role).strip().lower(), ""), content, fields.get("redacted") is True)


def find_exchange(turns: Sequence[Turn], options: ChatOptions) -> Exchange:
    """Return the exchange that `options` choose.

    User messages in a row are one prompt. Of several answers in a row the first counts: there the model stopped.

    Raises:
        Unusable: there is none, or it was redacted, used a tool, is empty or too long.
    """
    start = _opening(turns) if options.turn == "first" else _last_answered(turns)
    end = start
    while end < len(turns) and turns[end].role == "user":
        end += 1
    answer = _answer(turns, end)
    context = _context(turns[:start], options)
    used = [*context, *turns[start : end + 1]]
    if any(turn.is_redacted for turn in used):
        raise Unusable("redacted")
    prompt = render_prompt(context, "\n\n".join(turn.text for turn in turns[start:end] if turn.text.strip()), options)
    if not prompt.strip() or not turns[end - 1].text.strip() or not answer.strip():
        raise Unusable("not text" if any(_is_other(turn) for turn in turns[start : end + 1]) else "empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise Unusable("too long")
    if _has_half_surrogate(prompt) or _has_half_surrogate(answer):
        raise Unusable("bad Unicode")
    return Exchange(prompt, answer)


def render_prompt(context: Sequence[Turn], prompt: str, options: ChatOptions) -> str:
    """Return `prompt` after its context, "role: text" in paragraphs; the prompt alone where there is none.

    A predictor trained with context must be asked in this form.
    """
    earlier = "\n\n".join(f"{turn.role}: {turn.text.strip()}" for turn in context)
    earlier = earlier[max(len(earlier) - options.context_characters, 0) :]
    return f"{earlier}\n\nuser: {prompt}" if earlier else prompt


def open_prompt(turns: Sequence[Turn], options: ChatOptions) -> str | None:
    """Return the prompt, its context included, that the turns end with; None where no user has spoken last."""
    end = len(turns)
    start = end
    while start and turns[start - 1].role == "user":
        start -= 1
    prompt = "\n\n".join(turn.text for turn in turns[start:end] if turn.text.strip())
    return render_prompt(_context(turns[:start], options), prompt, options) if prompt else None


def _opening(turns: Sequence[Turn]) -> int:
    start = next((index for index, turn in enumerate(turns) if turn.role != "system"), None)
    if start is None:
        raise Unusable("empty")
    if turns[start].role != "user":
        raise Unusable({"tool": "tool turn", "assistant": "assistant first"}.get(turns[start].role, "unknown role"))
    return start


def _last_answered(turns: Sequence[Turn]) -> int:
    asked = [index for index in range(len(turns) - 1) if turns[index].role == "user" != turns[index + 1].role]
    if not asked:
        raise Unusable("no answer" if turns else "empty")
    start = asked[-1]
    while start and turns[start - 1].role == "user":
        start -= 1
    return start


def _answer(turns: Sequence[Turn], index: int) -> str:
    if index >= len(turns):
        raise Unusable("no answer")
    if any(turn.role == "tool" for turn in turns[index : index + 2]):
        raise Unusable("tool turn")  # the answer is the call of a tool, or made from its result
    if turns[index].role != "assistant":
        raise Unusable("no answer" if turns[index].role == "system" else "unknown role")
    return turns[index].text


def _context(earlier: Sequence[Turn], options: ChatOptions) -> list[Turn]:
    spoken = [turn for turn in earlier if turn.role not in ("tool", "") and turn.text.strip()]
    return spoken[max(len(spoken) - options.context_turns, 0) :]


def _is_other(turn: Turn) -> bool:
    return turn.content is not None and not isinstance(turn.content, str)


def _has_half_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
