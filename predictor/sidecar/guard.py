"""What stands between the network and the sidecar's handlers: limits of a request, and its time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor.errors import InputError
from predictor.sidecar.problem import problem

Endpoint = Callable[[bytes, str], Awaitable[Response]]
"""What answers a body, and the address of the client that sent it."""

PROBES = ("/healthz", "/readyz", "/metrics")
PREDICT, FEEDBACK = "/v1/predict", "/v1/feedback"
PATHS = (PREDICT, FEEDBACK, *PROBES)
# nginx's status of a request whose client did not wait for the response.
_CLIENT_LEFT = 499


class Guard:
    """Reads a request body whole, refuses it early where it is too large, too slow or not JSON, and times requests.

    Beyond `max_active` requests at a time others get 503; probes and metrics do not count. The endpoints that take
    bodies are called from here: the framework's way to them costs three times as much as refusing a request, and in an
    overload four of five are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[str, Endpoint],
        max_bytes: int,
        timeout: float,
        max_active: int,
        on_request: Callable[[str, int, float], None],
    ) -> None:
        """`endpoints` by path, for POST; `timeout` in seconds.

        `on_request` is told the path, the status and the seconds of each request.
        """
        self._app, self._endpoints, self._on_request = app, endpoints, on_request
        self._max_bytes, self._timeout = max_bytes, timeout
        self._max_active, self._num_active = max_active, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or answer it with 408, 413, 415 or 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] in PROBES:
            await self._timed(scope, receive, send)
        elif self._num_active >= self._max_active:
            response = problem(503, f"busy: {self._max_active} requests are being answered", close=True)
            await response(scope, receive, send)
            self._on_request(_label(scope), 503, 0.0)
        else:
            self._num_active += 1
            try:
                await self._timed(scope, receive, send)
            finally:
                self._num_active -= 1

    async def _timed(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = _CLIENT_LEFT

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
                await self._pass(body, scope, receive, send_noting_status)
        except Exception:
            status = 500
            raise
        finally:
            self._on_request(_label(scope), status, time.perf_counter() - start)

    async def _pass(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, _replay(body, receive), send)
            return
        try:
            response = await endpoint(body, (scope.get("client") or ("",))[0])
        except InputError as error:
            response = problem(422, str(error))
        await response(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | JSONResponse | None:
        """Return the body, the response that refuses it, or None where the client went away."""
        if scope["method"] != "POST" or scope["path"] in PROBES:
            return b""
        if (refusal := self._refused_head(dict(scope["headers"]))) is not None:
            return refusal
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
                        return bytes(body)
        except TimeoutError:
            return problem(408, f"body: did not arrive within {self._timeout:g} s", close=True)

    def _refused_head(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return self._too_large()
        # A page in a browser can send other types to this machine without asking; JSON it cannot.
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            return problem(415, "content-type: must be application/json", close=True)
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            return problem(415, "content-encoding: bodies are read as they are; send it uncompressed", close=True)
        return None

    def _too_large(self) -> JSONResponse:
        return problem(413, f"body: larger than {self._max_bytes} bytes", close=True)


def _label(scope: Scope) -> str:
    # Other paths share a label: the client must not choose how many there are.
    return scope["path"] if scope["path"] in PATHS else "other"


def _replay(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
