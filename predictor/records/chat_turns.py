"""From the turns of a recorded conversation to one prompt and the answer it got."""

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.errors import InputError
from predictor.records.messages import Turn, is_unicode, joined_text, run_start

MAX_PROMPT_CHARACTERS = 200_000


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
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:  # a stored setting may be damaged
                raise InputError(f"{name}: must be at least 0, not {value!r}")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt, its context included, and the answer that was recorded for it."""

    prompt: str
    answer: str
    """What the model said, its reasoning first where the log keeps it: both are generated tokens."""
    earlier: tuple[Turn, ...] = ()
    """The messages before the prompt."""


class Unusable(Exception):  # noqa: N818 - a finding about one conversation, not an error of the program
    """A conversation that gives no exchange; the message is the reason, a few words."""


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
    prompt = render_prompt(context, joined_text(turns[start:end]), options)
    if not prompt.strip() or not turns[end - 1].text.strip() or not answer.strip():
        raise Unusable("not text" if any(turn.has_other for turn in turns[start : end + 1]) else "empty")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise Unusable("too long")
    if not (is_unicode(prompt) and is_unicode(answer)):
        raise Unusable("bad Unicode")
    return Exchange(prompt, answer, tuple(turns[:start]))


def render_prompt(context: Sequence[Turn], prompt: str, options: ChatOptions) -> str:
    """Return `prompt` after its context, "role: text" in paragraphs; the prompt alone where there is none.

    A predictor trained with context must be asked in this form.
    """
    earlier = "\n\n".join(f"{turn.role}: {turn.text.strip()}" for turn in context)
    earlier = earlier[max(len(earlier) - options.context_characters, 0) :]
    return f"{earlier}\n\nuser: {prompt}" if earlier else prompt


def open_prompt(turns: Sequence[Turn], options: ChatOptions) -> str | None:
    """Return the prompt, its context included, that the turns end with; None where no user has spoken last."""
    start = run_start(turns, len(turns))
    prompt = joined_text(turns[start:])
    return render_prompt(_context(turns[:start], options), prompt, options) if prompt else None


def _opening(turns: Sequence[Turn]) -> int:
    start = next((index for index, turn in enumerate(turns) if turn.role != "system"), None)
    if start is None:
        raise Unusable("empty")
    if turns[start].role != "user":
        raise Unusable(
            {"tool": "tool turn", "assistant": "assistant first"}.get(turns[start].role) or _unknown(turns[start])
        )
    return start


def _last_answered(turns: Sequence[Turn]) -> int:
    asked = [index for index in range(len(turns) - 1) if turns[index].role == "user" != turns[index + 1].role]
    if not asked:
        raise Unusable("no answer" if turns else "empty")
    return run_start(turns, asked[-1])


def _answer(turns: Sequence[Turn], index: int) -> str:
    if index >= len(turns):
        raise Unusable("no answer")
    answer = turns[index]
    if answer.calls_tools or any(turn.role == "tool" for turn in turns[index : index + 2]):
        raise Unusable("tool turn")  # the answer is the call of a tool, or made from its result
    if answer.role != "assistant":
        raise Unusable("no answer" if answer.role == "system" else _unknown(answer))
    return "\n\n".join(text for text in (answer.reasoning, answer.text) if text)


def _unknown(turn: Turn) -> str:
    return f"unknown role {turn.speaker[:40]!r}" if turn.speaker else "no role"


def _context(earlier: Sequence[Turn], options: ChatOptions) -> list[Turn]:
    spoken = [turn for turn in earlier if turn.role not in ("tool", "") and turn.text.strip()]
    return spoken[max(len(spoken) - options.context_turns, 0) :]
