"""A large body that is still coming, between what reads it and the task that relays it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from engine_router.errors import RouterError
from engine_router.guards.limits import MAX_BACKLOG_BYTES


class ArrivingBody:
    """A large body that is still coming: what has come of it and is not taken yet.

    Attributes:
        is_complete: its proper end has come.
        is_over: nothing more will be taken in.
    """

    def __init__(self, on_room: Callable[[], object]) -> None:
        """Call `on_room` whenever what has come is taken."""
        self._data = bytearray()
        self._fault: RouterError | None = None
        self._changed = trio.Event()
        self._on_room = on_room
        self.is_complete = False
        self.is_over = False

    def put(self, data: bytearray) -> None:
        """Take in a piece."""
        self._data += data
        self._changed.set()

    def end(self, fault: RouterError | None) -> None:
        """Take in the end: the proper one, or what is wrong."""
        self.is_complete = fault is None
        self.is_over, self._fault = True, fault
        self._changed.set()

    async def piece(self) -> bytearray:
        """Return what has come; empty at the proper end.

        Raises:
            RouterError: the body is malformed, or too large.
        """
        while not self._data and not self.is_over:
            self._changed = trio.Event()
            await self._changed.wait()
        if self._fault is not None:
            raise self._fault
        data, self._data = self._data, bytearray()
        self._on_room()
        return data

    @property
    def has_room(self) -> bool:
        """False while much has come that is not taken yet."""
        return len(self._data) <= MAX_BACKLOG_BYTES or self.is_over
