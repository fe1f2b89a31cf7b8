"""The parser of HTTP/1.1 requests in the fast tier, which leaves unusual ones to the ordinary tier.

A request is taken if there is nothing unusual about it at all. Everything else, a doubtful one above all, is
left to Hypercorn with every byte as it came, so that there is one place that judges the unusual. llhttp
(httptools) parses heads and chunks; here it is only decided.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Collection

import httptools
from attrs import define, field

from engine_router.guards.limits import MAX_HEAD_BYTES, MAX_OVERHEAD_BYTES, REMEMBERED_HOSTS, REMEMBERED_PATHS
from engine_router.upstream.http1 import Headers

_PLAIN_TARGET = re.compile(rb"/[A-Za-z0-9_\-/]*(\?[!-\"$-~]*)?")
_PLAIN_HOST = re.compile(rb"[A-Za-z0-9._\-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")
_LENGTH_DIGITS = 15
_UNUSUAL_HEADERS = frozenset((b"upgrade", b"expect", b"te", b"trailer", b"http2-settings"))
# None of these may come twice.
_JUDGED_HEADERS = _UNUSUAL_HEADERS.union((b"host", b"content-length", b"transfer-encoding"))
_HEAD_END = b"\r\n\r\n"
_NO_PARSER = httptools.HttpRequestParser(object())


@define(repr=False)
class WireRequest:
    """A request; a whole one, unless its body is large.

    Attributes:
        target: path and query, as they came.
        headers: as they came, names in lower case.
        body: empty where it is still coming.
        length: of the body in bytes; None where it comes in chunks and has not ended.
        keep_alive: the client wants to use the connection again.
    """

    target: bytes
    headers: Headers
    body: bytes | bytearray
    length: int | None
    keep_alive: bool


class Verdict(enum.Enum):
    """The next step after some bytes were read."""

    MORE = enum.auto()
    """The request is not complete: read on."""
    COMPLETE = enum.auto()
    """`take()` returns it."""
    LARGE = enum.auto()
    """Its body is large: `begin()` returns the request, `drain()` what has come of its body. Read on."""
    UNUSUAL = enum.auto()
    """Leave the connection to the ordinary tier, with `raw`."""
    MALFORMED = enum.auto()
    """The chunks of its body are not chunks: refuse it and close."""
    TOO_LARGE = enum.auto()
    """The body is larger than allowed: refuse it and close."""


class _Head:
    """The callbacks of httptools for one head, and for a chunked body behind it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False
        self.body = bytearray()
        self.complete = False
        self.begun = 0
        self.is_last = False
        self.keep_alive = False

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        if self.begun == 1:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.done:  # what comes later is a trailer, which may be dropped
            # llhttp leaves the spaces behind a value, which are no part of it.
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if not self.done:
            self.done = True
            self.keep_alive = self.parser.should_keep_alive()  # which llhttp forgets at the end of the chunks

    def on_body(self, data: bytes) -> None:
        if self.begun == 1:
            self.body += data

    def on_message_complete(self) -> None:
        if self.begun == 1:
            self.complete = True


@define(eq=False, repr=False)
class RequestReader:
    """Reads the requests of one connection, one after the other.

    Args:
        takes: tells whether the fast tier serves a path that is posted to.
        max_body_bytes: larger bodies are refused.
        large_bytes: larger bodies are handed out as they come.
        gets: the paths, without a query, of which the fast tier serves a GET to programs; nobody posts to them.
            A browser is asked for a key in a way of its own, and Anthropic's clients get lists of their own.

    Attributes:
        raw: every byte that belongs to no request taken so far.
    """

    takes: Callable[[str], bool]
    max_body_bytes: int
    large_bytes: int
    gets: Collection[bytes] = ()
    raw: bytearray = field(factory=bytearray)
    _head: _Head | None = None
    _length: int | None = None
    _body: bytearray = field(factory=bytearray)
    _drained_bytes: int = 0
    _is_large: bool = False
    _overhead_bytes: int = 0

    @property
    def is_between(self) -> bool:
        """True if no byte of a further request has come."""
        return self._head is None and not self.raw

    @property
    def path(self) -> str:
        """Path of the request whose head has come; empty while none has."""
        return "" if self._head is None else self._head.target.partition(b"?")[0].decode("latin-1")

    def feed(self, data: bytes) -> Verdict:
        """Take in bytes. After COMPLETE, bytes of a further request wait in `raw` until `feed(b"")`."""
        if self._head is None:
            self.raw += data
            return self._read_head()
        if self._length is None:
            return self._read_chunks(data)
        return self._read_body(data)

    def take(self) -> WireRequest:
        """Return the complete request, and begin with the next one."""
        request = self._request(self._body)
        self._forget()
        return request

    def begin(self) -> WireRequest:
        """Return a request whose body is still coming."""
        return self._request(b"")

    def drain(self) -> bytearray:
        """Return what has come of a large body since the last call."""
        data, self._body = self._body, bytearray()
        self._drained_bytes += len(data)
        return data

    def finish(self) -> bool:
        """Begin with the next request, the large body being complete. Returns whether there may be one."""
        keep_alive = self._request(b"").keep_alive
        self._forget()
        return keep_alive

    def _request(self, body: bytearray | bytes) -> WireRequest:
        head = self._head
        if head is None:
            raise RuntimeError("no request has begun")
        keep_alive = head.keep_alive and not head.is_last
        return WireRequest(head.target, head.headers, body, self._length, keep_alive)

    def _forget(self) -> None:
        if self._head is not None:
            self._head.parser = _NO_PARSER  # the two hold each other, which only the collector would end
        self._head, self._length, self._body = None, None, bytearray()
        self._drained_bytes, self._is_large = 0, False

    def _read_head(self) -> Verdict:
        end = self.raw.find(_HEAD_END)
        if end < 0:
            return Verdict.MORE if self._may_become_plain() else Verdict.UNUSUAL
        head = self._plain_head(end + len(_HEAD_END))
        if head is None:
            return Verdict.UNUSUAL
        self._head, self._overhead_bytes = head, 0
        rest = bytes(self.raw[end + len(_HEAD_END) :])
        self.raw = bytearray()
        if self._length is None:
            return self._read_chunks(rest)
        if self._length > self.max_body_bytes:
            return Verdict.TOO_LARGE
        return self._read_body(rest)

    def _more(self) -> Verdict:
        """Say of an incomplete body whether it turns out to be a large one; once."""
        coming = self._body_bytes if self._length is None else self._length
        if self._is_large or coming <= self.large_bytes:
            return Verdict.MORE
        self._is_large = True
        return Verdict.LARGE

    @property
    def _body_bytes(self) -> int:
        return self._drained_bytes + len(self._body)

    def _plain_head(self, length: int) -> _Head | None:
        """Parse the head that the first bytes are; None where it is not plain."""
        if length > MAX_HEAD_BYTES:
            return None
        head = _Head()
        try:
            head.parser.feed_data(bytes(self.raw[:length]))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        # llhttp lets empty lines, several spaces and other protocols' names pass in a request line.
        is_get = head.target in self.gets
        has_plain_line = self.raw.startswith(
            b"%b %b HTTP/1.1\r\n" % (b"GET" if is_get else b"POST", head.target)
        )
        return head if has_plain_line and self._is_plain(head, is_get=is_get) else None

    def _may_become_plain(self) -> bool:
        """Tell whether bytes may be the beginning of a plain head. A bare line feed may be the end of another."""
        raw = self.raw
        if not raw:
            return True
        is_short = len(raw) <= MAX_HEAD_BYTES
        return is_short and raw[:1].isalpha() and raw.count(b"\n") == raw.count(b"\r\n")

    def _read_body(self, data: bytes) -> Verdict:
        missing = (self._length or 0) - self._drained_bytes - len(self._body)
        self._body += data[:missing] if len(data) > missing else data
        if len(data) < missing:
            return self._more()
        self.raw += data[missing:]
        return Verdict.COMPLETE

    def _read_chunks(self, data: bytes) -> Verdict:
        head = self._head
        if head is None:
            raise RuntimeError("a chunk without a head")
        head.body = self._body
        before = len(self._body)
        try:
            head.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not head.complete:
                return Verdict.MALFORMED
            head.is_last = True  # what is wrong is behind it
        # httptools gathers a trailer in memory, however long it is.
        self._overhead_bytes = 0 if len(self._body) > before else self._overhead_bytes + len(data)
        if self._overhead_bytes > MAX_OVERHEAD_BYTES and not head.complete:
            return Verdict.MALFORMED
        if self._body_bytes > self.max_body_bytes:
            return Verdict.TOO_LARGE
        if head.begun > 1:
            # A further request behind the last chunk, whose place llhttp does not tell: it cannot be read.
            head.is_last = True
        return Verdict.COMPLETE if head.complete else self._more()

    def _is_plain(self, head: _Head, *, is_get: bool) -> bool:
        """Tell whether a head has nothing unusual in it, and find its body's length."""
        path = _plain_path(head.target)
        if path is None or not head.done:
            return False
        judged: dict[bytes, bytes] = {}
        for name, value in head.headers:
            if name in _JUDGED_HEADERS:
                if name in judged or name in _UNUSUAL_HEADERS:
                    return False
                judged[name] = value
        if not _is_plain_host(judged.get(b"host", b"")):
            return False
        length, coding = judged.get(b"content-length"), judged.get(b"transfer-encoding")
        if is_get:
            self._length = 0
            return (
                length is None
                and coding is None
                and not any(_wants_another(*header) for header in head.headers)
            )
        return self._has_plain_framing(length, coding) and self.takes(path)

    def _has_plain_framing(self, length: bytes | None, coding: bytes | None) -> bool:
        """Find the length of a body. A request with two lengths, or none, is not plain."""
        if (length is None) == (coding is None):
            return False
        self._length = None
        if length is not None and length.isdigit() and len(length) <= _LENGTH_DIGITS:
            self._length = int(length)
            return True
        return coding is not None and coding.lower() == b"chunked"


@functools.lru_cache(REMEMBERED_PATHS)
def _plain_path(target: bytes) -> str | None:
    """Return the path of a target; None where the target is not plain."""
    path = target.partition(b"?")[0]
    return path.decode("ascii") if _PLAIN_TARGET.fullmatch(target) and b"//" not in path else None


@functools.lru_cache(REMEMBERED_HOSTS)
def _is_plain_host(host: bytes) -> bool:
    return _PLAIN_HOST.fullmatch(host) is not None


def _wants_another(name: bytes, value: bytes) -> bool:
    """Tell whether a header asks for another answer: a browser's, or an Anthropic client's."""
    return name == b"anthropic-version" or (name == b"accept" and b"html" in value.lower())
