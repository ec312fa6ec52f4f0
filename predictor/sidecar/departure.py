"""Noticing that a client leaves while the engine computes."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
from starlette.requests import Request


async def while_client_stays(
    asking: Coroutine[Any, Any, aiohttp.ClientResponse], request: Request
) -> aiohttp.ClientResponse | None:
    """Return the head of the engine's answer; None, and the engine's work ended, where the client leaves before."""
    answering, leaving = asyncio.ensure_future(asking), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await answering if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    """Return when a client whose body has been read leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
