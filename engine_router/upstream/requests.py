"""Requests to engines, and the bytes of their heads."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Protocol
from urllib.parse import quote_from_bytes, urlsplit

from attrs import frozen

from engine_router.errors import BadRequest

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


def head_bytes(request: UpstreamRequest) -> bytes:
    """Return a request's line and headers as they go out.

    Raises:
        BadRequest: a header has a line break in it.
    """
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
