"""The client leg on the wire: real sockets, and a server that sends exactly the bytes it is told to."""

from __future__ import annotations

import errno
import math
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import psutil
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cancel_at import CancelAt

import engine_router.upstream.client
from engine_router.errors import BadRequest, EngineBroke, EngineUnreachable
from engine_router.guards.limits import MAX_ENGINE_OVERHEAD_BYTES
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

    def request(self, method: str = "GET", body: bytes = b"", **more: object) -> UpstreamRequest:
        fields = {"engine": "a", "base_url": self.base_url, "target": "/x", "headers": ()}
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
        return sum(map(len, self.upstream._idle.values()))


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


def once_each(*answers: bytes) -> Script:
    """Answer the requests of one connection one after the other, then wait for its end."""

    async def script(line: Line) -> None:
        for answer in answers:
            if await line.request():
                await line.send(answer)
        await line.until_left()

    return script


# What a well-behaved engine may send.

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


@pytest.mark.parametrize("kind", WHOLE)
async def test_an_answer_is_read_to_its_end_and_its_connection_used_again(kind: str) -> None:
    answer, body = WHOLE[kind]
    async with wire(answering(answer)) as engine:
        for _ in range(3):
            head, got = await engine.fetch()
            assert head.status in (200, 204, 304)
            assert b"x-sum" not in {name.lower() for name, _ in head.headers}
            assert head.header(b"link") is None
            assert got == body
        assert len(engine.lines) == 1
        assert engine.idle() == 1


@pytest.mark.parametrize("kind", WHOLE)
async def test_an_answer_may_come_byte_by_byte(kind: str) -> None:
    answer, body = WHOLE[kind]
    async with wire(answering(*(answer[i : i + 1] for i in range(len(answer))))) as engine:
        _, got = await engine.fetch()
        assert got == body


async def test_headers_come_in_their_order_as_they_were_sent() -> None:
    answer = OK + b"X-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 0\r\n\r\n"
    async with wire(answering(answer)) as engine:
        head, _ = await engine.fetch()
        assert head.headers == ((b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b"3"), (b"Content-Length", b"0"))
        assert head.header(b"x-b") == b"1"
        assert head.header(b"x-c") is None


async def test_a_body_without_framing_ends_with_its_connection() -> None:
    async with wire(answering(OK + b"\r\nhel", b"lo", close=True)) as engine:
        _, got = await engine.fetch()
        assert got == b"hello"
        assert engine.idle() == 0


@pytest.mark.parametrize("length", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_the_answer_to_head_has_no_body(length: bytes) -> None:
    async with wire(answering(OK + length + b"\r\n")) as engine:
        head, got = await engine.fetch("HEAD")
        assert (head.status, got) == (200, b"")
        assert engine.idle() == 0  # nobody can be sure that no body follows


@pytest.mark.parametrize("answer", [OK + b"Connection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_a_connection_that_is_to_be_closed_is_not_kept(answer: bytes) -> None:
    async with wire(answering(answer + b"Content-Length: 5\r\n\r\nhello")) as engine:
        for _ in range(2):
            _, got = await engine.fetch()
            assert got == b"hello"
        assert len(engine.lines) == 2


async def test_what_came_while_nobody_looked_is_handed_out_together() -> None:
    async with wire(answering(CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n")) as engine:
        exchange = await engine.send()
        await exchange.head()
        await trio.sleep(0.1)
        assert await exchange.chunk() == b"abc"
        assert await exchange.chunk() == b""


# What is sent.


async def test_a_request_on_the_wire() -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        while request := await line.request():
            requests.append(request)
            await line.send(HELLO)

    async with wire(script) as engine:
        host = engine.base_url.removeprefix("http://").encode()
        await engine.fetch("GET")
        await engine.fetch("POST")
        await engine.fetch("POST", b"abc")
        exchange = await engine.send("DELETE", headers=[(b"X-A", b"\xff"), (b"x-b", b"")], target="/a?b=c")
        assert await rest_of(exchange) == b"hello"
    assert requests == [
        b"GET /x HTTP/1.1\r\nhost: %s\r\n\r\n" % host,
        b"POST /x HTTP/1.1\r\nhost: %s\r\ncontent-length: 0\r\n\r\n" % host,
        b"POST /x HTTP/1.1\r\nhost: %s\r\ncontent-length: 3\r\n\r\nabc" % host,
        b"DELETE /a?b=c HTTP/1.1\r\nhost: %s\r\nX-A: \xff\r\nx-b: \r\n\r\n" % host,
    ]


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/v1/audio/a b", b"/v1/audio/a%20b"),
        ("/v1/audio/ü", b"/v1/audio/%C3%BC"),
        ("/v1/audio/x HTTP/1.1\r\nEvil: 1\r\n\r\n", b"/v1/audio/x%20HTTP/1.1%0D%0AEvil:%201%0D%0A%0D%0A"),
        ("/a%20b?c=%C3%BC&d=\x00", b"/a%20b?c=%C3%BC&d=%00"),
        ("/half\ud800", b"/half%ED%A0%80"),
    ],
)
async def test_nothing_in_a_path_can_end_the_request_line(target: str, sent: bytes) -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        requests.append(await line.request())
        await line.send(HELLO)

    async with wire(script) as engine:
        exchange = await engine.send(target=target)
        await exchange.head()
        exchange.close()
    assert requests[0].startswith(b"GET " + sent + b" HTTP/1.1\r\nhost: ")
    assert requests[0].count(b"\r\n") == 3


@pytest.mark.parametrize(
    "header",
    [(b"x", b"1\r\nEvil: 1"), (b"x", b"1\nEvil: 1"), (b"x\r\ny", b"1"), (b"x", b"\r"), (b"x", b"\n")],
)
async def test_a_header_with_a_line_break_is_refused(header: tuple[bytes, bytes]) -> None:
    async with wire(answering(HELLO)) as engine:
        with pytest.raises(BadRequest, match="line break"):
            await engine.send(headers=[header])
        assert all(line.received == b"" for line in engine.lines)


# What an engine must not send.


async def broken(engine: Wire, method: str = "GET") -> tuple[EngineBroke, bytes]:
    """Return the error in which an exchange ends, twice the same, and the body before it."""
    body = b""
    exchange = await engine.send(method)
    try:
        with pytest.raises(EngineBroke) as caught:  # noqa: PT012 - which step raises is another question
            await exchange.head()
            while data := await exchange.chunk():
                body += data
        for again in (exchange.chunk, exchange.chunk):
            with pytest.raises(EngineBroke):
                await again()
    finally:
        exchange.close()
    assert engine.idle() == 0
    return caught.value, body


NOT_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "html": b"<html>",
    "http/2": b"HTTP/2 200 OK\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "bare LF in headers": OK + b"A: b\nContent-Length: 5\r\n\r\nhello",
    "bare CR in headers": OK + b"A: b\rContent-Length: 5\r\n\r\nhello",
    "obs-fold": OK + b"A: b\r\n c\r\nContent-Length: 5\r\n\r\nhello",
    "space before colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
    "the same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "an empty length": OK + b"Content-Length: \r\n\r\nhello",
    "a length beyond numbers": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "length and chunked": OK
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked and length": OK
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked twice": OK
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nhello",
    "switching protocols": b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + HELLO,
    "a status below 100": b"HTTP/1.1 099 x\r\n\r\n" + HELLO,
    "a header without an end": OK + b"X-A: " + b"x" * (MAX_ENGINE_OVERHEAD_BYTES + 1),
    "headers without an end": OK + b"X-A: x\r\n" * (MAX_ENGINE_OVERHEAD_BYTES // 8 + 1),
    "interim answers without an end": b"HTTP/1.1 102 Processing\r\n\r\n"
    * (MAX_ENGINE_OVERHEAD_BYTES // 27 + 1),
}


@pytest.mark.parametrize("kind", NOT_HTTP)
async def test_what_is_not_http_or_ambiguous_is_an_error(kind: str) -> None:
    async with wire(answering(NOT_HTTP[kind])) as engine:
        error, body = await broken(engine)
        assert body in (b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n")
        assert str(error).startswith("engine 'a' broke off: its answer ")
        assert error.__traceback__ is not None


BROKEN_CHUNKS = {
    "size": b"5\r\nhello\r\nzz\r\n",
    "line break": b"5\r\nhelloX",
    "bare LF": b"5\r\nhello\r\n3\nabc\n",
    "trailers without an end": b"5\r\nhello\r\n0\r\nX-A: " + b"x" * (MAX_ENGINE_OVERHEAD_BYTES + 65536),
}


@pytest.mark.parametrize("kind", BROKEN_CHUNKS)
async def test_what_came_before_a_fault_in_the_body_is_handed_out_first(kind: str) -> None:
    async with wire(answering(CHUNKED + BROKEN_CHUNKS[kind])) as engine:
        error, body = await broken(engine)
        assert body == b"hello"
        assert "its answer" in str(error)


EARLY = {
    "nothing": (b"", "without an answer"),
    "status line": (b"HTTP/1.1 2", "without an answer"),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n", "without an answer"),
    "head": (OK + b"Content-Length: 5\r\n", "without an answer"),
    "body": (OK + b"Content-Length: 5\r\n\r\n", "in the middle of its answer"),
    "inside the body": (HELLO[:-1], "in the middle of its answer"),
    "chunks": (CHUNKED, "in the middle of its answer"),
    "chunk": (CHUNKED + b"5\r\nhel", "in the middle of its answer"),
    "last chunk": (CHUNKED + b"5\r\nhello\r\n", "in the middle of its answer"),
    "last line": (CHUNKED + b"5\r\nhello\r\n0\r\n", "in the middle of its answer"),
}


@pytest.mark.parametrize("where", EARLY)
async def test_an_early_end_is_never_a_proper_one(where: str) -> None:
    answer, message = EARLY[where]
    async with wire(answering(*([answer] if answer else []), close=True)) as engine:
        error, _ = await broken(engine)
        assert message in str(error)


@pytest.mark.parametrize("sent", [b"", OK, CHUNKED + b"5\r\nhello\r\n", OK + b"\r\nhello"])
async def test_a_reset_connection_is_an_error(sent: bytes) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(sent)
        await trio.sleep(0.02)
        line.reset()

    async with wire(script) as engine:
        error, _ = await broken(engine)
        assert "the connection broke" in str(error)


# The pool.


async def test_the_connection_used_last_is_used_first() -> None:
    async with wire(answering(HELLO)) as engine:
        exchanges = [await engine.send() for _ in range(3)]
        for exchange in exchanges:
            assert await exchange.head()
            assert await rest_of(exchange) == b"hello"
        assert engine.idle() == 3
        first, *_, last = (exchange._stream for exchange in exchanges)
        exchange = await engine.send()
        assert exchange._stream is last
        assert exchange._stream is not first
        exchange.close()
        assert engine.idle() == 2


async def test_connections_are_not_shared_between_addresses() -> None:
    async with wire(answering(HELLO)) as engine, wire(answering(HELLO)) as other:
        await engine.fetch()
        exchange = await engine.upstream.send(other.request())
        assert await rest_of(exchange) == b"hello"
        assert (len(engine.lines), len(other.lines)) == (1, 1)
        assert engine.idle() == 2


async def test_a_connection_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.client, "MAX_IDLE_S", 0.05)
    async with wire(answering(HELLO)) as engine:
        await engine.fetch()
        await trio.sleep(0.1)
        await engine.fetch()
        await engine.fetch()
        assert len(engine.lines) == 2


async def test_connections_to_an_address_that_is_gone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.client, "MAX_IDLE_S", 0.02)
    upstream = Upstream()
    for _ in range(5):  # an engine that gets another port with each start
        async with wire(answering(HELLO)) as engine:
            engine.upstream = upstream
            await engine.fetch()
        await trio.sleep(0.03)
    assert len(upstream._idle) == 1
    upstream.close()


async def test_no_more_than_so_many_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_router.upstream.client, "MAX_IDLE_CONNECTIONS", 2)
    async with wire(answering(HELLO)) as engine:
        exchanges = [await engine.send() for _ in range(4)]
        for exchange in exchanges:
            await rest_of(exchange)
        assert engine.idle() == 2
        assert [exchange._stream.sock.fileno() for exchange in exchanges[:2]] == [-1, -1]


async def test_nothing_is_kept_once_the_pool_is_closed() -> None:
    async with wire(answering(HELLO)) as engine:
        exchange = await engine.send()
        engine.upstream.close()
        assert await rest_of(exchange) == b"hello"
        assert engine.idle() == 0
        assert exchange._stream.sock.fileno() == -1


@pytest.mark.parametrize("how", ["closed", "reset", "unasked bytes"])
async def test_a_stale_connection_is_noticed_before_it_is_used(how: str) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(HELLO)
        await trio.sleep(0.01)
        if how == "unasked bytes":
            await line.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            await line.until_left()
        elif how == "reset":
            line.reset()

    async with wire(script) as engine:
        for _ in range(3):
            _, got = await engine.fetch()
            assert got == b"hello"
            assert engine.idle() == 1
            await trio.sleep(0.05)
        assert len(engine.lines) == 3


@pytest.mark.parametrize("extra", [b"x", HELLO, b"HTTP/1.1", b"0\r\n\r\n"])
async def test_bytes_after_the_end_spoil_the_connection_but_not_the_answer(extra: bytes) -> None:
    async with wire(answering(HELLO + extra)) as engine:
        for _ in range(2):
            head, got = await engine.fetch()
            assert (head.status, got) == (200, b"hello")
        assert len(engine.lines) == 2
        assert engine.idle() == 0


async def test_bytes_after_a_last_answer_are_no_error_either() -> None:
    closing = OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello\r\nx"
    async with wire(answering(closing)) as engine:
        assert (await engine.fetch())[1] == b"hello"


async def test_a_second_answer_is_not_taken_for_that_to_the_next_request() -> None:
    async with wire(once_each(HELLO + OK + b"Content-Length: 4\r\n\r\nevil")) as engine:
        for _ in range(2):
            assert (await engine.fetch())[1] == b"hello"


async def test_an_exchange_closed_before_its_end_closes_the_connection() -> None:
    left = trio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.send(CHUNKED, b"5\r\nhello\r\n")
        await line.until_left()
        left.set()

    async with wire(script) as engine:
        exchange = await engine.send()
        assert await exchange.chunk() == b"hello"
        exchange.close()
        with trio.fail_after(200):
            await left.wait()
        assert engine.idle() == 0


# No connection at all.


async def test_nobody_listens() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sock.close()
    request = Wire(Upstream(), f"http://127.0.0.1:{port}", []).request()
    with trio.fail_after(200), pytest.raises(EngineUnreachable, match="connection refused"):
        await Upstream().send(request)


async def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_tcp_stream(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    with pytest.raises(EngineUnreachable, match="not known"):
        await Upstream().send(Wire(Upstream(), "http://engine.invalid:1", []).request())


async def test_an_engine_by_name() -> None:
    async with wire(answering(HELLO)) as engine:
        engine.base_url = engine.base_url.replace("127.0.0.1", "localhost")
        assert (await engine.fetch())[1] == b"hello"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_an_engine_by_its_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError as error:
            pytest.skip(str(error))
        sock.listen()
        request = Wire(Upstream(), f"http://[::1]:{sock.getsockname()[1]}", []).request()
        exchange = await Upstream().send(request)
        exchange.close()


async def test_an_engine_that_does_not_accept_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # the queue of the listener is full after these
            filler.setblocking(False)
            assert filler.connect_ex(full.getsockname()) in (0, errno.EINPROGRESS, errno.EWOULDBLOCK)
        request = Wire(Upstream(), f"http://127.0.0.1:{full.getsockname()[1]}", []).request(
            connect_timeout_s=0.1
        )
        with trio.fail_after(200), pytest.raises(EngineUnreachable, match=r"within 0\.1 s"):
            await Upstream().send(request)
        for filler in fillers:
            filler.close()


async def test_a_handshake_that_fails_leaves_no_socket() -> None:
    async with wire(answering(HELLO)) as engine:
        engine.base_url = engine.base_url.replace("http:", "https:")

        async def garbage(line: Line) -> None:
            await line.stream.receive_some()
            await line.send(b"HTTP/1.1 400 This is not TLS\r\n\r\n")

        async with wire(garbage) as other:
            before = psutil.Process().num_fds()
            other.base_url = other.base_url.replace("http:", "https:")
            with pytest.raises(EngineUnreachable, match="TLS handshake failed"):
                await other.fetch()
            with pytest.raises(EngineUnreachable, match=r"within 0\.05 s"):
                await engine.send(connect_timeout_s=0.05)
            engine.lines.clear()
            other.lines.clear()
            await trio.sleep(0.02)
            assert psutil.Process().num_fds() <= before


async def test_over_tls() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)

    async def script(line: Line) -> None:
        secured = trio.SSLStream(line.stream, server, server_side=True, https_compatible=True)
        line.stream = secured
        await answering(HELLO)(line)

    async with wire(script) as engine:
        engine.upstream._tls = ssl.create_default_context()
        authority.configure_trust(engine.upstream._tls)
        engine.base_url = engine.base_url.replace("http:", "https:")
        for _ in range(2):
            assert (await engine.fetch())[1] == b"hello"
        assert (await engine.fetch("POST", bytes(10**6)))[1] == b"hello"


# A request that is still being sent.

TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!"
BIG = bytes(30 * 10**6)


@pytest.mark.parametrize("then", ["waits", "closes", "keeps reading"])
async def test_an_answer_before_the_request_was_read(then: str) -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        await line.send(TOO_LARGE)
        if then == "waits":
            await trio.sleep_forever()
        elif then == "keeps reading":
            await line.until_left()

    async with wire(script) as engine:
        with trio.fail_after(200):
            head, body = await engine.fetch("POST", BIG)
        assert (head.status, body) == (413, b"no!")
        assert engine.idle() == 0


async def test_an_interim_answer_does_not_end_the_sending() -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1)
        line.received += b"P"
        await line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = await line.request()
        await line.send(OK + b"Content-Length: 8\r\n\r\n%08d" % len(request))

    async with wire(script) as engine:
        _, body = await engine.fetch("POST", BIG)
        assert int(body) > len(BIG)


async def test_a_large_request_leaves_its_connection_to_the_next() -> None:
    async with wire(answering(HELLO)) as engine:
        for _ in range(2):
            assert (await engine.fetch("POST", BIG))[1] == b"hello"
        assert len(engine.lines) == 1


@pytest.mark.parametrize("how", ["closes", "resets", "talks nonsense"])
async def test_an_engine_that_breaks_off_while_it_reads(how: str) -> None:
    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        if how == "resets":
            line.reset()
        elif how == "talks nonsense":
            await line.send(b"nonsense\r\n")
            await trio.sleep_forever()

    async with wire(script) as engine:
        exchange = await engine.send("POST", BIG)
        for _ in range(2):
            with pytest.raises(EngineBroke):
                await exchange.head()
        exchange.close()


async def test_a_cancelled_sending_closes_the_connection() -> None:
    left = trio.Event()

    async def script(line: Line) -> None:
        await line.stream.receive_some(1000)
        await trio.sleep(0.1)
        await line.until_left()
        left.set()

    async with wire(script) as engine:
        with trio.move_on_after(0.05) as scope:
            await engine.send("POST", BIG)
        assert scope.cancelled_caught
        await left.wait()


# Cancellation, and an end from outside.


@pytest.mark.parametrize("kind", ["length", "extensions", "trailers", "interim"])
async def test_steps_that_are_cancelled_and_taken_up_again_lose_nothing(kind: str) -> None:
    answer, body = WHOLE[kind]
    gate = trio.Event()

    async def script(line: Line) -> None:
        while await line.request():
            for cut in range(1, len(answer)):
                await line.stream.send_all(answer[cut - 1 : cut])
                await gate_passed()
            await line.stream.send_all(answer[-1:])

    async def gate_passed() -> None:
        nonlocal gate
        gate = trio.Event()
        await gate.wait()

    async with wire(script) as engine:
        exchange = await engine.send()
        head, got, ended = None, b"", False
        while not ended:
            with trio.move_on_after(0.0005):
                if head is None:
                    head = await exchange.head()
                else:
                    data = await exchange.chunk()
                    got, ended = got + data, not data
            gate.set()
        assert head is not None
        assert head.status == 200
        assert got == body
        assert engine.idle() == 1


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancellation_at_any_step_loses_nothing(after: bool) -> None:
    parts = (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        CHUNKED[:10],
        CHUNKED[10:],
        b"3\r\nhel",
        b"\r\n2\r\nlo\r\n0\r\n",
        b"\r\n",
    )
    async with wire(answering(*parts)) as engine:
        for n in range(1, 200):
            exchange = await engine.send()
            got: list[bytes] = []

            async def read(exchange: Exchange = exchange, got: list[bytes] = got) -> None:
                await exchange.head()
                while not got or got[-1]:
                    got.append(await exchange.chunk())

            with CancelAt(n, after=after) as sweep, sweep.scope:
                await read()
            if not got or got[-1]:
                await read()
            assert b"".join(got) == b"hello"
            if not sweep.fired:
                break
        assert n > 3
        assert len(engine.lines) == 1


async def test_a_cancellation_at_any_step_of_the_sending_leaves_no_connection() -> None:
    async with wire(answering(HELLO)) as engine:
        for body in (b"", bytes(10**6)):
            for n in range(1, 500):
                exchange = None
                with CancelAt(n) as sweep, sweep.scope:
                    exchange = await engine.send("POST", body)
                if exchange is not None:
                    assert await rest_of(exchange) == b"hello"
                if not sweep.fired:
                    break
                engine.upstream.close()
                engine.upstream._closed = False
            assert n > 1
        with trio.fail_after(200):
            while len(open_lines(engine.lines)) > 1:
                await trio.sleep(0.01)


def open_lines(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.stream.socket.fileno() >= 0]


STATES: dict[str, tuple[bytes, ...]] = {
    "no head": (b"",),
    "half a head": (OK,),
    "no body": (CHUNKED,),
    "half a body": (CHUNKED + b"5\r\nhel",),
}


@pytest.mark.parametrize("state", STATES)
async def test_closing_wakes_whoever_waits(state: str) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.send(*filter(None, STATES[state]))
        await line.until_left()

    async with wire(script) as engine:
        exchange = await engine.send()
        errors: list[EngineBroke] = []

        async def read() -> None:
            try:
                await exchange.head()
                await rest_of(exchange)
            except EngineBroke as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.03)
            assert errors == []
            exchange.close()
            exchange.close()
        assert "closed" in str(errors[0])
        assert "closed" in repr(exchange)
        assert engine.idle() == 0


@pytest.mark.parametrize("when", ["sent", "head", "body", "all", "end"])
async def test_closing_is_synchronous_in_every_state(when: str) -> None:
    async with wire(answering(HELLO)) as engine:
        exchange = await engine.send()
        if when != "sent":
            await exchange.head()
        if when in ("body", "end"):
            assert await exchange.chunk() == b"hello"
        if when == "end":
            assert await exchange.chunk() == b""
        exchange.close()
        exchange.close()
        kept = when in ("body", "end")
        assert engine.idle() == kept
        assert (exchange._stream.sock.fileno() >= 0) == kept
        if kept:  # whoever asks again cannot take what belongs to the next request
            assert await exchange.chunk() == b""
            assert engine.idle() == 1


# Anything, split anywhere.


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, list[bytes]]:
    """Draw a valid response in parts, and its body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
    body = b"".join(pieces)
    tokens = st.text("abcXYZ-", min_size=1, max_size=8).map(lambda text: "x-" + text)
    values = st.text("abc ,;=\t\"'é", max_size=20)
    fields = draw(st.lists(st.tuples(tokens, values), max_size=4))
    headers = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = OK + headers
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\nContent-Length: 7\r\n\r\n"]))
    if interim and framing == "close":
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    if framing == "length":
        raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "close":
        raw = head + b"Connection: close\r\n\r\n" + body
    else:
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b"']))
        chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
        trailer = draw(st.sampled_from([b"", b"X-T: 1\r\n"]))
        raw = head + b"Transfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"
    raw = interim + raw
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    parts = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return framing.encode(), body, [part for part in parts if part]


class MemoryWire:
    """A connection that exists only in the program."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self.stream = stream
        self.is_closed = False

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some())

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def is_quiet(self) -> bool:
        return not self.is_closed

    def close(self) -> None:
        self.is_closed = True


@settings(max_examples=150, deadline=None)
@given(drawn=responses())
def test_any_valid_answer_is_read_the_same_however_it_is_split(
    drawn: tuple[bytes, bytes, list[bytes]],
) -> None:
    framing, body, parts = drawn

    async def main() -> None:
        near, far = trio.testing.memory_stream_pair()
        request = UpstreamRequest(
            engine="a", base_url="http://x", method="GET", target="/", headers=(), body=b""
        )
        line = MemoryWire(near)
        exchange = Exchange(Upstream(), request, line)
        kept: list[object] = []
        exchange._pool.keep = lambda _, stream: kept.append(stream)

        async def serve() -> None:
            for part in parts:
                await far.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
            if framing == b"close":
                far.send_stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.transmit)
            nursery.start_soon(serve)
            head = await exchange.head()
            got = b""
            while data := await exchange.chunk():
                got += data
        assert (head.status, got) == (200, body)
        assert all(name.startswith(b"x-") or value for name, value in head.headers)
        assert line.is_closed is (framing == b"close")
        assert kept == ([] if line.is_closed else [line])

    trio.run(main)


# Nothing is left.


async def test_no_descriptor_is_left() -> None:
    async def script(line: Line) -> None:
        request = await line.request()
        what = request.split()[1]
        await line.send({b"/ok": HELLO, b"/bad": b"nonsense", b"/early": HELLO[:-1]}.get(what, OK))
        if what == b"/hang":
            await line.until_left()

    async with wire(script) as engine:
        exchange = await engine.send(target="/ok")
        assert await rest_of(exchange) == b"hello"
        process = psutil.Process()
        await trio.sleep(0.05)
        before = process.num_fds()
        for target in ("/ok", "/bad", "/early", "/hang") * 10:
            exchange = await engine.send(target=target)
            with trio.move_on_after(0.01 if target == "/hang" else math.inf):
                try:
                    await exchange.head()
                    await rest_of(exchange)
                except EngineBroke:
                    pass
            exchange.close()
        engine.upstream.close()
        engine.lines.clear()
        with trio.fail_after(200):
            while process.num_fds() > before:
                await trio.sleep(0.01)
