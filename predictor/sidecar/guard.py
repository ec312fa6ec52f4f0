"""What stands between the network and the sidecar's handlers: limits of a request, and errors in one line."""

import asyncio
import logging
import time
from collections.abc import Callable

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor.errors import InputError
from predictor.sidecar.schema import VARIANTS

_log = logging.getLogger(__name__)
PATHS = ("/v1/predict", "/v1/feedback", "/healthz", "/readyz", "/metrics")
_MAX_PROBLEM_CHARS = 300
# nginx's status of a request whose client did not wait for the response.
_CLIENT_LEFT = 499


class Guard:
    """Reads a request body whole, refuses it early where it is too large, too slow or not JSON, and times requests."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout: float, on_request: Callable[[str, int, float], None]
    ) -> None:
        """`timeout` in seconds; `on_request` is told the path, the status and the seconds of each request."""
        self._app, self._max_bytes, self._timeout, self._on_request = app, max_bytes, timeout, on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or answer it with 408, 413 or 415."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, status = str(scope["path"]), _CLIENT_LEFT

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        body = await self._read(scope, receive)
        start = time.perf_counter()
        try:
            if isinstance(body, JSONResponse):
                await body(scope, receive, send_noting_status)
            elif body is not None:
                await self._app(scope, _replay(body, receive), send_noting_status)
        except Exception:
            status = 500
            raise
        finally:
            # Other paths share a label: the client must not choose how many there are.
            self._on_request(path if path in PATHS else "other", status, time.perf_counter() - start)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | JSONResponse | None:
        """Return the body, the response that refuses it, or None where the client went away."""
        headers = dict(scope["headers"])
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return self._too_large()
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        return self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return problem(408, f"body: did not arrive within {self._timeout:g} s", close=True)
        # A page in a browser can send other types to this machine without asking; JSON it cannot.
        if body and content_type != b"application/json":
            return problem(415, "content-type: must be application/json")
        try:
            body.decode()
        except UnicodeDecodeError as error:
            return problem(400, f"body: not UTF-8 at byte {error.start}")
        return bytes(body)

    def _too_large(self) -> JSONResponse:
        return problem(413, f"body: larger than {self._max_bytes} bytes", close=True)


def _replay(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def problem(status: int, error: str, *, close: bool = False) -> JSONResponse:
    """Return a response with one line on what is wrong; `close` where the rest of the body is not read."""
    line = " ".join(error.encode(errors="replace").decode().split())
    line = line if len(line) <= _MAX_PROBLEM_CHARS else line[: _MAX_PROBLEM_CHARS - 3] + "..."
    return JSONResponse({"error": line}, status, {"connection": "close"} if close else None)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer 422, or 400 where the body is not JSON, with the first problem."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        return problem(400, f"body: not JSON: {first.get('ctx', {}).get('error', '')} at character {first['loc'][-1]}")
    place = [str(part) for part in first["loc"][1:] if part not in VARIANTS]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    return problem(422, f"{'.'.join(place) or 'body'}: {message}{more}")


async def on_input_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 with what the predictor says of an option."""
    assert isinstance(error, InputError)
    return problem(422, str(error))


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the status that the framework chose, in the same form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return problem(400, "body: cannot be read as JSON: too deep, or too large a number")
    response = problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def on_crash(request: Request, error: Exception) -> JSONResponse:
    """Answer 500 and log; a fault of ours."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "internal error; the server's log has more")
