"""Before any run: whether a server can be reached, what its model is called, and whether it answers as it must."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from pipelines.collect.asking import Chat, chat_request, one_line, open_session, problem_of, refusal
from pipelines.collect.stream import Reply, read_reply
from pipelines.evaluate.endpoint.measure import Server
from pipelines.settings.evaluate import SERVED_MODEL, EvaluateSettings
from predictor.errors import InputError

NUM_TOKENS = 8
"""Most tokens of an answer that is asked for."""
NUM_CHATS = 4


async def find_servers(settings: EvaluateSettings, chats: Sequence[Chat]) -> list[Server]:
    """Return the servers, each of which has answered the first few of `chats` at once, so that both sides are warm.

    Raises:
        InputError: One cannot be reached, refuses, has several models, or does not stream with usage.
    """
    found = []
    async with open_session(settings.servers.api_key_env, settings.servers.timeout) as session:
        for name, url in settings.servers.urls.items():
            option = "--endpoint" if name == "a" else "--endpoint-b"
            try:
                server = Server(name, url, await _model(session, url, settings))
                await asyncio.gather(*(_answer(session, server, chat, settings) for chat in chats[:NUM_CHATS]))
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise InputError(f"{option} {url}: {one_line(str(error)) or type(error).__name__}") from None
            except InputError as error:
                raise InputError(f"{option} {url}: {str(error).removeprefix(f'--endpoint {url}: ')}") from None
            found.append(server)
    return found


async def _model(session: aiohttp.ClientSession, url: str, settings: EvaluateSettings) -> str:
    """Return the name that was given, or else that of the server's only model."""
    if settings.served_model != SERVED_MODEL:
        return settings.served_model
    async with session.get(f"{url}/models") as response:
        if response.status != 200:
            raise InputError(refusal(response.status, await problem_of(response), settings.servers.api_key_env))
        names = _names(await response.json(content_type=None))
    if settings.served_model in names:
        return settings.served_model
    if len(names) != 1:
        raise InputError(f"it has {len(names)} models ({', '.join(names[:8])}); name one with --served-model")
    return names[0]


def _names(listed: Any) -> Sequence[str]:
    """Return the names in an answer to GET /models."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list):
        raise InputError("it does not list its models as OpenAI's servers do; name one with --served-model")
    return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]


async def _answer(session: aiohttp.ClientSession, server: Server, chat: Chat, settings: EvaluateSettings) -> None:
    """Ask for a short answer, which must stream and end with its usage."""
    body = chat_request(server.model, chat, min(NUM_TOKENS, settings.max_new_tokens), 0, settings.sampling.given)
    async with session.post(f"{server.url}/chat/completions", json=body) as response:
        if response.status != 200:
            problem = await problem_of(response)
            raise InputError(refusal(response.status, problem, settings.servers.api_key_env))
        await read_reply(response, Reply(), server.url)
