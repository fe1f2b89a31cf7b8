"""The client leg: one HTTP/1.1 exchange with an engine, over pooled connections.

Users' traffic goes through here; control calls use httpx. An exchange is made of steps that may be cancelled
and taken up again (`head`, `chunk`), so that a keep-alive can be sent while the engine thinks, and of a
synchronous end (`close`), so that a cancelled request needs no further step to be rid of it.

Responses are parsed by llhttp (httptools). What is not HTTP, or ends too early, is an error of the engine and
never a proper end.
"""

from __future__ import annotations

import contextlib
import math

import httptools
import trio

from engine_router.errors import EngineBroke, EngineUnreachable, RouterError
from engine_router.guards.limits import MAX_ENGINE_OVERHEAD_BYTES
from engine_router.upstream.body_watch import NO_WATCH, BodyWatch, TakePiece
from engine_router.upstream.connect import NotAccepted, Wire, dial_at_once, dial_within
from engine_router.upstream.http1 import (
    Arriving,
    ResponseHead,
    ResponseParser,
    UpstreamRequest,
    head_bytes,
)
from engine_router.upstream.idle import IdleConnections
from engine_router.upstream.socket_stream import RECEIVE_BYTES, ConnectionLost, RawStream


class Exchange:
    """One request and its response. Made by `Upstream.send`.

    Args:
        is_reused: the connection has served a request before. An engine may close such a one at any time (uvicorn
            does after each exception that nobody handles, without a word). Where it ends before a byte of the
            answer has come, the request is sent once again, over a fresh connection.

    Attributes:
        watch: sees the pieces of the body that are taken from now on.
        has_heard: whether any byte of an answer has come.
    """

    def __init__(
        self, pool: Upstream, request: UpstreamRequest, stream: Wire, *, is_reused: bool = False
    ) -> None:
        self._pool = pool
        self._request = request
        self._stream = stream
        self._response = ResponseParser(bodyless=request.method == "HEAD")
        self._overhead_bytes = 0
        self._is_sent = False
        self._may_repeat = is_reused
        self.has_heard = False
        self._must_repeat = False
        self._failure: EngineBroke | None = None
        self._closed = False
        self.watch: BodyWatch = NO_WATCH

    def __repr__(self) -> str:
        state = "closed" if self._closed else "complete" if self._response.complete else "open"
        return f"<Exchange {self._request.method} {self._request.base_url}{self._request.target} {state}>"

    async def transmit(self) -> None:
        """Send the request. To be called once, before anything else.

        An engine may answer before it has read all, or not at all: what comes, or its absence, tells. So an
        answer that comes early, or a connection's end, ends the sending, and a connection that breaks here is
        no error yet.
        """
        head, body = head_bytes(self._request), self._request.body
        with contextlib.suppress(ConnectionLost):
            if isinstance(body, (bytes, bytearray)) and len(body) <= RECEIVE_BYTES:
                await self._stream.send_all(head + body)
                self._is_sent = True
            else:
                await self._stream.send_all(head)
                await self._send_and_listen(body)

    def transmit_at_once(self) -> bool:
        """Send a request with a small body, whole. Returns whether all of it went out without a wait.

        As with `transmit`, a connection that breaks here is no error yet.
        """
        body = self._request.body
        if not isinstance(self._stream, RawStream) or not isinstance(body, (bytes, bytearray)):
            return False
        try:
            self._is_sent = not self._stream.send_now(head_bytes(self._request) + body)
        except ConnectionLost:
            return True
        return self._is_sent

    async def _send_and_listen(self, body: bytes | bytearray | Arriving) -> None:
        fault: RouterError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            try:
                await self._send_body(body)
                self._is_sent = True
            except ConnectionLost:
                pass
            except RouterError as error:  # of the client: its upload broke off
                fault = error
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault

    async def _send_body(self, body: bytes | bytearray | Arriving) -> None:
        send = self._stream.send_all
        if isinstance(body, (bytes, bytearray)):
            await send(body)
            return
        async with contextlib.aclosing(body.pieces()) as pieces:
            async for piece in pieces:
                await send(piece if body.length is not None else b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))
        if body.length is None:
            await send(b"0\r\n\r\n")

    async def _listen(self, sending: trio.CancelScope) -> None:
        with contextlib.suppress(EngineBroke):  # it is raised again to whom waits for the head
            while not (self._response.head_done or self._must_repeat):
                await self._receive()
        sending.cancel()

    async def head(self) -> ResponseHead:
        """Wait for the response's head; as `head_by` does, without an end."""
        while (head := await self.head_by(math.inf)) is None:
            pass
        return head

    async def head_by(self, until: float) -> ResponseHead | None:
        """Wait for the response's head; None if it has not come by `until` (the clock of trio).

        May be cancelled and called again; nothing is lost.

        Raises:
            EngineBroke: the connection ended first, or what came is not HTTP.
        """
        while not self._response.head_done:
            if not await self._receive(until):
                return None
        return ResponseHead(self._response.status, tuple(self._response.headers))

    @property
    def target(self) -> str:
        """Path and query of the request."""
        return self._request.target

    def take_whole(self) -> bytes | None:
        """Return all that is left of the body, where its end has come, and end the exchange; else None."""
        response = self._response
        if not response.complete or self._closed:
            return None
        data = response.take_body() if response.body else b""
        self.close()
        self.watch.piece(data)
        return data

    @property
    def has_chunk(self) -> bool:
        """True if `chunk` would return at once."""
        return bool(self._response.body) or self._response.complete

    async def chunk(self) -> bytes:
        """Return the next bytes of the body as they came in; empty at its proper end.

        May be cancelled and called again; nothing is lost. At the end the connection goes back to the pool.

        Raises:
            EngineBroke: the body broke off.
        """
        response = self._response
        while not response.body and not response.complete:
            await self._receive()
        if not response.body:
            self.close()
            return b""
        self.watch.piece(data := response.take_body())
        return data

    async def pass_on(self, take: TakePiece) -> None:
        """Hand the next bytes of the body to `take` whenever some come, until it returns False, or there are no more.

        May be cancelled, and what has not been handed over is left for `chunk`.

        Raises:
            EngineBroke: the body broke off.
            Exception: whatever `take` has raised; no ConnectionLost may be among it.
        """
        response, stream, watch = self._response, self._stream, self.watch
        if response.body or response.complete or not isinstance(stream, RawStream):
            return

        def received(data: bytes) -> bool:
            if piece := response.whole_chunk(data):  # nearly always
                watch.note(piece)
                return take(piece, data)
            self._heard(data)
            if response.body:
                watch.note(piece := response.take_body())
                if not take(piece, b""):
                    return False
            return not response.complete and self._failure is None

        try:
            await stream.receive_each(received)
        except ConnectionLost as error:
            raise self._lost() from error

    def close(self) -> None:
        """End the exchange, whatever its state. Never waits; may be called again.

        A connection whose response was read to its end is kept for the next request; any other is closed,
        which tells the engine to stop generating.
        """
        if self._closed:
            return
        self._closed = True
        response = self._response
        response.close()
        if self._is_sent and response.complete and response.reusable and not response.body:
            self._pool.keep(self._request.base_url, self._stream)
        else:
            self._stream.close()

    async def _receive(self, until: float = math.inf) -> bool:
        """Receive more, or see that the request has to be repeated. Returns False if nothing has come by `until`."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._must_repeat:
            with trio.move_on_at(until) as timely:
                await self._repeat()
            if timely.cancelled_caught:
                return False
        try:
            data = await self._stream.receive(until)
        except ConnectionLost as error:
            if self._may_repeat and not self._closed:
                self._must_repeat = True
                return True
            raise self._lost() from error
        if data is None:
            return False
        self._heard(data)
        return True

    def _lost(self) -> EngineBroke:
        return self._broke("the connection was closed" if self._closed else "the connection broke")

    def _heard(self, data: bytes) -> None:
        """Take in what was received.

        Raises:
            EngineBroke: it is no answer, or not all of one.
        """
        response = self._response
        if not data:
            if self._may_repeat:
                self._must_repeat = True
                return
            if response.head_done and not response.is_framed:
                response.complete = True
                return
            where = "in the middle of its answer" if response.head_done else "without an answer"
            raise self._broke(f"it closed the connection {where}")
        self._may_repeat, self.has_heard = False, True
        failure: EngineBroke | None = None
        try:
            response.feed(data)
        except httptools.HttpParserError as error:
            if not response.complete:
                failure = self._broke(f"its answer is not HTTP: {error}")
            response.reusable = False  # where it is bytes after the end: nobody asked for them
        self._overhead_bytes = 0 if response.body or response.complete else self._overhead_bytes + len(data)
        if response.fault:
            failure = self._broke(response.fault)
        elif self._overhead_bytes > MAX_ENGINE_OVERHEAD_BYTES:
            failure = self._broke("its answer has headers without an end")
        if failure is not None and not response.body:  # what came before it is handed out first
            raise failure

    async def _repeat(self) -> None:
        """Send the request once again, over a fresh connection. May be cancelled, and is begun anew then."""
        self._stream.close()
        try:
            self._stream = await self._pool.connect(self._request)
        except EngineUnreachable as error:
            raise self._broke("it closed the connection without an answer") from error
        if self._closed:
            self._stream.close()
        self._may_repeat = self._must_repeat = self._is_sent = False
        try:
            await self.transmit()
        except BaseException:
            self._must_repeat = True
            self._stream.close()
            raise

    def _broke(self, how: str) -> EngineBroke:
        self._response.reusable = False
        self._failure = EngineBroke(self._request.engine, f"broke off: {how}")
        return self._failure


class Upstream:
    """Connections to engines: kept while idle, last in first out, checked before they are used again."""

    def __init__(self) -> None:
        self._idle = IdleConnections()
        self._closed = False

    async def send(self, request: UpstreamRequest) -> Exchange:
        """Connect, or take an idle connection, and send a request.

        Raises:
            EngineUnreachable: no connection could be made; nothing was sent.
            BadRequest: a header has a line break in it; nothing was sent.

        Cancellation closes the connection: the engine sees its client leave.
        """
        # A body that is gone once it was sent cannot be sent again: it goes over a fresh connection at once.
        is_lasting = isinstance(request.body, (bytes, bytearray))
        kept = self._idle.take(request.base_url) if is_lasting else None
        exchange = Exchange(self, request, kept or await self.connect(request), is_reused=kept is not None)
        try:
            await exchange.transmit()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def send_at_once(self, request: UpstreamRequest) -> Exchange | None:
        """Send a request with a small body without a wait; None where that cannot be.

        An engine on this machine accepts a connection at once; elsewhere there has to be an idle one.

        Raises:
            BadRequest: a header has a line break in it; nothing was sent.
        """
        body = request.body
        if not isinstance(body, (bytes, bytearray)) or len(body) > RECEIVE_BYTES:
            return None
        if request.base_url.startswith("https:"):  # TLS may have to wait: `send` uses its idle connections
            return None
        kept = self._idle.take(request.base_url)
        if (stream := kept or dial_at_once(request.base_url)) is None:
            return None
        exchange = Exchange(self, request, stream, is_reused=kept is not None)
        is_sent = False
        try:
            is_sent = exchange.transmit_at_once()
        finally:
            if not is_sent:
                exchange.close()
        return exchange if is_sent else None

    def keep(self, base_url: str, stream: Wire) -> None:
        """Keep an idle connection for the next request."""
        if self._closed:
            stream.close()
        else:
            self._idle.keep(base_url, stream)

    def close(self) -> None:
        """Close all idle connections, and keep none from now on. Never waits."""
        self._closed = True
        self._idle.close()

    def forget(self, base_url: str) -> None:
        """Close the idle connections to an engine that is about to end: some servers wait for them. Never waits."""
        self._idle.forget(base_url)

    async def connect(self, request: UpstreamRequest) -> Wire:
        """Make a connection for a request.

        Raises:
            EngineUnreachable: it was not accepted.
        """
        try:
            return await dial_within(request.connect_timeout_s, request.base_url, request.ca_file)
        except NotAccepted as error:
            raise EngineUnreachable(request.engine, str(error)) from error
