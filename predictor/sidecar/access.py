"""Who may ask: names under which the server may be called, pages that may call it, and a key."""

import hmac
import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from predictor.sidecar.problem import problem

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# A key guards what reads predictions and steers bounds; probes and metrics say nothing of prompts.
_KEYED = "/v1/"
# Names of which it is remembered whether they are trusted.
_REMEMBERED = 256


class Access:
    """Refuses a request whose Host is not trusted (400), whose Origin is not (403), or that lacks the key (401).

    A page in a browser can make its own name point to this machine (DNS rebinding) and then read what it asks here. Its
    Host header still holds that name, so only trusted names pass: the loopback ones, the address at which the
    connection arrived, and `hosts`. A page may call if its own host is trusted.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = (), key: str | None = None) -> None:
        """`hosts`: further names without a port, "*" for any. `key`: what `Authorization: Bearer` must hold."""
        self._app = app
        self._hosts = frozenset(name.lower().strip("[]") for name in (*LOOPBACK_NAMES, *hosts))
        self._key = None if key is None else f"bearer {key}".encode()
        self._is_trusted = lru_cache(_REMEMBERED)(self._judge)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 400, 401 or 403."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        app = self._app if refusal is None else problem(*refusal, close=True)
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        address = (scope.get("server") or ("",))[0]
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        # Before HTTP/1.1 there is no Host; no browser speaks that.
        if len(hosts) > 1 or not all(self._is_trusted(b"//" + host, address) for host in hosts):
            return 400, "host: not a name of this server; add it with --allowed-hosts"
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is not None and not self._is_trusted(origin, address):
            return 403, "origin: a page of another host may not call this server; add it with --allowed-hosts"
        if self._key is not None and scope["path"].startswith(_KEYED):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(scheme.lower() + b" " + given.strip(), self._key):
                return 401, "authorization: must be Bearer with the key of this server"
        return None

    def _judge(self, url: bytes, address: str) -> bool:
        """Return whether the host of a URL may be called that arrived at an address of ours."""
        if "*" in self._hosts:
            return True
        try:
            parts = urlsplit(url.decode("latin-1"))
            host = parts.hostname or ""
        except ValueError:
            return False
        if not host or "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
            return False
        return host in self._hosts or (_is_address(host) and host == address)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether an address or name to listen on is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
