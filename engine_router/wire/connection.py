"""The fast tier: one connection of one client, plain requests to the proxied routes and nothing else.

Two ordinary tasks for each connection. One reads, always, so that a client that leaves is noticed whatever
else goes on; the other serves the requests one after the other, each in a cancel scope of its own. What is
unusual is handed to the ordinary tier, with every byte as it came, for the rest of the connection's life.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import trio
from attrs import define, field

from engine_router.answering import Incoming, Reply, RequestScope
from engine_router.dialects import dialect_of
from engine_router.dialects.base import error_headers, to_json
from engine_router.errors import BodyTooLarge, RouterError
from engine_router.relay import BrokenAnswer
from engine_router.wire.requests import RequestReader, Verdict, WireRequest
from engine_router.wire.stream import ConnectionLost, RawStream

logger = logging.getLogger(__name__)

Serve = Callable[[Incoming, RequestScope], Awaitable[Reply]]
# Bytes of further requests that are read while one is served, before reading pauses.
MAX_AHEAD_BYTES = 65536
"""Seconds that a refused upload may go on, so that the refusal is read before the connection breaks."""
LINGER_S = 2.0

_REASONS = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 503: b"Service Unavailable"}


class _DateLine:
    """The Date header, made anew once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def now(self, wall_clock: float) -> bytes:
        """Return the header line for now."""
        if int(wall_clock) != self._second:
            self._second = int(wall_clock)
            self._line = b"date: " + formatdate(self._second, usegmt=True).encode() + b"\r\n"
        return self._line
