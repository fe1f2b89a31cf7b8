"""One end of a connection to a scripted engine, for tests of the client leg."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing

from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.http1 import ResponseHead, UpstreamRequest

OK = b"HTTP/1.1 200 OK\r\n"

HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


@attrs.define(eq=False)
class Line:
    """One connection, as the server sees it."""

    stream: trio.SocketStream
    received: bytearray = attrs.field(factory=bytearray)

    async def request(self) -> bytes:
        """Read one request, body included; empty when the client has left."""
        while b"\r\n\r\n" not in self.received:
            if not await self._more():
                return b""
        head, _, _ = bytes(self.received).partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        size = len(head) + 4 + length
        while len(self.received) < size:
            if not await self._more():
                return b""
        request = bytes(self.received[:size])
        del self.received[:size]
        return request

    async def send(self, *parts: bytes) -> None:
        """Send parts so that each arrives by itself."""
        for part in parts:
            await self.stream.send_all(part)
            await trio.sleep(0.001)

    async def until_left(self) -> None:
        """Wait until the client has left."""
        try:
            while await self._more():
                pass
        except trio.BrokenResourceError:
            pass

    def reset(self) -> None:
        """Break the connection, with what was on its way."""
        sock = self.stream.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.received += data
        return bool(data)


Script = Callable[[Line], Awaitable[object]]


@attrs.define(eq=False)
class Wire:
    """A server under script, and the pool of connections to it."""

    upstream: Upstream
    base_url: str
    lines: list[Line]
    ca_file: str | None = None

    def request(self, method: str = "GET", body: bytes = b"", **more: Any) -> UpstreamRequest:
        fields: dict[str, Any] = {"engine": "a", "base_url": self.base_url, "target": "/x", "headers": ()}
        fields["ca_file"] = self.ca_file
        return UpstreamRequest(**{**fields, "method": method, "body": body, **more})

    async def send(self, method: str = "GET", body: bytes = b"", **more: object) -> Exchange:
        return await self.upstream.send(self.request(method, body, **more))

    async def fetch(self, method: str = "GET", body: bytes = b"") -> tuple[ResponseHead, bytes]:
        exchange = await self.send(method, body)
        try:
            return await exchange.head(), await rest_of(exchange)
        finally:
            exchange.close()

    def idle(self) -> int:
        return len(self.upstream._idle)


async def rest_of(exchange: Exchange) -> bytes:
    body = b""
    while data := await exchange.chunk():
        body += data
    return body


@asynccontextmanager
async def wire(script: Script, *, seconds: float = 200.0) -> AsyncIterator[Wire]:
    """Serve each connection by the script, which is cut off in the end."""
    lines: list[Line] = []

    async def serve(stream: trio.SocketStream) -> None:
        line = Line(stream)
        lines.append(line)
        try:
            await script(line)
        except trio.BrokenResourceError:
            pass  # the client left in the middle
        finally:
            stream.socket.close()

    upstream = Upstream()
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            with listener.socket:
                port = listener.socket.getsockname()[1]
                nursery.start_soon(trio.serve_listeners, serve, [listener])
                try:
                    yield Wire(upstream, f"http://127.0.0.1:{port}", lines)
                finally:
                    upstream.close()
                    nursery.cancel_scope.cancel()


def answering(*parts: bytes, close: bool = False) -> Script:
    """Answer every request with the same parts; with `close`, hang up after each."""

    async def script(line: Line) -> None:
        while await line.request():
            await line.send(*parts)
            if close:
                return

    return script


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

WHOLE = {
    "length": (HELLO, b"hello"),
    "empty": (OK + b"content-length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "extensions": (CHUNKED + b'2;a=b\r\nhe\r\n3;c="d"\r\nllo\r\n0;e\r\n\r\n', b"hello"),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", b"hello"),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO,
        b"hello",
    ),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
}
