"""The fast tier's reader of requests, its sockets, and its way of handing a connection on."""

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from engine_router.events import EventHub
from engine_router.guards.limits import LARGE_BYTES, MAX_HEAD_BYTES, MAX_OVERHEAD_BYTES
from engine_router.in_flight import RequestScope
from engine_router.proxy.handler import Reply
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.routes import is_proxied
from engine_router.server.fast_connection import FastConnection
from engine_router.server.fast_parser import RequestReader, Verdict, WireRequest
from engine_router.upstream.socket_stream import ConnectionLost, RawStream

LIMIT_S = 200.0
MAX_BODY_BYTES = 1000
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: localhost:8080\r\n"
LENGTH = b"Content-Length: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"2\r\nhi\r\n0\r\n\r\n"
PLAIN = LINE + HOST + LENGTH + b"\r\nhi"
IN_CHUNKS = LINE + HOST + CHUNKED + b"\r\n" + CHUNKS


def make_reader(max_body_bytes: int = MAX_BODY_BYTES, large_bytes: int = LARGE_BYTES) -> RequestReader:
    return RequestReader(is_proxied, max_body_bytes, large_bytes, (b"/health",))


def read(*pieces: bytes) -> tuple[Verdict, RequestReader]:
    """Feed pieces as a connection does: what comes after a verdict waits."""
    reader = make_reader()
    verdict = Verdict.MORE
    for piece in pieces:
        if verdict is Verdict.MORE:
            verdict = reader.feed(piece)
        else:
            reader.raw += piece
    return verdict, reader


def taken(*pieces: bytes) -> WireRequest:
    verdict, reader = read(*pieces)
    assert verdict is Verdict.COMPLETE
    return reader.take()


def lines(*more: bytes, line: bytes = LINE, host: bytes = HOST, length: bytes = LENGTH) -> bytes:
    return b"".join((line, host, length, *(name + b"\r\n" for name in more), b"\r\n", b"hi"))


def with_line(line: bytes) -> bytes:
    return lines(line=line + b"\r\n")


def with_target(target: bytes) -> bytes:
    return with_line(b"POST %b HTTP/1.1" % target)


# What is taken.


def test_a_plain_request() -> None:
    request = taken(lines(b"X-Some: Thing"))
    assert request.target == b"/v1/chat/completions"
    assert request.headers == [
        (b"host", b"localhost:8080"),
        (b"content-length", b"2"),
        (b"x-some", b"Thing"),
    ]
    assert request.body == b"hi"
    assert request.keep_alive


def test_spaces_around_a_value_are_no_part_of_it() -> None:
    assert dict(taken(lines(b"X-A: \t a b \t ", b"X-B: ")).headers)[b"x-a"] == b"a b"


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"Connection: keep-alive, close", b"connection: Close"]
)
def test_connection_close(line: bytes) -> None:
    assert not taken(lines(line)).keep_alive
    assert not taken(LINE + HOST + CHUNKED + line + b"\r\n\r\n" + CHUNKS).keep_alive


@pytest.mark.parametrize(
    "chunks",
    [
        CHUNKS,
        b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        b"0002\r\nhi\r\n000\r\n\r\n",
        b'2;name=value\r\nhi\r\n0;last="a;b"\r\n\r\n',
        b"2\r\nhi\r\n0\r\nX-Trailer: dropped\r\n\r\n",
    ],
)
def test_chunks(chunks: bytes) -> None:
    request = taken(LINE + HOST + CHUNKED + b"\r\n" + chunks)
    assert request.body == b"hi"
    assert request.keep_alive
    assert b"x-trailer" not in dict(request.headers)


def test_a_body_of_nothing() -> None:
    assert taken(LINE + HOST + b"Content-Length: 0\r\n\r\n").body == b""
    assert taken(LINE + HOST + CHUNKED + b"\r\n0\r\n\r\n").body == b""


@pytest.mark.parametrize(
    "target", [b"/v1/chat/completions?a=b&c=%20", b"/api/chat", b"/v1/audio/speech", b"/v1/embeddings?"]
)
def test_targets(target: bytes) -> None:
    assert taken(with_target(target)).target == target


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:80", b"[::1]:8080", b"a-b.c_d"])
def test_hosts(host: bytes) -> None:
    assert taken(lines(host=b"Host: %b\r\n" % host)).body == b"hi"


PROBE = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"


def test_a_probe() -> None:
    verdict, reader = read(PROBE + PLAIN)
    assert verdict is Verdict.COMPLETE
    request = reader.take()
    assert (request.target, request.body, request.keep_alive) == (b"/health", b"", True)
    assert reader.feed(b"") is Verdict.COMPLETE
    assert reader.take().body == b"hi"


# What is left to the ordinary tier.

UNUSUAL = {
    "a probe with a query": PROBE.replace(b"health", b"health?a=b"),
    "a probe with a length": LINE.replace(b"POST /v1/chat/completions", b"GET /health")
    + HOST
    + LENGTH
    + b"\r\nhi",
    "a probe with a coding": PROBE[:-2] + CHUNKED + b"\r\n" + CHUNKS,
    "a probe without a host": PROBE.replace(HOST, b""),
    "a browser's probe": PROBE[:-2] + b"Accept: text/html,*/*\r\n\r\n",
    "HEAD": PROBE.replace(b"GET", b"HEAD"),
    "a probe that is posted": with_target(b"/health"),
    "another method": b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "another method on a route": with_line(b"PUT /v1/chat/completions HTTP/1.1"),
    "a method in lower case": with_line(b"post /v1/chat/completions HTTP/1.1"),
    "another route": with_target(b"/admin/swap"),
    "HTTP/1.0": with_line(b"POST /v1/chat/completions HTTP/1.0"),
    "HTTP/1.2": with_line(b"POST /v1/chat/completions HTTP/1.2"),
    "HTTP/2.0": with_line(b"POST /v1/chat/completions HTTP/2.0"),
    "HTTP/1.10": with_line(b"POST /v1/chat/completions HTTP/1.10"),
    "HTTP/0.9": b"POST /v1/chat/completions\r\n\r\n",
    "another protocol": with_line(b"POST /v1/chat/completions RTSP/1.1"),
    "two spaces": with_line(b"POST  /v1/chat/completions HTTP/1.1"),
    "two spaces behind the target": with_line(b"POST /v1/chat/completions  HTTP/1.1"),
    "a space behind the version": with_line(b"POST /v1/chat/completions HTTP/1.1 "),
    "a tab": with_line(b"POST\t/v1/chat/completions HTTP/1.1"),
    "an empty line before": b"\r\n" + PLAIN,
    "a space before": b" " + PLAIN,
    "two lengths, equal": lines(b"Content-Length: 2"),
    "two lengths": lines(b"Content-Length: 3"),
    "a list of lengths": lines(length=b"Content-Length: 2, 2\r\n"),
    "no length": lines(length=b""),
    "length +5": lines(length=b"Content-Length: +2\r\n"),
    "length 0x5": lines(length=b"Content-Length: 0x2\r\n"),
    "negative length": lines(length=b"Content-Length: -2\r\n"),
    "empty length": lines(length=b"Content-Length: \r\n"),
    "length with a space in it": lines(length=b"Content-Length: 2 2\r\n"),
    "huge length": lines(length=b"Content-Length: 99999999999999999999\r\n"),
    "length in other digits": lines(length="Content-Length: ٢\r\n".encode()),
    "length and coding": LINE + HOST + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "coding and length": LINE + HOST + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
    "length and no coding": LINE + HOST + LENGTH + b"Transfer-Encoding:\r\n\r\nhi",
    **{
        f"coding {coding!r}": LINE + HOST + b"Transfer-Encoding: %b\r\n\r\n" % coding + CHUNKS
        for coding in (
            b"identity",
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, chunked",
            b"chunked,",
            b"xchunked",
            b"\x0bchunked",
            b"chunked\x00",
            b"chunked;a=b",
            b'"chunked"',
            b"",
        )
    },
    "two codings": LINE + HOST + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "a space before a coding's colon": LINE + HOST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "obs-fold": lines(b"X: a", b" b"),
    "obs-fold with a tab": lines(b"X: a", b"\tb"),
    "obs-fold of a coding": LINE + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
    "obs-fold first": LINE + b" X: a\r\n" + HOST + LENGTH + b"\r\nhi",
    "bare LF": lines(b"X: a\nY: b"),
    "bare LF throughout": PLAIN.replace(b"\r\n", b"\n"),
    "bare LF at the end of the head": LINE + HOST + LENGTH + b"\nhi\r\n\r\n",
    "bare CR": lines(b"X: a\rY: b"),
    "bare CR throughout": PLAIN.replace(b"\r\n", b"\r") + b"\r\n\r\n",
    "a space before a colon": lines(b"X : a"),
    "no colon": lines(b"X"),
    "no name": lines(b": a"),
    "no host": lines(host=b""),
    "two hosts": lines(host=HOST + HOST),
    "an empty host": lines(host=b"Host:\r\n"),
    "a host that is none": lines(host=b"Host: a b/@\r\n"),
    "a host with a user": lines(host=b"Host: me@localhost\r\n"),
    "absolute form": with_target(b"http://localhost/v1/chat/completions"),
    "asterisk form": with_target(b"*"),
    "authority form": with_line(b"CONNECT localhost:80 HTTP/1.1"),
    "dot segments": with_target(b"/v1/audio/../chat/completions"),
    "one dot": with_target(b"/v1/./chat/completions"),
    "two slashes": with_target(b"/v1//chat/completions"),
    "two slashes first": with_target(b"//v1/chat/completions"),
    "a slash last": with_target(b"/v1/chat/completions/"),
    "percent-encoding": with_target(b"/v1/chat%2Fcompletions"),
    "a backslash": with_target(b"/v1\\chat/completions"),
    "a fragment": with_target(b"/v1/chat/completions?a#b"),
    "a target beyond ASCII": with_target("/v1/chät/completions".encode()),
    "a query beyond ASCII": with_target("/v1/chat/completions?ä".encode()),
    "NUL in a value": lines(b"X: a\x00b"),
    "a control character in a value": lines(b"X: a\x01b"),
    "DEL in a value": lines(b"X: a\x7fb"),
    "a control character in a name": lines(b"X\x01: a"),
    "a name beyond ASCII": lines(b"X\xff: a"),
    "NUL in the target": with_target(b"/v1/chat/completions?\x00"),
    "Upgrade": lines(b"Connection: upgrade", b"Upgrade: websocket"),
    "h2c": lines(b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "Expect": lines(b"Expect: 100-continue"),
    "TE": lines(b"TE: trailers"),
    "Trailer": lines(b"Trailer: X"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a huge head": lines(b"X: " + b"a" * MAX_HEAD_BYTES),
    "a huge target": with_target(b"/v1/chat/completions?" + b"a" * MAX_HEAD_BYTES),
    "a head without an end": LINE + b"X: a\r\n" * (MAX_HEAD_BYTES // 6),
    "nothing sensible": b"what do you want?\r\n\r\n",
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_doubtful_is_left_to_the_ordinary_tier_with_every_byte(data: bytes) -> None:
    step = max(1, len(data) // 1000)
    single = [data[at : at + step] for at in range(0, len(data), step)]
    for pieces in ([data], single, [data[: len(data) // 2], data[len(data) // 2 :]]):
        verdict, reader = read(*pieces)
        assert verdict is Verdict.UNUSUAL
        assert reader.raw == data


def test_nothing_is_unusual_before_it_is() -> None:
    for end in range(len(PLAIN)):
        assert read(PLAIN[:end])[0] is Verdict.MORE


# Chunks that are none, and bodies that are too large.


@pytest.mark.parametrize(
    "chunks",
    [
        b"\r\nhi\r\n0\r\n\r\n",
        b"0x2\r\nhi\r\n0\r\n\r\n",
        b"+2\r\nhi\r\n0\r\n\r\n",
        b"-2\r\nhi\r\n0\r\n\r\n",
        b" 2\r\nhi\r\n0\r\n\r\n",
        b"2 \r\nhi\r\n0\r\n\r\n",
        b"2_0\r\nhi\r\n0\r\n\r\n",
        b"10000000000000002\r\nhi\r\n0\r\n\r\n",
        b"g\r\nhi\r\n0\r\n\r\n",
        b"2\nhi\r\n0\r\n\r\n",
        b"2\rhi\r\n0\r\n\r\n",
        b"2;a\nhi\r\n0\r\n\r\n",
        b"2;a\rb\r\nhi\r\n0\r\n\r\n",
        b"2\r\nhi\n0\r\n\r\n",
        b"2\r\nhi\r0\r\n\r\n",
        b"2\r\nhixx0\r\n\r\n",
        b"2\r\nhi0\r\n\r\n",
        b"2\r\nhi\r\n0\r\nX y\r\n\r\n",
        b"2\r\nhi\r\n0\r\n X: y\r\n\r\n",
        b"2\r\nhi\r\n0\r\nX: y\n\r\n",
        b"2\r\nhi\r\n0\r\nContent-Length: 9\r\n\r\n",
        b"2\r\nhi\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"2\r\nhi\r\n0\n\n",
    ],
)
def test_chunks_that_are_none(chunks: bytes) -> None:
    data = LINE + HOST + CHUNKED + b"\r\n" + chunks
    assert read(data)[0] is Verdict.MALFORMED
    assert read(*(data[at : at + 1] for at in range(len(data))))[0] is Verdict.MALFORMED


@pytest.mark.parametrize("begin", [b"0\r\nX-Trailer: ", b"0\r\n", b"2;"])
def test_what_surrounds_chunks_fills_no_memory(begin: bytes) -> None:
    more = b"X: a\r\n" * 200 if begin.endswith(b"\n") else b"a" * 1000
    reader = make_reader()
    verdict = reader.feed(LINE + HOST + CHUNKED + b"\r\n" + begin)
    fed = 0
    while verdict is Verdict.MORE and fed < 10 * MAX_OVERHEAD_BYTES:
        verdict = reader.feed(more)
        fed += len(more)
    assert verdict is Verdict.MALFORMED
    assert fed < 2 * MAX_OVERHEAD_BYTES


def test_small_chunks_are_no_overhead() -> None:
    body = b"a" * 30_000
    reader = make_reader(len(body))
    assert reader.feed(LINE + HOST + CHUNKED + b"\r\n") is Verdict.MORE
    for _ in range(30):
        assert reader.feed(b"1\r\na\r\n" * 1000) is Verdict.MORE
    assert reader.feed(b"0\r\n\r\n") is Verdict.COMPLETE
    assert reader.take().body == body


def test_bodies_that_are_too_large() -> None:
    size = MAX_BODY_BYTES + 1
    for framing in (b"Content-Length: %d\r\n\r\n" % size, CHUNKED + b"\r\n%x\r\n" % size + b"a" * size):
        verdict, reader = read(LINE + HOST + framing)
        assert verdict is Verdict.TOO_LARGE
        assert reader.path == "/v1/chat/completions"
    just = b"a" * MAX_BODY_BYTES
    assert taken(LINE + HOST + b"Content-Length: %d\r\n\r\n" % len(just) + just).body == just
    assert taken(LINE + HOST + CHUNKED + b"\r\n%x\r\n" % len(just) + just + b"\r\n0\r\n\r\n").body == just


# Several requests.


def test_requests_with_lengths_come_one_after_the_other() -> None:
    second = lines(b"X-Second: 2")
    verdict, reader = read(PLAIN + second + b"POST /v1/chat")
    assert verdict is Verdict.COMPLETE
    assert reader.take() == taken(PLAIN)
    assert not reader.is_between
    assert reader.feed(b"") is Verdict.COMPLETE
    assert reader.take() == taken(second)
    assert reader.feed(b"") is Verdict.MORE
    assert reader.raw == b"POST /v1/chat"


@pytest.mark.parametrize("behind", [PLAIN, b"P", b"garbage\x16\x00", b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n"])
def test_what_follows_chunks_at_once_is_not_read(behind: bytes) -> None:
    request = taken(IN_CHUNKS + behind)
    assert request.body == b"hi"
    assert request.headers == taken(IN_CHUNKS).headers
    assert not request.keep_alive


def test_what_follows_chunks_later_is_read() -> None:
    verdict, reader = read(IN_CHUNKS, PLAIN)
    assert verdict is Verdict.COMPLETE
    assert reader.take().keep_alive
    assert reader.feed(b"") is Verdict.COMPLETE
    assert reader.take() == taken(PLAIN)


def test_what_follows_the_last_request_of_a_connection_does_not_spoil_it() -> None:
    request = taken(LINE + HOST + b"Connection: close\r\n" + CHUNKED + b"\r\n" + CHUNKS + PLAIN)
    assert request.body == b"hi"
    assert not request.keep_alive


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-_!#$%&'*+.^`|~0189", min_size=1, max_size=8).map(str.encode)
VALUE = st.binary(max_size=12).map(
    lambda data: bytes(byte if byte in range(32, 127) else 0x80 | byte for byte in data).strip(b" \x85\xa0")
)


@st.composite
def valid_requests(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """A valid request, its body, and its headers beside the framing."""
    body = draw(st.binary(max_size=60))
    headers = [(b"x-" + name, value) for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))]
    head = LINE + HOST + b"".join(b"%b: %b\r\n" % header for header in headers)
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body, headers
    chunks, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        chunks += b"%x\r\n%b\r\n" % (size, rest[:size])
        rest = rest[size:]
    return head + CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n", body, headers


def split(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return (data[begin:end] for begin, end in itertools.pairwise(places))


@given(valid_requests(), st.lists(st.integers(0, 10_000), max_size=12))
@example((PLAIN, b"hi", []), list(range(len(PLAIN))))
@example((IN_CHUNKS, b"hi", []), list(range(len(IN_CHUNKS))))
def test_however_it_comes_it_is_the_same_request(
    made: tuple[bytes, bytes, list[tuple[bytes, bytes]]], cuts: list[int]
) -> None:
    data, body, headers = made
    request = taken(*split(data, cuts))
    assert request == taken(data)
    assert request.body == body
    assert list(request.headers[1:-1]) == headers
    assert request.keep_alive


@given(st.lists(valid_requests(), min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=12))
def test_a_connection_reads_the_same_requests_however_they_come(
    made: list[tuple[bytes, bytes, list[tuple[bytes, bytes]]]], cuts: list[int]
) -> None:
    """All of them, or, where one follows chunks in one piece, those up to that one."""
    reader = make_reader()
    bodies = []
    goes_on = True
    for piece in split(b"".join(data for data, *_ in made), cuts):
        verdict = reader.feed(piece)
        while goes_on and verdict is Verdict.COMPLETE:
            request = reader.take()
            bodies.append(request.body)
            goes_on = request.keep_alive
            verdict = reader.feed(b"") if reader.raw else Verdict.MORE
        if not goes_on:
            break
        assert verdict is Verdict.MORE
    expected = [body for _, body, _ in made]
    assert bodies == expected[: len(bodies)]
    assert len(bodies) == len(expected) or not goes_on


PARTS = st.sampled_from(
    [
        *(b"POST ", b"/v1/chat/completions", b" ", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b":"),
        *(HOST, LENGTH, CHUNKED, CHUNKS, b"hi", b"0\r\n\r\n", b"X: y\r\n", b"\x00"),
        *(PLAIN, IN_CHUNKS, LINE + HOST),
    ]
)


@given(st.lists(PARTS | st.binary(max_size=3), max_size=12).map(b"".join))
def test_nothing_makes_the_reader_fail_and_it_loses_no_byte(data: bytes) -> None:
    reader = make_reader()
    verdict = reader.feed(data)
    if verdict is Verdict.UNUSUAL:
        assert reader.raw == data
    if verdict is Verdict.COMPLETE:
        assert reader.take().target.startswith(b"/v1/chat/completions")
        assert data.startswith(LINE)
        assert data.endswith(bytes(reader.raw))


# Sockets.


@contextlib.contextmanager
def pair(buffer_bytes: int | None = None) -> Iterator[tuple[RawStream, socket.socket]]:
    """Yield a stream, and the other end of its TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = socket.socket(), None
        if buffer_bytes is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    stream = RawStream(ours)
    with theirs:
        yield stream, theirs
        stream.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_stream_sends_and_receives() -> None:
    with trio.fail_after(LIMIT_S), pair() as (stream, peer):
        assert stream.is_quiet()
        peer.sendall(b"one")
        assert await stream.receive() == b"one"
        await stream.send_all(b"two")
        assert peer.recv(10) == b"two"
        peer.sendall(b"three")
        await trio.lowlevel.wait_readable(stream.sock)
        assert not stream.is_quiet()
        assert await stream.receive() == b"three"
        assert stream.is_quiet()
        stream.finish()
        assert peer.recv(10) == b""
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b""
        assert not stream.is_quiet()


async def test_what_does_not_fit_is_sent_in_parts() -> None:
    data = bytes(range(256)) * 20_000
    received = bytearray()

    async def take_in(peer: socket.socket) -> None:
        peer.setblocking(False)
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(peer)
            received.extend(peer.recv(3000))

    with trio.fail_after(LIMIT_S), pair(4096) as (stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
            assert not received
            nursery.start_soon(take_in, peer)
        assert received == data


class Reluctant:
    """A socket that would block, or sends a little, in turns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls = 0

    def send(self, data: bytes) -> int:
        self.calls += 1
        if self.calls % 2:
            raise BlockingIOError if self.calls % 4 == 1 else InterruptedError
        return self._sock.send(data[:5])

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


async def test_would_block_loses_nothing() -> None:
    with trio.fail_after(LIMIT_S), pair() as (stream, peer):
        stream.sock = reluctant = Reluctant(stream.sock)  # type: ignore[assignment]
        await stream.send_all(b"twenty-three characters")
        assert peer.recv(100) == b"twenty-three characters"
        assert reluctant.calls == 10


async def test_closing_wakes_who_waits_in_either_direction() -> None:
    lost = []

    async def expect_loss(step: object) -> None:
        with pytest.raises(ConnectionLost):
            await step  # type: ignore[misc]
        lost.append(step)

    with trio.fail_after(LIMIT_S), pair(4096) as (stream, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_loss, stream.receive())
            nursery.start_soon(expect_loss, stream.send_all(b"a" * 10_000_000))
            await trio.testing.wait_all_tasks_blocked()
            assert lost == []
            stream.close()
        assert len(lost) == 2
        stream.close()
        stream.finish()
        assert not stream.is_quiet()
        assert "closed" in repr(stream)
        for step in (stream.receive, lambda: stream.send_all(b"a")):
            with pytest.raises(ConnectionLost):
                await step()


async def test_a_reset_is_a_loss() -> None:
    with trio.fail_after(LIMIT_S):
        with pair() as (stream, peer):
            reset(peer)
            with pytest.raises(ConnectionLost):
                await stream.receive()
            with pytest.raises(ConnectionLost):
                await stream.send_all(b"a")
        with pair() as (stream, peer):
            reset(peer)
            await trio.lowlevel.wait_readable(stream.sock)
            assert not stream.is_quiet()


async def test_cancelling_a_receive_loses_nothing() -> None:
    with trio.fail_after(LIMIT_S), pair() as (stream, peer):
        for _ in range(3):
            with trio.move_on_after(0.001):
                await stream.receive()
        peer.sendall(b"here")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert await stream.receive() == b"here"


# A connection.


async def never(incoming: IncomingRequest, scope: RequestScope) -> Reply:
    raise AssertionError(incoming)


async def test_bytes_that_come_while_a_connection_is_handed_on_go_with_it() -> None:
    """The poll may be taking in more in the very step in which the task that serves leaves."""
    sent = b"GET /v1/models HTTP/1.1\r\n\r\n" + bytes(range(200))
    for _ in range(60):
        with trio.fail_after(LIMIT_S), pair() as (stream, peer):
            found: list[bytes | None] = []

            async def run(stream: RawStream = stream, found: list[bytes | None] = found) -> None:
                found.append(await FastConnection(stream, make_reader(), never, EventHub()).run())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.testing.wait_all_tasks_blocked()
                for at in range(0, len(sent), 30):
                    peer.send(sent[at : at + 30])
                    await trio.lowlevel.checkpoint()
            (first,) = found
            assert first is not None
            rest = b""
            while len(first + rest) < len(sent):
                rest += await stream.receive()
            assert first + rest == sent
