"""The proxy in front of an engine: requests and answers pass, with a hint of the length, and what passes is learnt."""

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from predictor.bounds.distribution import quantile
from predictor.bounds.online import OnlineCalibration
from predictor.errors import InputError
from predictor.sidecar.answers import Sidecar
from predictor.sidecar.asks import Ask, asks_of
from predictor.sidecar.departure import while_client_stays
from predictor.sidecar.heard import CODINGS, AnswerReader, Length
from predictor.sidecar.hints import HEADERS, Engine, Hint, hint_headers, with_hint
from predictor.sidecar.late import LateHints

_log = logging.getLogger(__name__)

PREDICTED = ("/chat/completions", "/completions", "/responses")
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_OWN = "/amin/"
_UPPER_LEVEL = 0.95
# Larger bodies pass as they come; nothing is predicted of them.
_MAX_BODY = 1 << 24
_MAX_ANSWERS = 128
_SMALL = 1 << 16
_REPORT_EVERY = 16
# aiohttp writes larger bodies in parts, so that they do not hold up others.
_LARGE = 1 << 19
# Seconds. uvicorn, in front of most engines, closes an idle connection after five: a request then sent on it is lost.
_KEEP_IDLE = 4.0
# RFC 9110, section 7.6.1: of one connection, not of the message; and Expect, which is met when the body is read here.
_HOP_BY_HOP = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_CODING = b"accept-encoding"
_OURS = frozenset(name.encode() for name in HEADERS)


@dataclass(slots=True)
class _Learner:
    """What is told of one request to the correction, a ticket for each of its answers."""

    tau: float
    calibration: OnlineCalibration | None = None
    tickets: Sequence[int] = ()
    num_told: int = 0

    def hear(self, num_tokens: Sequence[int]) -> None:
        """Tell how far each answer of a stream is, now and then."""
        if self.calibration is not None and sum(num_tokens) >= self.num_told + _REPORT_EVERY:
            self.num_told = sum(num_tokens)
            for ticket, count in zip(self.tickets, num_tokens, strict=True):
                self.calibration.progress(ticket, count)

    def end(self, lengths: Sequence[Length | None] = ()) -> None:
        """Tell the lengths, once; without any, and for None, that nothing more will be heard."""
        if self.calibration is None:
            return
        for ticket, length in zip(self.tickets, lengths or [None] * len(self.tickets), strict=True):
            if length is None:
                self.calibration.drop(ticket)
            else:
                self.calibration.end(ticket, length.num_tokens, is_cut=length.is_cut)
        # Once the answer has gone out: the next request would wait for it.
        asyncio.get_running_loop().call_soon(self.calibration.refit_if_stale, self.tau)
        self.calibration = None


class Relay:
    """Passes requests on to `upstream` and answers back, byte for byte.

    Of a request to generate, the length is predicted for at most `deadline` seconds; where no prediction is there by
    then, and in all trouble of ours, the request passes as it came.
    """

    def __init__(
        self,
        client: aiohttp.ClientSession,
        upstream: str,
        sidecar: Sidecar,
        engine: Engine,
        on_added: Callable[[float], None],
    ) -> None:
        """`client` sends nothing of its own; `upstream` is the engine's URL, with or without /v1 at its end.

        `on_added` is told the seconds that a request waited here for its prediction.
        """
        self._client, self._upstream, self._sidecar = client, upstream.rstrip("/"), sidecar
        self._engine, self._on_added = engine, on_added
        self._late = LateHints(sidecar.settings.deadline)

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        learner, headers = _Learner(self._sidecar.settings.tau), _passed(request.headers.raw)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        content: bytes | AsyncIterator[bytes] | None = request.stream() if has_body else None
        if request.method == "POST" and request.url.path.endswith(PREDICTED):
            try:
                content = await _body(request)
            except ClientDisconnect:
                return Response(status_code=499)
            if isinstance(content, bytes):
                start = time.perf_counter()
                content = await self._hinted(content, headers, learner)
                self._on_added(time.perf_counter() - start)
        if isinstance(content, bytes):
            headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        asking = self._client.request(
            request.method,
            self._url(request),
            headers=[(name.decode(), _text(value)) for name, value in headers],
            data=io.BytesIO(content) if isinstance(content, bytes) and len(content) > _LARGE else content,
            allow_redirects=False,
        )
        try:
            answer = await (while_client_stays(asking, request) if isinstance(content, bytes) else asking)
        except (aiohttp.ClientError, OSError) as error:
            learner.end()
            return _upstream_problem(error)
        except BaseException:
            learner.end()
            raise
        if answer is None:
            learner.end()
            return Response(status_code=499)
        return await _passed_on(answer, learner)

    def _url(self, request: Request) -> URL:
        path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"].decode("latin-1")
        upstream = self._upstream.removesuffix("/v1") if path.startswith("/v1/") else self._upstream
        return URL(f"{upstream}{path}{'?' if query else ''}{query}", encoded=True)

    async def _hinted(self, content: bytes, headers: list[tuple[bytes, bytes]], learner: _Learner) -> bytes:
        """Return the body with a hint, and the headers with theirs; as they came where there is no prediction."""
        try:
            body = json.loads(content) if len(content) <= _SMALL else await asyncio.to_thread(json.loads, content)
            if not isinstance(body, dict):
                return content
            asks = asks_of(body, self._sidecar.spec.chat_options)
            num_answers = 1 if body.get("n") is None else body["n"]
            if len(asks) != 1 or type(num_answers) is not int or not 1 <= num_answers <= _MAX_ANSWERS:
                return content
            if body.get("best_of") not in (None, num_answers):  # what is shown is chosen, so it teaches nothing
                return content
            hint = await self._predict(asks[0], body.get("model"), num_answers, learner)
            headers[:] = [(name, _readable(value) if name.lower() == _CODING else value) for name, value in headers]
            if hint is None:
                return content
            headers += [(name.encode(), value.encode()) for name, value in hint_headers(hint, self._engine).items()]
            return with_hint(content, body, hint, self._engine)
        except (InputError, RecursionError, ValueError):
            return content
        except Exception:  # whatever is wrong with us, the engine is asked
            _log.exception("a request passes without a hint")
            return content

    async def _predict(self, ask: Ask, model: Any, num_answers: int, learner: _Learner) -> Hint | None:
        sidecar = self._sidecar
        tau, name = sidecar.check(None, model if isinstance(model, str) else None)
        ledger, bins = sidecar.ledger, sidecar.spec.bins
        (answer,) = await sidecar.predict([ask], tau, name)
        self._late.add(answer.reason)
        learner.calibration = ledger.calibration(name)
        learner.tickets = [learner.calibration.issue(answer.survival) for _ in range(num_answers)]
        if answer.survival is None:
            return None
        upper = round(float(quantile(bins, answer.survival[None], _UPPER_LEVEL)[0]))
        upper = min(max(upper, answer.median), ask.max_new_tokens or upper)
        return Hint(answer.lower_bound, answer.median, max(upper, answer.median))


async def _body(request: Request) -> bytes | AsyncIterator[bytes]:
    """Return a request's body, or where it is too large its parts as they come.

    Raises:
        ClientDisconnect: The client left before its end.
    """
    parts, size, stream = list[bytes](), 0, request.stream()
    if int(request.headers.get("content-length", 0)) > _MAX_BODY:
        return stream
    async for part in stream:
        parts.append(part)
        size += len(part)
        if size > _MAX_BODY:
            return _chained(parts, stream)
    return b"".join(parts)


async def _chained(parts: Sequence[bytes], stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    async for part in stream:
        yield part


def _readable(codings: bytes) -> bytes:
    """Return a client's Accept-Encoding without what cannot be read here."""
    wanted = [each.strip() for each in codings.decode("latin-1").split(",")]
    kept = [each for each in wanted if each.partition(";")[0].strip().lower() in CODINGS]
    return ", ".join(kept).encode("latin-1") or b"identity"


async def _passed_on(answer: aiohttp.ClientResponse, learner: _Learner) -> Response:
    kind, coding = answer.headers.get("content-type", ""), answer.headers.get("content-encoding", "identity").lower()
    reader = None
    if learner.calibration is not None and answer.status == 200 and coding in CODINGS:
        is_stream = kind.startswith("text/event-stream")
        reader = AnswerReader(is_stream=is_stream, num_answers=len(learner.tickets), coding=coding)
    else:
        learner.end()
    response: Response
    # A small JSON is there with its head, or right after it: no stream, so nothing to pass before the end, or to watch.
    if kind.startswith("application/json") and (answer.content_length or _SMALL + 1) <= _SMALL:
        response = Response(b"".join([data async for data in _heard(answer, reader, learner)]), answer.status)
    else:
        response = StreamingResponse(_heard(answer, reader, learner), answer.status)
    response.raw_headers = _passed(answer.raw_headers)
    return response


async def _heard(
    answer: aiohttp.ClientResponse, reader: AnswerReader | None, learner: _Learner
) -> AsyncIterator[bytes]:
    """Yield the bytes of an answer as they come; a client that leaves ends the engine's work on it."""
    has_ended = False
    try:
        async for data in answer.content.iter_any():
            if reader is not None:
                reader.feed(data)
                learner.hear(reader.num_tokens)
            yield data
        has_ended = True
    except (aiohttp.ClientError, OSError) as error:
        _log.warning("the engine cut an answer off: %s", error or type(error).__name__)
        raise CutAnswer from None
    finally:
        if reader is not None and has_ended:
            learner.end(reader.lengths())
        elif reader is not None:
            learner.end([Length(count, is_cut=True) if count else None for count in reader.num_tokens])
        answer.close()  # of an answer that has ended the connection is kept already


def _text(value: bytes) -> str:
    """Return the value of a header as aiohttp takes it, which writes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _passed(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    connection = b",".join(value for name, value in headers if name.lower() == b"connection")
    named = {token.strip().lower() for token in connection.split(b",")}
    left_out = _HOP_BY_HOP | named | _OURS | {b"host"}
    return [(name, value) for name, value in headers if name.lower() not in left_out]


def _upstream_problem(error: Exception) -> JSONResponse:
    status = 504 if isinstance(error, TimeoutError) else 502
    message = f"the engine behind this proxy does not answer: {error or type(error).__name__}"
    return JSONResponse({"error": {"message": message, "type": "upstream_error", "code": status}}, status)


def make_client(connect_timeout: float) -> aiohttp.ClientSession:
    """Return a client that adds no header, follows nothing, and waits for an answer as long as the engine takes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_IDLE),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=1 << 16,
        max_field_size=1 << 16,
    )


class CutAnswer(Exception):  # noqa: N818 - not an error of ours
    """An answer that the engine did not finish: its client is to see it unfinished too."""


class Passing:
    """Hands every request to a relay but those under /amin, past the framework's routing.

    A request whose answer was cut off ends without its end, so that the server closes the connection.
    """

    def __init__(self, app: ASGIApp, get_relay: Callable[[], Relay]) -> None:
        """`app` answers under /amin."""
        self._app, self._get_relay = app, get_relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"].startswith(_OWN):
            await self._app(scope, receive, send)
            return
        is_passed = scope["method"] in METHODS
        with contextlib.suppress(CutAnswer):
            response = await self._get_relay().answer(Request(scope, receive)) if is_passed else Response(None, 405)
            await response(scope, receive, send)


def create_relay_app(get_relay: Callable[[], Relay], lifespan: Any, own: Mapping[str, Any]) -> Starlette:
    """Return the application of a relay, with `own` endpoints by path under /amin, which do not pass."""
    routes = [Route(f"{_OWN}{path.lstrip('/')}", endpoint, methods=["GET"]) for path, endpoint in own.items()]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(Passing, get_relay=get_relay)])
