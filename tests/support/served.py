"""A router on a port of its own, for tests that need real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import h11
import trio

from engine_router.router import Router
from engine_router.server.serve import listen, serve
from support.asgi import Received, as_text, request_of


@asynccontextmanager
async def served(router: Router) -> AsyncIterator[str]:
    """Serve a router that runs until the block ends; yields its URL, without a path.

    The port is a free one of `server.host`, whatever is configured. At the end connections are cut at once.
    """
    async with trio.open_nursery() as nursery:
        server = router.config.server
        sockets = listen(server, port=0)
        port = sockets[0].getsockname()[1]

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(router, sockets=sockets, task_status=task_status)

        await nursery.start(run)
        first = server.host[0]
        host = f"[{first}]" if ":" in first else first
        yield f"http://{host}:{port}"
        nursery.cancel_scope.cancel()


async def ask(
    base_url: str,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: object = None,
) -> Received:
    """Do over a connection of its own what `asgi.ask` does to an app.

    Args:
        path: decoded; it is quoted as a careful client does it.
        headers: as `asgi.request_of` takes them, and `body` too.

    Raises:
        h11.RemoteProtocolError: what came is no HTTP.
    """
    given, pieces = request_of(body, headers)
    if "transfer-encoding" in given:
        pieces = (*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece), b"0\r\n\r\n")
    target = quote(path) + (f"?{query}" if query else "")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    async with RawClient.to(base_url) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode())
        for piece in pieces:
            await client.send(piece)
        return await client.answer(method)


class RawClient:
    """A client that is nothing but a socket, so that it can do what HTTP libraries do not.

    Attributes:
        received: everything that came; `answer` takes out what it has read.
    """

    def __init__(self, stream: trio.SocketStream, host: str) -> None:
        self._stream = stream
        self._host = host
        self.received = b""

    @classmethod
    @asynccontextmanager
    async def to(cls, base_url: str, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[RawClient]:
        """Connect; at the end of the block the connection is closed, if it is not yet.

        Args:
            receive_buffer_bytes: how much the kernel may take in for a client that does not read.
        """
        url = urlsplit(base_url)
        sock = trio.socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        with sock:
            await sock.connect((url.hostname or "", url.port or 80))
            yield cls(trio.SocketStream(sock), url.netloc)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.send_all(data)

    async def request(
        self, method: str, target: str, body: bytes = b"", *, headers: Sequence[str] = (), extra: bytes = b""
    ) -> None:
        """Send a request.

        Args:
            headers: lines beside Host and Content-Length.
            extra: bytes that follow the request at once.
        """
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join([*lines, "", ""]).encode() + body + extra)

    async def until(self, marker: bytes) -> bytes:
        """Read until a marker has come; returns everything that came.

        Raises:
            EOFError: the server closed the connection before.
        """
        while marker not in self.received:
            if not await self._receive():
                raise EOFError(f"closed after {self.received!r}")
        return self.received

    async def rest(self) -> bytes:
        """Read until the server has closed, or broken, the connection; returns everything that came."""
        while await self._receive():
            pass
        return self.received

    async def answer(self, method: str = "POST") -> Received:
        """Read one answer, its pieces as the server framed them; it may be cut off.

        The parser is a strict one, and not the one that the fast tier is built on.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP.
        """
        parser = h11.Connection(h11.CLIENT)
        for said in (h11.Request(method=method, target="/", headers=[("Host", "x")]), h11.EndOfMessage()):
            parser.send(said)  # it has to know what is answered
        if self.received:
            parser.receive_data(self.received)
        answer = Received()
        while not answer.is_complete:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await self._receive()
                if not data:
                    break
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                answer.status, answer.headers = event.status_code, as_text(event.headers)
            elif isinstance(event, h11.Data):
                if event.chunk_start or not answer.pieces:
                    answer.pieces.append(b"")
                answer.pieces[-1] += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                answer.is_complete = True
        self.received = parser.trailing_data[0]
        return answer

    async def _receive(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some())
        except trio.BrokenResourceError:
            return b""
        self.received += data
        return data

    def close(self) -> None:
        """Close the connection: FIN, or RST where something was not read."""
        self._stream.socket.close()

    def half_close(self) -> None:
        """Send nothing more (FIN), but go on reading."""
        self._stream.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection: RST."""
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()
