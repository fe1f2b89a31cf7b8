"""Scans of a router's model folders: the last one's result, and whoever waits for the next."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import trio
from attrs import define, field

from engine_router.models.scan import ScanResult

# An unknown model is worth another look at the folders, but not more often than this.
MIN_INTERVAL_S: Final = 2.0
# A request for an unknown model waits for a look no longer than this: a folder may hang.
ASK_TIMEOUT_S: Final = 10.0

NOTHING: Final = ScanResult(models=(), skipped=(), places={})


@define(eq=False, repr=False)
class FolderScans:
    """The scans of one router, done in rounds by a task of its own.

    Attributes:
        result: what the last scan found.
        at: when it began, in seconds since the epoch; None before the first.
        took_s: how long it took, in seconds.
        is_active: the configuration asks for scans.
        around: what is in force during a scan, which makes a great many objects: a program's own garbage collection.
    """

    result: ScanResult = NOTHING
    at: float | None = None
    took_s: float | None = None
    is_active: bool = False
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    _looked_at: float = -math.inf
    _wanted: trio.Event = field(factory=trio.Event)
    _next: trio.Event = field(factory=trio.Event)  # set when the round after this one is over
    _current: trio.Event | None = None

    def note(self, result: ScanResult, *, at: float, took_s: float) -> None:
        """Take in what a scan found."""
        self.result, self.at, self.took_s = result, at, took_s

    def want(self) -> None:
        """Have a round begun soon."""
        self._wanted.set()

    async def until_wanted(self) -> None:
        """Wait until somebody wants a round."""
        await self._wanted.wait()

    def begin(self, *, is_active: bool) -> None:
        """Begin a round: who asks from now on waits for its end."""
        self.is_active, self._looked_at = is_active, trio.current_time()
        self._current, self._next, self._wanted = self._next, trio.Event(), trio.Event()

    def end(self) -> None:
        """End the round, and tell those who wait for it."""
        if self._current is not None:
            self._current.set()
            self._current = None

    async def ask_if_due(self) -> bool:
        """Wait for the round under way, or for a new one where the last is a while ago. Returns whether there was one.

        It is not waited for longer than `ASK_TIMEOUT_S`. Cancellation ends only the wait.
        """
        if not self.is_active:
            return False
        over = self._current
        if over is None:
            if trio.current_time() - self._looked_at < MIN_INTERVAL_S:
                return False
            self.want()
            over = self._next
        with trio.move_on_after(ASK_TIMEOUT_S):
            await over.wait()
        return True
