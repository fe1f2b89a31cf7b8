"""Heads of answers in the fast tier."""

from __future__ import annotations

import http
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}


def response_head(
    status: int, headers: Sequence[tuple[bytes, bytes]], *, chunked: bool, keep_alive: bool
) -> bytes:
    """Return the head of an answer, with its date and its framing."""
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, _date.line()]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


class _Date:
    """The Date header, made anew once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"date: " + formatdate(second, usegmt=True).encode() + b"\r\n"
        return self._line


_date = _Date()
