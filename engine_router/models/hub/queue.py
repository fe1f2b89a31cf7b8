"""The queue of a router's downloads: one at a time, and none while a model is starting that reads the same disk."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from engine_router.errors import QueueFull
from engine_router.guards.limits import MOST_WAITING_DOWNLOADS
from engine_router.models.hub.progress import Progress

if TYPE_CHECKING:
    from engine_router.models.hub.pull import Puller

LOOK_S: Final = 0.25
"""Seconds between two looks whether a model is starting."""

LONGEST_PAUSE_S: Final = 600.0
"""Seconds after which a download goes on for as long, whatever is starting: models that take turns must not stop it."""


class DownloadQueue:
    """Lets one download at a time write to the disk, and none while a model is starting.

    Args:
        starting: returns the names of the models that are starting now.
    """

    def __init__(self, starting: Callable[[], Sequence[str]]) -> None:
        self._starting = starting
        self._lock = trio.StrictFIFOLock()
        self._next_look = -math.inf
        self._paused_at = math.inf
        self._reason = ""

    def puller(self) -> Puller:
        """Return what downloads in this queue."""
        from engine_router.models.hub.pull import Puller  # noqa: PLC0415 - a router that downloads nothing needs none

        return Puller(gate=self.gate, turn=self.turn)

    @asynccontextmanager
    async def turn(self, progress: Progress) -> AsyncIterator[None]:
        """Wait until no other download is under way; the next one may begin when the block ends.

        Raises:
            QueueFull: too many wait already.
        """
        if self._lock.statistics().tasks_waiting >= MOST_WAITING_DOWNLOADS:
            raise QueueFull(f"{MOST_WAITING_DOWNLOADS} downloads are waiting already", retry_after_s=60.0)
        if self._lock.locked():
            progress.enter("queued", "waiting for another download to end")
        async with self._lock:
            yield

    def gate(self) -> str:
        """Return why a download must not go on now; empty where it may. It looks four times a second only."""
        now = trio.current_time()
        if now < self._next_look:
            return self._reason
        self._next_look = now + LOOK_S
        names = self._starting()
        if not names:
            self._paused_at = math.inf
        elif now - self._paused_at > 2 * LONGEST_PAUSE_S or self._paused_at == math.inf:
            self._paused_at = now
        is_paused = bool(names) and now - self._paused_at < LONGEST_PAUSE_S
        verb = "is" if len(names) == 1 else "are"
        self._reason = f"paused: {', '.join(names)} {verb} starting" if is_paused else ""
        return self._reason
