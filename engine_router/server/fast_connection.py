"""The fast tier: one client's connection, plain requests to the proxied routes and nothing else.

One task for each connection serves the requests one after the other. The poll of all sockets has whatever comes in read
meanwhile, always, so that a client that leaves is noticed whatever else goes on: that ends the request that is being
served, for nobody is there for another one. What is unusual is handed to the ordinary tier, with every byte as it came, for the rest of the connection's life.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from engine_router.dialects import dialect_of
from engine_router.dialects.base import Clock, error_headers
from engine_router.dialects.json_body import to_json
from engine_router.errors import BadRequest, BodyTooLarge, RouterError
from engine_router.events import EventHub
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_AHEAD_BYTES
from engine_router.in_flight import RequestScope
from engine_router.proxy.handler import Reply
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.response_body import BrokenAnswer, Sink
from engine_router.proxy.streamed_body import Upload
from engine_router.server.arriving_body import ArrivingBody
from engine_router.server.fast_parser import RequestReader, Verdict
from engine_router.server.response_head import response_head
from engine_router.upstream.forwarding import as_streamed
from engine_router.upstream.http1 import Headers, first_value
from engine_router.upstream.socket_poll import current_poll
from engine_router.upstream.socket_stream import ConnectionLost, RawStream, Sendable, moved_on

logger = logging.getLogger(__name__)

Serve = Callable[[IncomingRequest, RequestScope, Sink], Awaitable[Reply]]
"""Answers a request: checks the key, waits for the engine, returns the beginning of the answer.

What the sink takes goes out after the pieces of the body that were yielded before.
"""

Admits = Callable[[str, bytes, Headers], None]
"""Checks a request by its path, query and headers alone; raises the error that refuses it."""

Adds = Callable[[Headers], Headers]
"""Returns the headers that every answer to a request carries, an error too, from the headers of the request."""

# Seconds that reading pauses for each piece of 64 KiB beyond `MAX_BACKLOG_BYTES`. It never stops, for a client that
# leaves is noticed by reading only.
BACKPRESSURE_S: Final = 0.02
# Seconds that a refused upload may go on: a connection that is closed with bytes unread is reset, and the
# reset may overtake the answer that says why.
LINGER_S: Final = 2.0

_BODYLESS: Final = frozenset((204, 304))


class FastConnection:
    """One client's connection in the fast tier.

    Attributes:
        quiet_since: trio's clock when the connection became idle, or when the head that is being read began,
            moved on by what has come of a body; infinity while a request is served. The server closes what is quiet for too long.
    """

    def __init__(
        self,
        stream: RawStream,
        reader: RequestReader,
        serve: Serve,
        hub: EventHub,
        adds: Adds = lambda _headers: (),
        admits: Admits = lambda _path, _query, _headers: None,
    ) -> None:
        self.stream = stream
        self._reader = reader
        self._serve = serve
        self._adds = adds
        self._admits = admits
        self._awaits_body = False
        self._refused: RouterError | None = None
        self._added: Headers = ()
        self._hub = hub
        self._changed = trio.Event()
        self._is_paused = False
        self._defect: Exception | None = None
        self._verdict: Verdict | None = None
        self._arriving: ArrivingBody | None = None
        self._gone = False
        self._unheard = False
        self._closing = False
        self._scope = trio.CancelScope()
        self._request: RequestScope | None = None
        self._chunks = False
        self._unsent: Sendable = b""
        self._now: Clock = trio.lowlevel.current_clock().current_time
        self.quiet_since = self._now()

    async def run(self) -> bytes | None:
        """Serve until the connection ends, or something unusual comes.

        Returns:
            None when the connection is done with and may be closed; else the bytes with which the ordinary
            tier has to go on.

        Cancellation ends the request that is being served.
        """
        is_unusual = False
        try:
            with self._scope:
                self._listen()
                self.stream.on_readable()  # as a rule the first request has come with the connection
                is_unusual = await self._serve_all()
        finally:
            self.stream.release()
            self._is_paused, self._arriving = False, None
        if self._defect is not None:
            raise self._defect
        return bytes(self._reader.raw) if is_unusual else None

    def finish_soon(self) -> None:
        """Serve the request in hand to its end, and no other one."""
        self._closing = True
        self._changed.set()

    # What reads: called by the poll of all sockets.

    def _listen(self) -> None:
        self._is_paused = False
        try:
            self.stream.listen(self._came, self._paused)
        except ConnectionLost:
            self._left()

    def _paused(self, error: Exception | None) -> None:
        """Note that nothing is read for now, or never again."""
        if error is not None:
            self._defect = None if isinstance(error, ConnectionLost) else error
            self._left()
        elif not self._gone:
            self._is_paused = True
            if self._arriving is not None and not self._arriving.is_over:
                current_poll().timeouts.add(self, self._now() + BACKPRESSURE_S)

    def _read_on(self) -> None:
        """End the pause, if there is one."""
        if self._is_paused:
            current_poll().timeouts.discard(self)
            self._listen()

    expire = _read_on  # a pause is a `Wait`

    def _came(self, data: bytes) -> bool:
        """Take in what has come, or the end. Returns whether more may come at once."""
        reader, arriving = self._reader, self._arriving
        if not data:
            self._left()
            return False
        if self._unheard:
            return True
        if self._verdict is None:
            self._heard(len(data))
            self._take(reader.feed(data))
            return True
        if arriving is not None and not arriving.is_over:
            self._heard(len(data))
            self._take_in(arriving, reader.feed(data))
            return arriving.has_room
        reader.raw += data  # a request is being served: this is the next one, if anything
        return len(reader.raw) <= MAX_AHEAD_BYTES

    def _left(self) -> None:
        """Note that the client has gone: everything is given back in this very step, whatever the serving task is doing."""
        self._gone = True
        self._changed.set()
        if self._request is not None:
            try:
                self._request.client_left()
            finally:
                self._scope.cancel()

    def _heard(self, count: int) -> None:
        if self._reader.is_between:
            self.quiet_since = self._now()
        elif self._reader.path:  # a body may take its time, as long as it comes
            self.quiet_since = moved_on(self.quiet_since, count)

    def _take(self, verdict: Verdict) -> None:
        if verdict is Verdict.LARGE:
            self._arriving = ArrivingBody(self._read_on)
            self._arriving.put(self._reader.drain())
        if verdict is Verdict.MORE:
            self._judge()
        else:
            self._verdict = verdict
            self._changed.set()

    def _judge(self) -> None:
        """Refuse a request whose body is still coming, once, for what its head says: nothing of it is gathered."""
        if self._awaits_body or not self._reader.path:
            return
        self._awaits_body = True
        request = self._reader.begin()
        path, _, query = request.target.partition(b"?")
        try:
            self._admits(path.decode("ascii"), query, request.headers)
        except RouterError as error:
            self._refused, self._unheard = error, True
            self._changed.set()

    def _take_in(self, arriving: ArrivingBody, verdict: Verdict) -> None:
        """Hand on a further piece of a large body."""
        if verdict in (Verdict.MORE, Verdict.COMPLETE):
            arriving.put(self._reader.drain())
        if verdict is Verdict.COMPLETE:
            arriving.end(None)
            self.quiet_since = math.inf
        elif verdict is not Verdict.MORE:
            arriving.end(self._refusal(verdict))

    def _refusal(self, verdict: Verdict) -> RouterError:
        if verdict is Verdict.TOO_LARGE:
            return BodyTooLarge(self._reader.max_body_bytes)
        return BadRequest("the request's chunks are malformed")

    # The task that serves.

    async def _serve_all(self) -> bool:
        """Serve one request after the other. Returns whether the ordinary tier has to go on."""
        reader = self._reader
        try:
            while True:
                verdict = await self._next()
                if self._refused is not None:
                    await self._refuse(self._refused)
                    return False
                if verdict is None:
                    return False
                if verdict is Verdict.UNUSUAL:
                    return True
                if verdict in (Verdict.MALFORMED, Verdict.TOO_LARGE):
                    await self._refuse(self._refusal(verdict))
                    return False
                if not await self._serve_one():
                    return False
                self._verdict = self._arriving = None
                self._awaits_body = False
                self.quiet_since = self._now()
                if reader.raw:  # it came while the last one was served
                    self._take(reader.feed(b""))
                if len(reader.raw) <= MAX_AHEAD_BYTES:
                    self._read_on()
        except ConnectionLost:
            return False

    async def _next(self) -> Verdict | None:
        """Wait for a verdict; None when there will be none."""
        while not (self._verdict or self._refused or self._gone):
            if self._closing and self._reader.is_between:
                break
            self._changed = trio.Event()
            await self._changed.wait()
        return None if self._gone else self._verdict

    async def _serve_one(self) -> bool:
        """Serve a request. Returns whether the connection can be used again."""
        arriving, reader = self._arriving, self._reader
        request = reader.take() if arriving is None else reader.begin()
        path, _, query = request.target.partition(b"?")
        body = (
            request.body
            if arriving is None
            else Upload(request.length, arriving.piece, reader.max_body_bytes)
        )
        incoming = IncomingRequest(path.decode("ascii"), query, request.headers, body)
        self._added = self._adds(request.headers)
        scope = self._request = RequestScope(incoming.path, self._hub)
        if arriving is None or arriving.is_over:
            self.quiet_since = math.inf
        try:
            reusable = await self._answer(incoming, scope, keep_alive=request.keep_alive)
        finally:
            self._request = None
            scope.leave()
        if arriving is not None and not self._gone:
            reusable = await self._end_upload(arriving) and reusable
        return reusable and not self._gone

    async def _end_upload(self, arriving: ArrivingBody) -> bool:
        """Tell whether another request may follow a large one: not where it was answered before its end."""
        if arriving.is_complete:
            return self._reader.finish()
        arriving.is_over = True
        await self._linger()
        return False

    async def _answer(self, incoming: IncomingRequest, scope: RequestScope, *, keep_alive: bool) -> bool:
        try:
            reply = await self._serve(incoming, scope, self)
        except RouterError as error:
            return await self._send_error(scope.as_answered(error), scope, keep_alive=keep_alive)
        except Exception:
            logger.exception("POST %s failed", shown(incoming.path))
            defect = RouterError("the router failed at this request; its log has the details")
            return await self._send_error(defect, scope, keep_alive=keep_alive)
        return await self._send_reply(reply, scope, keep_alive=keep_alive)

    async def _send_reply(self, reply: Reply, scope: RequestScope, *, keep_alive: bool) -> bool:
        """Send an answer. The body goes out as it comes in, framed anew."""
        scope.status = status = reply.head.status
        headers = [*as_streamed(status, reply.head.headers), *self._added]
        bodyless = status in _BODYLESS
        chunked = self._chunks = not bodyless and first_value(headers, b"content-length") is None
        keep_alive = keep_alive and self._stays_open
        head = response_head(status, headers, chunked=chunked, keep_alive=keep_alive)
        send = self.stream.send_all
        if isinstance(reply.body, bytes):
            if chunked and reply.body:
                head = b"%b%x\r\n%b\r\n" % (head, len(reply.body), reply.body)
            elif not bodyless:
                head += reply.body
            # The client goes on while everything is given back, in the same step: nothing waits for it to read.
            self._unsent = self.stream.send_now(head + b"0\r\n\r\n" if chunked else head)
            scope.leave()
            await self.flush()
            return keep_alive
        if not reply.has_body:
            await send(head)
            head = b""
        try:
            async with contextlib.aclosing(reply.body) as body:
                async for data in body:
                    if not bodyless:
                        await send(b"%b%x\r\n%b\r\n" % (head, len(data), data) if chunked else head + data)
                        head = b""
        except BrokenAnswer as broken:
            if head:  # nothing has gone out
                return await self._send_error(scope.as_answered(broken.error), scope, keep_alive=keep_alive)
            # Without the end of the answer, so that no client takes what it got for the whole.
            scope.note_error(broken.error)
            return False
        scope.leave()  # all of the answer has come: nothing of the engine's is needed any more
        if last := head + b"0\r\n\r\n" if chunked else head:
            await send(last)
        return keep_alive

    def put(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a piece of the answer after the first one; see `Sink`."""
        framed = (chunk or b"%x\r\n%b\r\n" % (len(data), data)) if self._chunks else data
        try:
            self._unsent = self.stream.send_now(framed)
        except ConnectionLost:  # `flush` will see it, too
            self._unsent = framed
        return not self._unsent

    async def flush(self) -> None:
        """Send what is left of the last piece; see `Sink`."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self.stream.send_all(unsent)

    @property
    def _stays_open(self) -> bool:
        """True if the connection may be used again: not at a shutdown, nor with an upload still coming."""
        return not self._closing and (self._arriving is None or self._arriving.is_complete)

    async def _send_error(self, error: RouterError, scope: RequestScope, *, keep_alive: bool) -> bool:
        scope.note_error(error)
        scope.leave()
        body = to_json(dialect_of(scope.path).error(error))
        extra = error_headers(error).items()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in extra]
        headers += self._added
        keep_alive = keep_alive and self._stays_open
        head = response_head(error.status, headers, chunked=False, keep_alive=keep_alive)
        await self.stream.send_all(head + body)
        return keep_alive

    async def _refuse(self, error: RouterError) -> None:
        """Refuse a request that is still coming, and let the client finish saying it for a moment."""
        scope = RequestScope(self._reader.path, self._hub)
        self._added = self._adds(self._reader.begin().headers)
        await self._send_error(error, scope, keep_alive=False)
        await self._linger()

    async def _linger(self) -> None:
        """Let the client finish what it is saying for a moment, unheard."""
        self._unheard = True
        self._read_on()
        self.stream.finish()
        with trio.move_on_after(LINGER_S):
            while not self._gone:
                self._changed = trio.Event()
                await self._changed.wait()
