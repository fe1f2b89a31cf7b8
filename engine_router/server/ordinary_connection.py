"""The ordinary tier's side of one connection: Hypercorn's own, on a stream whose first bytes were read already.

What Hypercorn leaves out is added here: reasons in status lines, the end of a connection whose client has left, and
a watch on clients that owe bytes and send next to none.
"""

from __future__ import annotations

import http
import math
import socket
from collections.abc import Callable
from types import MethodType
from typing import Any

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ConnectionState,
    Scope,
)

from engine_router.upstream.socket_stream import moved_on

STALLS: str = "engine_router.stalls"
"""The ASGI extension by which an answer says for how long its reader may stall; see `Stalls`."""


class Stalls:
    """For how long a connection's client may leave what is sent to it unread.

    Attributes:
        limit_s: seconds after which the connection is closed; infinity unless an answer says otherwise.
    """

    def __init__(self) -> None:
        self.limit_s = math.inf


class ReplayedStream:
    """A connection for Hypercorn whose first bytes were read already. Has what `TCPServer` uses of a stream.

    Attributes:
        came: called with the number of bytes that came, whenever some did, and the seconds in which nobody had read.
        reading_since, sending_since: trio's clock; None while nobody reads, or sends.
    """

    def __init__(self, sock: socket.socket, first: bytes) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._first = first
        self.socket = self._stream.socket
        self.came: Callable[[int, float], None] = lambda _count, _unread_s: None
        self._read_at = trio.current_time()
        self.reading_since: float | None = None
        self.sending_since: float | None = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the bytes that were read already, then what comes."""
        if self._first:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, b""
            return first
        self.reading_since = began = trio.current_time()
        self.came(0, began - self._read_at)
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        finally:
            self.reading_since = None
        self._read_at = trio.current_time()
        self.came(len(data), 0.0)
        return data

    async def send_all(self, data: bytes) -> None:
        """Send everything."""
        self.sending_since = trio.current_time()
        try:
            await self._stream.send_all(data)
        finally:
            self.sending_since = None

    async def send_eof(self) -> None:
        """End our side at once: trio's own would clash with a send that another task begins in the meantime."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


class _Reasoned(h11.Connection):
    """h11's side of a server; its answers have the reason in their status line that people and programs print.

    Attributes:
        has_socket: it has been asked for a WebSocket. A client that sends messages before it has one is refused, and
            that may happen in the middle of the app's own refusal: then one of the two gets lost.
    """

    has_socket = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override] # its overloads say the same
        """See `h11.Connection.send`."""
        if isinstance(event, h11.Response) and not event.reason:
            event = h11.Response(
                status_code=event.status_code,
                headers=event.headers,
                reason=_REASONS.get(event.status_code, b""),
            )
        try:
            return super().send(event)
        except h11.LocalProtocolError:
            if self.has_socket:
                return b""
            raise


_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}


class OrdinaryConnection(TCPServer):
    """Hypercorn's connection, which would keep the socket of a client that has left until it was idle for long enough.

    Attributes:
        quiet_since: trio's clock when the connection began to be idle, or its client to owe bytes of a head or a body,
            moved on by what has come since; infinity while the client owes nothing.
    """

    stream: ReplayedStream  # type: ignore[assignment] # has all that is used of one

    def __init__(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        context: WorkerContext,
        state: ConnectionState,
        stream: ReplayedStream,
    ) -> None:
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type] # likewise
        self._serves = app
        self.app = self._watched
        self._in_flight = 0
        self._incomplete = 0
        self._stalls = Stalls()
        self._h11: _Reasoned | None = None
        self._sockets: dict[WSStream, trio.CancelScope] = {}
        self._is_over = False
        self.quiet_since = trio.current_time()
        stream.came = self._came

    def is_stuck(self, patience_s: float) -> bool:
        """Tell whether the client owes bytes for longer than `patience_s`, or reads too slowly for what it asked."""
        now, stream = trio.current_time(), self.stream
        if stream.sending_since is not None and now - stream.sending_since > self._stalls.limit_s:
            return True
        return stream.reading_since is not None and now - self.quiet_since > patience_s

    def _came(self, count: int, unread_s: float) -> None:
        self._end_refused()
        if self.quiet_since != math.inf:
            self.quiet_since = moved_on(self.quiet_since + unread_s, count)

    def _end_refused(self) -> None:
        """End what serves a client that was refused because it sent messages before its WebSocket was accepted.

        Hypercorn never tells the app, not of the client's departure either.
        """
        for stream, serving in self._sockets.items():
            if stream.closed and not stream.handshake.accepted:
                serving.cancel()

    def _owes(self) -> None:
        """See whether the client owes bytes from now on."""
        owes = not self._in_flight or self._incomplete > 0
        self.quiet_since = trio.current_time() if owes else math.inf

    async def _watched(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """Serve one request, and keep in mind whether the whole of it has come."""
        coming = int(scope["type"] == "http")
        if scope["type"] == "http":
            scope["extensions"][STALLS] = {"stalls": self._stalls}

        def completed() -> None:
            nonlocal coming
            self._incomplete -= coming
            coming = 0
            self._owes()

        async def noting() -> ASGIReceiveEvent:
            message = await receive()
            if coming and (message["type"] != "http.request" or not message.get("more_body", False)):
                completed()
            return message

        self._in_flight += 1
        self._incomplete += coming
        self._owes()
        serving = trio.CancelScope()
        stream = send.__self__ if isinstance(send, MethodType) else None
        if isinstance(stream, WSStream):
            self._sockets[stream] = serving
            if self._h11 is not None:
                self._h11.has_socket = True
            self._end_refused()
        try:
            with serving:
                await self._serves(scope, noting, send, sync_spawn, call_soon)
        finally:
            if isinstance(stream, WSStream):
                del self._sockets[stream]
            self._in_flight -= 1
            completed()
            self._stalls.limit_s = math.inf

    async def _read_data(self) -> None:
        if isinstance(self.protocol.protocol, H11Protocol):
            size = self.config.h11_max_incomplete_size
            self._h11 = _Reasoned(h11.SERVER, max_incomplete_event_size=size)
            self.protocol.protocol.connection = self._h11
        await super()._read_data()
        self._is_over = True
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        if not self._is_over:
            await super()._idle_timeout()
