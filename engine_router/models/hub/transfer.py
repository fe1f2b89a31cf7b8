"""The transfer of an answer's bytes into a file: read, hashed and written by one thread, which can be paused."""

from __future__ import annotations

import threading
from typing import Final

from engine_router.models.hub.exchange import HubExchange, Stopped
from engine_router.models.hub.partial import PartialFile

WRITE_BYTES: Final = 2**20
"""Bytes that are written together, where they come fast enough; what comes slowly is written at once."""

_LOOK_S: Final = 0.5


class TooMuch(Exception):
    """The server sends more than it said."""


class Transfer:
    """One answer on its way to the disk. `run` blocks; everything else may be called from another thread.

    Args:
        end: where the answer ends in the file; -1 where that is not known.
    """

    def __init__(self, exchange: HubExchange, partial: PartialFile, end: int) -> None:
        self._exchange = exchange
        self._partial = partial
        self._end = end
        self._go = threading.Event()
        self._go.set()
        self._received_bytes = 0
        self._taken_bytes = 0

    @property
    def is_paused(self) -> bool:
        """True while nothing is read."""
        return not self._go.is_set()

    def pause(self) -> None:
        """Read nothing more for now: the server waits, or breaks the connection in the end."""
        self._go.clear()

    def go_on(self) -> None:
        """End the pause."""
        self._go.set()

    def take_count(self) -> int:
        """Return how many bytes have come since this was asked last."""
        count = self._received_bytes
        new, self._taken_bytes = count - self._taken_bytes, count
        return new

    def run(self) -> None:
        """Take in everything. What has come is written, however it ends.

        Raises:
            Stopped: it broke off, or was stopped.
            TooMuch: more comes than there should.
            HubError: it cannot be written.
        """
        at = self._partial.size_bytes
        pieces: list[bytes] = []
        count = 0
        try:
            while piece := self._next():
                at += len(piece)
                if self._end != -1 and at > self._end:
                    raise TooMuch
                self._received_bytes += len(piece)
                pieces.append(piece)
                count += len(piece)
                if count >= WRITE_BYTES or not self._exchange.has_more():
                    self._partial.append(pieces)
                    pieces, count = [], 0
        finally:
            if pieces:
                self._partial.append(pieces)

    def _next(self) -> bytes:
        while not self._go.wait(_LOOK_S):
            if self._exchange.is_stopped:
                raise Stopped("it was stopped")
        return self._exchange.piece()
