"""A client of bare HTTP/1.1 over kept connections: it costs so little that the server has the cores to itself."""

import asyncio
import re

PATIENCE = 60.0
"""Seconds; beyond any time limit that the server keeps: an answer that takes longer is lost."""


class Client:
    """Sends bodies to one server, over as many connections as are needed, up to a limit."""

    def __init__(self, host: str, port: int, max_connections: int) -> None:
        """Connect to nothing yet."""
        self._address, self._room = (host, port), asyncio.Semaphore(max_connections)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> "Client":
        """Return this client; its connections end with the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the connections."""
        for _reader, writer in self._idle:
            writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a JSON body.

        Raises:
            OSError: there is no connection, or it breaks.
            EOFError: the server ends it before the answer is whole.
            TimeoutError: the answer takes longer than `PATIENCE`.
        """
        async with self._room, asyncio.timeout(PATIENCE):
            reader, writer = await self._connection()
            try:
                writer.write(self._head(path, len(body)) + body)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
                answer = await reader.readexactly(int(length[1]) if length else 0)
            except BaseException:
                writer.close()
                raise
            if re.search(rb"(?i)\nconnection: *close", head):
                writer.close()
            else:
                self._idle.append((reader, writer))
            return int(head.split(None, 2)[1]), answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address)

    def _head(self, path: str, length: int) -> bytes:
        host, port = self._address
        lines = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        return f"{lines}Content-Length: {length}\r\n\r\n".encode()
