"""HTTP/1.1 with engines, without their sockets: the heads of requests, and the parser of responses.

llhttp (httptools) parses responses; what it lets pass too generously is a fault.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol
from urllib.parse import quote_from_bytes, urlsplit

import httptools
from attrs import define

from engine_router.errors import BadRequest
from engine_router.guards.limits import REMEMBERED_PATHS

_UNSAFE_IN_TARGET = re.compile(rb"[^\x21-\x7e]+")
_NO_PARSER: Final = httptools.HttpResponseParser(object())
_CHUNK_BREAKS: Final = 4  # bytes of both line breaks of a chunk
_REMEMBERED_LENGTHS: Final = 4096
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))

Headers = Sequence[tuple[bytes, bytes]]
"""Names and values in the order in which they came; every name in lower case.

What brings headers in sees to that, once: the parsers of both tiers and of answers, and who reads them from the
configuration or from Quart's answers. So names are compared as they are.
"""


class Arriving(Protocol):
    """A body that is still coming.

    Attributes:
        length: in bytes; None where nobody knows it yet.
    """

    length: int | None

    def pieces(self) -> AsyncGenerator[bytes | bytearray, None]:
        """Yield the body from its beginning; asked for once."""
        ...


@define(kw_only=True, repr=False)
class UpstreamRequest:
    """A request to an engine.

    Attributes:
        engine: its name, for error messages.
        base_url: `http://host:port`.
        target: path and query, as they go on the wire.
        headers: without Host and framing headers, which are added.
        body: the whole body, or one that is relayed as it comes.
        connect_timeout_s: seconds within which it must accept the connection.
        ca_file: the authorities that vouch for its certificate; None for the system's.
    """

    engine: str
    base_url: str
    method: str
    target: str
    headers: Headers
    body: bytes | bytearray | Arriving
    connect_timeout_s: float = 15.0
    ca_file: str | None = None


def first_value(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a header; `name` in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None


@define
class ResponseHead:
    """Status line and headers of an engine's response."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` in lower case."""
        return first_value(self.headers, name)


def head_bytes(request: UpstreamRequest) -> bytes:
    """Return a request's line and headers as they go out.

    Raises:
        BadRequest: a header has a line break in it.
    """
    # A path that was decoded on its way in must not bring line breaks into what goes out.
    target = _wire_target(request.target)
    method, host, body = request.method.encode("ascii"), _host_of(request.base_url), request.body
    length = len(body) if isinstance(body, (bytes, bytearray)) else body.length
    lines = [b"%b %b HTTP/1.1" % (method, target), b"host: " + host, *map(b": ".join, request.headers)]
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length or request.method in _WITH_BODY:
        lines.append(b"content-length: %d" % length)
    lines.append(b"")
    head = b"\r\n".join(lines)
    if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1:
        raise BadRequest("a header has a line break in it")
    return head + b"\r\n"


@functools.lru_cache(REMEMBERED_PATHS)
def _wire_target(target: str) -> bytes:
    return _UNSAFE_IN_TARGET.sub(_escaped, target.encode("utf-8", "surrogatepass"))


@functools.lru_cache(maxsize=256)
def _host_of(base_url: str) -> bytes:
    return urlsplit(base_url).netloc.encode("idna")


def _escaped(unsafe: re.Match[bytes]) -> bytes:
    return quote_from_bytes(unsafe[0]).encode("ascii")


@functools.lru_cache(_REMEMBERED_LENGTHS)
def _chunk_line(length: int) -> bytes:
    """Return the line with its size that a chunk of so many bytes in all begins with; empty where there is none."""
    for digits in range(1, 8):
        line = b"%x\r\n" % max(length - digits - _CHUNK_BREAKS, 0)
        if len(line) == digits + 2 and length > digits + _CHUNK_BREAKS:
            return line
    return b""


class ResponseParser:
    """A parser of one response: the callbacks of httptools. Interim responses (1xx) are passed over.

    Attributes:
        status, headers: those of the head, once `head_done`.
        is_framed: the head says how long the body is; else the connection's end is its end.
        body: the pieces of the body that came and were not taken.
        complete: the response has come to its proper end.
        reusable: the connection may be used for another request then.
        fault: what is wrong with a head that llhttp lets pass; empty for nothing.
    """

    def __init__(self, *, bodyless: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_framed = False
        self.body: deque[bytes] = deque()
        self.head_done = False
        self.complete = False
        self.reusable = False
        self.fault = ""
        self._bodyless = bodyless
        self._is_chunk_over = False  # as far as the parser has read
        self._is_at_chunk = False  # the next byte begins a chunk
        self._pieces_at_end = 0
        # Called for every chunk of every stream: a method of ours would cost more than all else here. What does
        # not belong to the body (an interim answer's, or what follows the end) is taken out afterwards.
        self.on_body = self.body.append
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse what came in.

        Raises:
            httptools.HttpParserError: it is not HTTP.

        What llhttp lets pass, but has no sure end, is noted in `fault`.
        """
        if self._parser is _NO_PARSER:
            self.reusable = False  # bytes after the end: nobody asked for them
            return
        try:
            self._parser.feed_data(data)
            # Where more came than the end of a chunk, the parser has begun with the next one.
            self._is_at_chunk = self._is_chunk_over and data.endswith(b"\r\n")
        except httptools.HttpParserUpgrade:
            pass  # noted as a fault
        finally:
            if not self.head_done:
                self.body.clear()
            if self.complete:
                self._end()

    def _end(self) -> None:
        """Let go of what comes after the end, and of the parser: the two hold each other, which only the collector ends."""
        while len(self.body) > self._pieces_at_end:
            self.body.pop()
        self.close()

    def close(self) -> None:
        """Take nothing in any more."""
        self._parser, self._is_at_chunk = _NO_PARSER, False

    def whole_chunk(self, data: bytes) -> bytes:
        """Return what is in the one chunk that all of some bytes are; where they are anything else, nothing: feed them.

        Nearly every piece of a stream is one, which need not be parsed to go on.
        """
        if self._is_at_chunk:
            line = _chunk_line(len(data))
            if line and data.startswith(line) and data.endswith(b"\r\n"):
                return data[len(line) : -2]
        return b""

    def take_body(self) -> bytes:
        """Take out the bytes of the body that have come; there must be some."""
        body = self.body
        data = body.popleft()
        if body:
            data = b"".join((data, *body))
            body.clear()
        return data

    def on_message_begin(self) -> None:
        """Begin a message: an interim one, the answer, or what follows it."""
        if not self.complete:
            self.headers = []
        else:
            self.reusable = False  # bytes after the end: nobody asked for them

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        if not self.head_done:  # what comes later is a trailer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge a head that is complete."""
        status = self._parser.get_status_code()
        if self.complete or (100 <= status < 200 and status != 101):
            return
        codings, has_length = [], False
        for name, value in self.headers:
            if name == b"transfer-encoding":
                codings.append(value)
            elif name == b"content-length":
                has_length = True
        if status < 200:
            self.fault = f"its answer has the status {status}, which nobody asked for"
        elif codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            # Anything else has an encoding that the client does not learn, or no certain end.
            self.fault = f"its answer has the transfer encoding '{b', '.join(codings).decode('latin-1')}'"
        if self.fault:
            return
        self.status, self.is_framed, self.head_done = status, has_length or bool(codings), True
        self.body.clear()
        if self._bodyless or status in (204, 304):
            self.complete = True
            self.reusable = self._bodyless is False and self._parser.should_keep_alive()

    def on_chunk_header(self) -> None:
        """Begin a chunk."""
        self._is_chunk_over = False

    def on_chunk_complete(self) -> None:
        """End a chunk."""
        self._is_chunk_over = True

    def on_message_complete(self) -> None:
        """End a message."""
        if self.head_done and not self.complete:
            self.complete = True
            self._pieces_at_end = len(self.body)
            self.reusable = self._parser.should_keep_alive()
