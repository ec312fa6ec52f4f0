"""The stream of server-sent events in which a server answers."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from predictor.errors import InputError


@dataclass(slots=True)
class Reply:
    """An answer as it comes.

    Attributes:
        num_tokens: Generated tokens, reasoning and end token included; until the server's count comes, the events with
            text, each of a token at least.
        is_cut: Whether the cap or a filter ended it, not the model.
        num_prompt_tokens: As the server counts them.
    """

    num_tokens: int = 0
    is_cut: bool = False
    num_prompt_tokens: int = 0


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
        for choice in event.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            delta = choice.get("delta") or {}
            reply.num_tokens += any(delta.get(name) for name in ("content", "reasoning_content", "reasoning"))
    if reason is None:
        raise aiohttp.ClientPayloadError("the answer ended without a finish_reason")
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        raise InputError(
            f"--endpoint {endpoint}: it answers without usage.completion_tokens, so that lengths are not known; turn "
            "usage in streams on"
        )
    reply.num_tokens = max(1, usage["completion_tokens"])
    reply.num_prompt_tokens = int(usage.get("prompt_tokens") or 0)
    reply.is_cut = reason in ("length", "content_filter")


def _event(text: str, endpoint: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise InputError(f"--endpoint {endpoint}: it does not stream as OpenAI's servers do ({text.strip()[:80]!r})")
    if "error" in event:
        raise aiohttp.ClientPayloadError(str(event["error"])[:200])
    return event
