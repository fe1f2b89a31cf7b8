"""What an engine may and must not send, and what is sent to it, over one connection of the client leg."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.upstream_wire import CHUNKED, HELLO, OK, WHOLE, Line, Wire, answering, rest_of, wire

from engine_router.errors import BadRequest, EngineBroke
from engine_router.guards.limits import MAX_ENGINE_OVERHEAD_BYTES
from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.http1 import UpstreamRequest

# What a well-behaved engine may send.


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


async def test_headers_come_in_their_order_with_their_names_in_lower_case() -> None:
    answer = OK + b"X-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 0\r\n\r\n"
    async with wire(answering(answer)) as engine:
        head, _ = await engine.fetch()
        assert head.headers == ((b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"content-length", b"0"))
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

    async def receive(self, until: float = math.inf) -> bytes | None:
        assert until == math.inf
        return bytes(await self.stream.receive_some())

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def park(self) -> None:
        pass

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
