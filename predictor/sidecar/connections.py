"""Connections of the server: silent ones end, and idle ones make room for clients that ask."""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_log = logging.getLogger(__name__)
# asyncio takes so many connections in one go. Some goes later they are seen here, and only then can others be ended.
_ACCEPTED_AT_ONCE = 16
_MOST_UNSEEN = 8 * _ACCEPTED_AT_ONCE
# Files of the process besides connections: libraries, a model being read, logs.
_OTHER_FILES = 64
_KERNEL_BACKLOG = 2048
_MAX_HEAD_BYTES = 1 << 16


class HeardConnection(HttpToolsProtocol):
    """A connection that must send a request's head within `patience` seconds, and may be ended while it is idle.

    Where more than `max_open` are open, the one idle longest ends; where none is idle, the newest. uvicorn itself waits
    for ever for the first byte, and answers 503 to everyone where many connections are open, idle or not.
    """

    def __init__(self, *args: Any, max_open: int, patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_open, self._patience = max_open, patience
        self._silence: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._num_head_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, and end another one where too many are open."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self._max_open:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; with the head of a request there, the application has its own time limit for the body."""
        was_idle = self.is_idle
        super().data_received(data)
        if not self.is_idle:
            self._stop_waiting()
            self._num_head_bytes = 0
        elif was_idle:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.is_idle:
            self._await_head()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._idle_since = self.loop.time()
        self._silence = self.loop.call_later(self._patience, self._end)

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _make_room(self) -> None:
        idle = [other for other in self.connections if isinstance(other, HeardConnection) and other.is_idle]
        min(idle, key=lambda other: other._idle_since, default=self)._end()

    def _end(self) -> None:
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.abort()


def most_connections(wanted: int) -> int:
    """Return how many connections may be open: as `wanted`, or fewer where the process may not have so many files."""
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most_files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, most_files - _OTHER_FILES - _MOST_UNSEEN))


class ListeningServer(uvicorn.Server):
    """uvicorn on a listener of ours, with a log line instead of a traceback where files run out."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then let the kernel keep more connections waiting than are taken at once."""
        asyncio.get_running_loop().set_exception_handler(_on_loop_error)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_KERNEL_BACKLOG)


def make_server(app: ASGIApp, *, max_connections: int, patience: float) -> uvicorn.Server:
    """Return a server of `app`; `patience` in seconds, `max_connections` as far as the process may have files."""
    protocol: Any = partial(HeardConnection, max_open=most_connections(max_connections), patience=patience)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="error",
        access_log=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=10,
        server_header=False,
        proxy_headers=False,  # a client is who connects: on loopback anyone could name another one in a header
    )
    return ListeningServer(config)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        _log.error("no more connections: %s; raise the limit of open files (ulimit -n)", error.strerror)
        return
    loop.default_exception_handler(dict(context))
