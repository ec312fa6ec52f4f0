"""From the body of a request, in OpenAI's APIs or ours, to the prompts in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeGuard

from predictor.prompts.context import UNKNOWN, RequestContext
from predictor.records.chat_turns import ChatOptions, open_prompt
from predictor.records.messages import NotMessages, Turn, is_unicode, last_user_text, prompt_end, run_start, turns_of
from predictor.records.request_context import CAPS, request_context

Unusable = Literal["no_text", "not_unicode"]

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt; with a `request_id` its prediction is remembered for feedback.

    `unusable` says why a prompt has no text to read; it is answered without being read.
    """

    prompt: str
    max_new_tokens: int | None = None
    request_id: str | None = None
    read_context: Callable[[], RequestContext] = field(default=lambda: UNKNOWN, compare=False)
    """Reads what the request says apart from its prompt: a third of the work on a body, so done only to predict."""
    unusable: Unusable | None = None
    generated: int = 0
    """Tokens of the answer that are out already."""

    @property
    def context(self) -> RequestContext:
        """What the request says apart from its prompt."""
        return self.read_context()


def asks_of(body: Mapping[str, Any], chat_options: ChatOptions | None) -> list[Ask]:
    """Return the prompts of a body with `prompt` (one or several), `messages`, or `input` (OpenAI's responses).

    What is not understood makes a prompt unusable and raises nothing: the engine that gets the body has its own rules.
    Several prompts have the body's `request_id` with -0, -1, ... after it.
    """
    cap, request_id = max_new_tokens(body), body.get("request_id")
    request_id = request_id if isinstance(request_id, str) else None
    given = body.get("generated_tokens")
    generated = given if _is_count(given) else 0
    prompts, read_context = _prompts(body, chat_options)
    ids = (
        [request_id] if len(prompts) == 1 or request_id is None else [f"{request_id}-{i}" for i in range(len(prompts))]
    )
    return [_ask(prompts[i], cap, ids[i % len(ids)], read_context, generated) for i in range(len(prompts))]


def max_new_tokens(body: Mapping[str, Any]) -> int | None:
    """Return the body's cap of an answer in tokens, the least where it names several; None where it has none."""
    return min((body[name] for name in CAPS if _is_count(body.get(name)) and body[name] > 0), default=None)


def _prompts(
    body: Mapping[str, Any], chat_options: ChatOptions | None
) -> tuple[list[Any], Callable[[], RequestContext]]:
    if body.get("messages") is None and body.get("input") is None:
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and bool(prompt) and all(isinstance(one, str | list) for one in prompt)
        prompts: list[Any] = prompt if isinstance(prompt, list) and several else [prompt]
        return prompts, partial(_context, body, None)
    said = body["messages"] if body.get("messages") is not None else body["input"]
    said = [{"role": "user", "content": said}] if isinstance(said, str) else said
    try:
        turns = turns_of(said)
    except NotMessages:
        return [None], lambda: UNKNOWN
    if isinstance(body.get("instructions"), str):
        turns = [Turn("system", body["instructions"]), *turns]
    prompt = None if chat_options is None else open_prompt(turns, chat_options)
    return [prompt or last_user_text(turns)], partial(_context, body, turns)


def _ask(
    prompt: Any,
    cap: int | None,
    request_id: str | None,
    read_context: Callable[[], RequestContext],
    generated: int,
) -> Ask:
    if not isinstance(prompt, str) or not prompt.strip():
        return Ask("", cap, request_id, read_context, "no_text", generated)
    if not is_unicode(prompt):
        return Ask("", cap, request_id, read_context, "not_unicode", generated)
    return Ask(prompt, cap, request_id, read_context, None, generated)


def _context(body: Mapping[str, Any], turns: Sequence[Turn] | None) -> RequestContext:
    return request_context(body, None if turns is None else turns[: run_start(turns, prompt_end(turns))])


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
