"""What the user said last, out of the token ids that an engine gets: a predictor is not trained on chat templates."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)
# Words that no template and hardly a prompt has.
_FIRST, _REPLY, _LAST = "amin-probe-first", "amin-probe-reply", "amin-probe-last"


def prompt_reader(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return a function from a prompt's token ids to the text that a predictor reads.

    That is the last turn of the user where the ids follow the tokenizer's chat template, else all of them as text,
    special tokens left out. What stands before and after a turn is found by rendering a conversation once.
    """
    before, after = _borders(tokenizer)

    def text(token_ids: Sequence[int]) -> str:
        ids = list(token_ids)
        if before and after:
            turn = last_turn(str(tokenizer.decode(ids, skip_special_tokens=False)), before, after)
            if turn is not None:
                return turn
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return text


def last_turn(rendered: str, before: str, after: str) -> str | None:
    """Return what stands between the last `before` and the `after` that follows it; None where they do not stand there.

    Answers and results of tools may follow: what the user wants stands before them.
    """
    _, has_begun, rest = rendered.rpartition(before)
    turn, has_ended, _ = rest.partition(after)
    return turn if has_begun and has_ended else None


def _borders(tokenizer: Any) -> tuple[str, str]:
    """Return what a chat template writes before every turn of the user and after it; "" where there is no telling."""
    if getattr(tokenizer, "chat_template", None) is None:
        return "", ""
    said = [("user", _FIRST), ("assistant", _REPLY), ("user", _LAST)]
    chat = [{"role": role, "content": content} for role, content in said]
    try:
        rendered = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        start, rest = rendered.split(_FIRST)
        between, rest = rest.split(_REPLY)
        middle, end = rest.split(_LAST)
    except Exception as error:  # whatever a template raises, or writes that cannot be told apart
        _log.warning("the chat template tells no turns apart (%s): predictions read prompts with all it adds", error)
        return "", ""
    return _common_start(start[::-1], middle[::-1])[::-1], _common_start(between, end)


def _common_start(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))]
