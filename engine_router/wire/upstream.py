"""The client leg: one HTTP/1.1 exchange with an engine, over pooled connections.

Users' traffic goes through here; control calls use httpx. An exchange is made of steps that may be cancelled
and taken up again (`head`, `chunk`), so that a keep-alive can be sent while the engine thinks, and of a
synchronous end (`close`), so that a cancelled request needs no further step to be rid of it.

Responses are parsed by llhttp (httptools). What is not HTTP, or ends too early, is an error of the engine and
never a proper end.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Protocol
from urllib.parse import quote_from_bytes, urlsplit

import httptools
import trio
from attrs import define, field, frozen

from engine_router.errors import BadRequest, EngineBroke, EngineUnreachable, RouterError
from engine_router.limits import MAX_ENGINE_OVERHEAD_BYTES
from engine_router.wire.dialing import Wire, dial
from engine_router.wire.stream import RECEIVE_BYTES, ConnectionLost

# Servers close idle connections after 5 s (uvicorn, cpp-httplib); ours must go first, or a request may be
# sent into a connection that is being closed.
MAX_IDLE_S = 4.0
MAX_IDLE_CONNECTIONS = 64

_UNSAFE_IN_TARGET = re.compile(rb"[^\x21-\x7e]+")

Headers = Sequence[tuple[bytes, bytes]]


class Arriving(Protocol):
    """A body that is still coming.

    Attributes:
        length: in bytes; None where nobody knows it yet.
    """

    length: int | None

    def pieces(self) -> AsyncGenerator[bytes | bytearray, None]:
        """Yield the body from its beginning; asked for once."""
        ...


@frozen(kw_only=True)
class UpstreamRequest:
    """What is sent to an engine.

    Attributes:
        engine: its name, for error messages.
        base_url: `http://host:port`.
        target: path and query, as they go on the wire.
        headers: without Host and framing headers, which are added.
        body: the whole body, or one that is relayed as it comes.
        connect_timeout_s: seconds within which it must accept the connection.
    """

    engine: str
    base_url: str
    method: str
    target: str
    headers: Headers
    body: bytes | bytearray | Arriving
    connect_timeout_s: float = 15.0


def first_value(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a header; `name` in lower case."""
    return next((value for key, value in headers if key.lower() == name), None)


@frozen
class ResponseHead:
    """Status line and headers of an engine's response."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` in lower case."""
        return first_value(self.headers, name)


@define(eq=False)
class _Parsed:
    """Collects what the parser finds in one response."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(factory=list)
    body: deque[bytes] = field(factory=deque)
    head_done: bool = False
    complete: bool = False
    pieces_at_end: int = 0
    reusable: bool = False
    fault: str = ""


class _ResponseReader:
    """The callbacks of httptools, feeding `_Parsed`. Interim responses (1xx) are passed over."""

    def __init__(self, *, bodyless: bool) -> None:
        self.parsed = _Parsed()
        self._bodyless = bodyless
        # Called for every chunk of every stream: a method of ours would cost more than all else here. What does
        # not belong to the body (an interim answer's, or what follows the end) is taken out afterwards.
        self.on_body = self.parsed.body.append
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse what came in.

        Raises:
            httptools.HttpParserError: it is not HTTP.

        What llhttp lets pass, but has no sure end, is noted in `_Parsed.fault`.
        """
        parsed = self.parsed
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # noted as a fault
        finally:
            if not parsed.head_done:
                parsed.body.clear()
            while parsed.complete and len(parsed.body) > parsed.pieces_at_end:
                parsed.body.pop()

    def on_message_begin(self) -> None:
        if not self.parsed.complete:
            self.parsed.headers = []
        else:
            self.parsed.reusable = False  # bytes after the end: nobody asked for them

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.parsed.head_done:  # what comes later is a trailer
            self.parsed.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.parsed.complete or (100 <= status < 200 and status != 101):
            return
        self.parsed.fault = self._fault(status)
        if self.parsed.fault:
            return
        self.parsed.status = status
        self.parsed.head_done = True
        self.parsed.body.clear()
        if self._bodyless or status in (204, 304):
            self.parsed.complete = True
            self.parsed.reusable = self._bodyless is False and self._parser.should_keep_alive()

    def _fault(self, status: int) -> str:
        """Tell what is wrong with a head that llhttp lets pass; empty for nothing."""
        if status < 200:
            return f"its answer has the status {status}, which nobody asked for"
        codings = [value for name, value in self.parsed.headers if name.lower() == b"transfer-encoding"]
        if codings and [value.lower() for value in codings] != [b"chunked"]:
            # Anything else is encoded in a way that the client is not told of, or ends nobody knows where.
            return f"its answer has the transfer encoding '{b', '.join(codings).decode('latin-1')}'"
        return ""

    def on_message_complete(self) -> None:
        if self.parsed.head_done and not self.parsed.complete:
            self.parsed.complete = True
            self.parsed.pieces_at_end = len(self.parsed.body)
            self.parsed.reusable = self._parser.should_keep_alive()

    def ends_with_connection(self) -> bool:
        """Tell whether the body has no framing, so that the connection's end is its end."""
        names = {name.lower() for name, _ in self.parsed.headers}
        return self.parsed.head_done and not names & {b"content-length", b"transfer-encoding"}


class Exchange:
    """One request and its response. Made by `Upstream.send`."""

    def __init__(self, pool: Upstream, request: UpstreamRequest, stream: Wire) -> None:
        self._pool = pool
        self._request = request
        self._stream = stream
        self._reader = _ResponseReader(bodyless=request.method == "HEAD")
        self._overhead_bytes = 0
        self._is_sent = False
        self._failure: EngineBroke | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "complete" if self._reader.parsed.complete else "open"
        return f"<Exchange {self._request.method} {self._request.base_url}{self._request.target} {state}>"

    async def transmit(self) -> None:
        """Send the request. To be called once, before anything else.

        An engine may answer before it has read all, or not at all: what comes, or its absence, tells. So an
        answer that comes early ends the sending, and a connection that breaks here is no error yet.
        """
        head, body = _head_bytes(self._request), self._request.body
        with contextlib.suppress(ConnectionLost):
            if isinstance(body, (bytes, bytearray)) and len(body) <= RECEIVE_BYTES:
                await self._stream.send_all(head + body)
                self._is_sent = True
            else:
                await self._stream.send_all(head)
                await self._send_and_listen(body)

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
            await self.head()
        sending.cancel()

    async def head(self) -> ResponseHead:
        """Wait for the response's head. May be cancelled and called again; nothing is lost.

        Raises:
            EngineBroke: the connection ended first, or what came is not HTTP.
        """
        while not self._reader.parsed.head_done:
            await self._receive()
        return ResponseHead(self._reader.parsed.status, tuple(self._reader.parsed.headers))

    @property
    def has_chunk(self) -> bool:
        """Whether `chunk` would return at once."""
        return bool(self._reader.parsed.body) or self._reader.parsed.complete

    async def chunk(self) -> bytes:
        """Return the next bytes of the body as they came in; empty at its proper end.

        May be cancelled and called again; nothing is lost. At the end the connection goes back to the pool.

        Raises:
            EngineBroke: the body broke off.
        """
        parsed = self._reader.parsed
        while not parsed.body and not parsed.complete:
            await self._receive()
        if not parsed.body:
            self.close()
            return b""
        data = parsed.body.popleft() if len(parsed.body) == 1 else b"".join(parsed.body)
        parsed.body.clear()
        return data

    def close(self) -> None:
        """End the exchange, whatever its state. Never waits; may be called again.

        A connection whose response was read to its end is kept for the next request; any other is closed,
        which tells the engine to stop generating.
        """
        if self._closed:
            return
        self._closed = True
        parsed = self._reader.parsed
        if self._is_sent and parsed.complete and parsed.reusable and not parsed.body:
            self._pool.keep(self._request.base_url, self._stream)
        else:
            self._stream.close()

    async def _receive(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            data = await self._stream.receive()
        except ConnectionLost as error:
            raise self._broke(
                "the connection was closed" if self._closed else "the connection broke"
            ) from error
        parsed = self._reader.parsed
        if not data:
            if self._reader.ends_with_connection():
                parsed.complete = True
                return
            where = "in the middle of its answer" if parsed.head_done else "without an answer"
            raise self._broke(f"it closed the connection {where}")
        failure = self._take_in(data)
        if failure is not None and not parsed.body:  # what came before it is handed out first
            raise failure

    def _take_in(self, data: bytes) -> EngineBroke | None:
        parsed = self._reader.parsed
        try:
            self._reader.feed(data)
        except httptools.HttpParserError as error:
            if not parsed.complete:
                return self._broke(f"its answer is not HTTP: {error}")
            parsed.reusable = False  # bytes after the end: nobody asked for them
        self._overhead_bytes = 0 if parsed.body or parsed.complete else self._overhead_bytes + len(data)
        if parsed.fault:
            return self._broke(parsed.fault)
        if self._overhead_bytes > MAX_ENGINE_OVERHEAD_BYTES:
            return self._broke("its answer has headers without an end")
        return None

    def _broke(self, how: str) -> EngineBroke:
        self._reader.parsed.reusable = False
        self._failure = EngineBroke(self._request.engine, f"broke off: {how}")
        return self._failure


class Upstream:
    """Connections to engines: kept while idle, last in first out, checked before they are used again."""

    def __init__(self) -> None:
        self._idle: dict[str, deque[tuple[Wire, float]]] = {}
        self._closed = False
        self._tls: ssl.SSLContext | None = None

    async def send(self, request: UpstreamRequest) -> Exchange:
        """Connect, or take an idle connection, and send a request.

        Raises:
            EngineUnreachable: no connection could be made; nothing was sent.
            BadRequest: a header has a line break in it; nothing was sent.

        Cancellation closes the connection: the engine sees its client leave.
        """
        stream = self._take(request.base_url) or await self._connect(request)
        exchange = Exchange(self, request, stream)
        try:
            await exchange.transmit()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def keep(self, base_url: str, stream: Wire) -> None:
        """Keep an idle connection for the next request, and let go of those that were idle for too long."""
        self._forget_old()
        idle = self._idle.setdefault(base_url, deque())
        idle.append((stream, trio.current_time()))
        if self._closed or len(idle) > MAX_IDLE_CONNECTIONS:
            idle.popleft()[0].close()

    def close(self) -> None:
        """Close all idle connections, and keep none from now on. Never waits."""
        self._closed = True
        for idle in self._idle.values():
            for stream, _ in idle:
                stream.close()
        self._idle.clear()

    def _forget_old(self) -> None:
        """Close what is too old, for every address: an engine may never come back to the port that it had."""
        oldest = trio.current_time() - MAX_IDLE_S
        for base_url, idle in tuple(self._idle.items()):
            while idle and idle[0][1] < oldest:
                idle.popleft()[0].close()
            if not idle:
                del self._idle[base_url]

    def _take(self, base_url: str) -> Wire | None:
        idle = self._idle.get(base_url)
        oldest = trio.current_time() - MAX_IDLE_S
        while idle:
            stream, since = idle.pop()
            if since >= oldest and stream.is_quiet():
                return stream
            stream.close()
        return None

    async def _connect(self, request: UpstreamRequest) -> Wire:
        if self._tls is None and request.base_url.startswith("https:"):
            self._tls = ssl.create_default_context()
        try:
            with trio.fail_after(request.connect_timeout_s):
                return await dial(request.base_url, self._tls)
        except trio.TooSlowError:
            why = f"does not accept connections within {request.connect_timeout_s:g} s at {request.base_url}"
        except OSError as error:
            why = f"does not accept connections at {request.base_url}: {_reason(error)}"
        raise EngineUnreachable(request.engine, why)


def _head_bytes(request: UpstreamRequest) -> bytes:
    # A path that was decoded on its way in must not bring line breaks into what goes out.
    target = _UNSAFE_IN_TARGET.sub(_escaped, request.target.encode("utf-8", "surrogatepass"))
    lines: list[Iterable[bytes]] = [
        (request.method.encode("ascii"), b" ", target, b" HTTP/1.1\r\nhost: "),
        (_host_of(request.base_url), b"\r\n"),
    ]
    lines += [(name, b": ", value, b"\r\n") for name, value in request.headers]
    lines += _framing(request)
    head = b"".join(b"".join(parts) for parts in lines)
    if not head.count(b"\r") == head.count(b"\n") == len(lines):
        raise BadRequest("a header has a line break in it")
    return head + b"\r\n"


def _framing(request: UpstreamRequest) -> list[Iterable[bytes]]:
    body = request.body
    length = len(body) if isinstance(body, (bytes, bytearray)) else body.length
    if length is None:
        return [(b"transfer-encoding: chunked\r\n",)]
    if not length and request.method not in ("POST", "PUT", "PATCH"):
        return []
    return [(b"content-length: ", str(length).encode(), b"\r\n")]


@functools.lru_cache(maxsize=256)
def _host_of(base_url: str) -> bytes:
    return urlsplit(base_url).netloc.encode("idna")


def _escaped(unsafe: re.Match[bytes]) -> bytes:
    return quote_from_bytes(unsafe[0]).encode("ascii")


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError) or error.errno == errno.ECONNREFUSED:
        return "connection refused"
    return error.strerror or str(error)
