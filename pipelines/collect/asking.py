"""How an OpenAI-compatible server is asked for a streamed answer, and what its refusals mean to the user."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

Chat = Sequence[Mapping[str, str]]


def open_session(api_key_env: str, timeout: float) -> aiohttp.ClientSession:
    """Return a session without a limit of connections that sends the key in a variable of the environment, if any.

    `timeout` is how many seconds a server may be silent.
    """
    key = os.environ.get(api_key_env)
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout),
        connector=aiohttp.TCPConnector(limit=0),
    )


def chat_request(
    model: str, chat: Chat, max_new_tokens: int, seed: int, sampling: Mapping[str, float]
) -> dict[str, Any]:
    """Return the body that asks for one sampled answer as a stream, with its usage at the end."""
    return {
        "model": model,
        "messages": [dict(message) for message in chat],
        "max_tokens": max_new_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling,
    }


def refusal(status: int, problem: str, api_key_env: str) -> str:
    """Return what a refusal means: the key, the address or the model, or the request itself."""
    if status in (401, 403):
        return f"the key in ${api_key_env} is missing or refused ({problem})"
    if status == 404:
        return f"no such model or path ({problem}); give the name in --served-model and an address that ends in /v1"
    return f"the request is refused ({problem})"


async def problem_of(response: aiohttp.ClientResponse) -> str:
    """Return the status of an answer that is none, and the beginning of what it says, on one line."""
    said = (await response.read()).decode("utf-8", "replace")
    return f"HTTP {response.status}: {one_line(said)}"


def one_line(text: str) -> str:
    """Return the beginning of a text on one line."""
    return " ".join(text.split())[:200]
