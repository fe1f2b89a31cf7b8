"""A router on a port of its own, for tests that need real sockets."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import trio

from engine_router.composition import open_router
from engine_router.config import Config
from engine_router.router import Router
from engine_router.serving import listen, serve


@asynccontextmanager
async def served(what: Router | Config | str | os.PathLike[str]) -> AsyncIterator[str]:
    """Serve a router until the block ends; yields its URL, without a path.

    Args:
        what: a router that runs, or a configuration, or the path of one, to run one by.

    The port is a free one of `server.host`, whatever is configured. At the end connections are cut at once.
    """
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        router = what if isinstance(what, Router) else await stack.enter_async_context(open_router(what))
        server = router.config.server
        sockets = listen(server, port=0)
        port = sockets[0].getsockname()[1]

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(router, sockets=sockets, task_status=task_status)

        await nursery.start(run)
        host = f"[{server.host}]" if ":" in server.host else server.host
        yield f"http://{host}:{port}"
        nursery.cancel_scope.cancel()


class RawClient:
    """A client that is nothing but a socket, so that it can do what HTTP libraries do not.

    Attributes:
        received: everything that came.
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

    async def _receive(self) -> bool:
        try:
            data = await self._stream.receive_some()
        except trio.BrokenResourceError:
            return False
        self.received += data
        return bool(data)

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
