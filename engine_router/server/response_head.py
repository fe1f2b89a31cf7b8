"""The head of an answer as the fast tier sends it."""

from __future__ import annotations

import functools
import http
import time
from email.utils import formatdate
from typing import Final

from engine_router.upstream.http1 import Headers

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}


def response_head(status: int, headers: Headers, *, chunked: bool, keep_alive: bool) -> bytes:
    """Return the head of an answer, with its date and its framing."""
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, _date_line(int(time.time()))]
    lines += map(b"%b: %b\r\n".__mod__, headers)
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


@functools.lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
