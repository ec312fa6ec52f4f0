"""The stream of server-sent events in which a server answers."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from predictor.errors import InputError
from predictor.records.log_rows import CUT
from predictor.records.values import whole_number


@dataclass(slots=True)
class Reply:
    """An answer as it comes.

    Attributes:
        num_tokens: Generated tokens, reasoning and end token included; until the server's count comes, the events with
            text, each of a token at least.
        is_cut: Whether the cap or a filter ended it, not the model.
        num_prompt_tokens: As the server counts them.
        first_time: When the first text came, by `time.perf_counter`; of an answer without text, its end.
        pieces: The text, reasoning included, as it came.
    """

    num_tokens: int = 0
    is_cut: bool = False
    num_prompt_tokens: int = 0
    first_time: float | None = None
    pieces: list[str] = field(default_factory=list)


async def read_reply(response: aiohttp.ClientResponse, reply: Reply, endpoint: str) -> None:
    """Fill `reply` from a stream.

    Raises:
        InputError: The server answers without usage, or not in this format.
        aiohttp.ClientPayloadError: The stream ended early.
    """
    reason, usage = None, None
    async for line in response.content:
        text = line.decode("utf-8", "replace").strip()
        if not text.startswith("data:") or text == "data: [DONE]":
            continue
        event = _event(text.removeprefix("data:"), endpoint)
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            reason = choice.get("finish_reason") or reason
            delta = choice.get("delta") or {}
            texts = [str(delta[name]) for name in ("content", "reasoning_content", "reasoning") if delta.get(name)]
            reply.num_tokens += bool(texts)
            reply.pieces += texts
            if reply.first_time is None and (texts or reason):
                reply.first_time = time.perf_counter()
    if reason is None:
        raise aiohttp.ClientPayloadError("the answer ended without a finish_reason")
    usage = usage if isinstance(usage, dict) else {}
    if usage.get("completion_tokens") is None:
        raise InputError(
            f"--endpoint {endpoint}: it answers without usage.completion_tokens, so that lengths are not known; turn "
            "usage in streams on"
        )
    num_tokens = whole_number(usage["completion_tokens"])
    if num_tokens is None or num_tokens < 0:
        said = repr(usage["completion_tokens"])[:40]
        raise InputError(f"--endpoint {endpoint}: usage.completion_tokens is {said}, no number of tokens")
    reply.num_tokens = max(1, num_tokens)
    reply.num_prompt_tokens = max(0, whole_number(usage.get("prompt_tokens")) or 0)
    reply.is_cut = str(reason).lower() in CUT


def _event(text: str, endpoint: str) -> dict[str, Any]:
    """Return the object of an event; its `choices` are a list of objects, whose `delta` is an object or absent."""
    try:
        event = json.loads(text)
    except (RecursionError, ValueError):
        event = None
    event = {**event, "choices": event.get("choices") or []} if isinstance(event, dict) else {"choices": None}
    choices = event["choices"]
    if not isinstance(choices, list) or not all(
        isinstance(choice, dict) and isinstance(choice.get("delta") or {}, dict) for choice in choices
    ):
        raise InputError(f"--endpoint {endpoint}: it does not stream as OpenAI's servers do ({text.strip()[:80]!r})")
    if event.get("error"):
        raise aiohttp.ClientPayloadError(str(event["error"])[:200])
    return event
