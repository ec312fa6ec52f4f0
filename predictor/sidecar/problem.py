"""Errors of the server in one line of JSON."""

import logging

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_log = logging.getLogger(__name__)
_MAX_CHARS = 300


def problem(status: int, error: str, *, close: bool = False) -> JSONResponse:
    """Return a response with one line on what is wrong; `close` where the rest of the body is not read."""
    line = " ".join(error.encode(errors="replace").decode().split())
    line = line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 3] + "..."
    return JSONResponse({"error": line}, status, {"connection": "close"} if close else None)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the status that the framework chose, in the same form."""
    assert isinstance(error, HTTPException)
    response = problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def on_crash(request: Request, error: Exception) -> JSONResponse:
    """Answer 500 and log; a fault of ours."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "internal error; the server's log has more")
