"""Rounds of a task that belongs to no client: those who need to know wait for one, and may leave without ending it."""

from __future__ import annotations

import math
from typing import Final

import trio
from attrs import define, field

MIN_INTERVAL_S: Final = 2.0
"""An unknown model is worth another round, but not more often than this."""


@define(eq=False, repr=False)
class Rounds:
    """The rounds of one task, which calls `begin` and `end`. Cancellation of a wait ends only the wait."""

    _began_at: float = -math.inf
    _wanted: trio.Event = field(factory=trio.Event)
    _next: trio.Event = field(factory=trio.Event)  # set when the round after this one is over
    _current: trio.Event | None = None
    _is_closed: bool = False

    def want(self) -> None:
        """Have a round begun soon."""
        self._wanted.set()

    async def until_wanted(self) -> None:
        """Wait until somebody wants a round."""
        await self._wanted.wait()

    def begin(self) -> None:
        """Begin a round: who asks from now on waits for its end."""
        self._began_at = trio.current_time()
        self._current, self._next, self._wanted = self._next, trio.Event(), trio.Event()

    def end(self) -> None:
        """End the round, and tell those who wait for it."""
        if self._current is not None:
            self._current.set()
            self._current = None

    def close(self) -> None:
        """End all waits, now and later: the task is over."""
        self._is_closed = True
        self.end()
        self._next.set()

    async def whole(self) -> None:
        """Have a whole round begun, and wait for its end."""
        self.want()
        await self._until(self._next)

    async def if_due(self) -> bool:
        """Wait for the round under way, or for a new one where that is wanted already, or the last is a while ago.

        Returns whether there was one.
        """
        if self._current is not None:
            await self._until(self._current)
            return True
        if not self._wanted.is_set() and trio.current_time() - self._began_at < MIN_INTERVAL_S:
            return False
        await self.whole()
        return True

    async def _until(self, over: trio.Event) -> None:
        if self._is_closed:
            await trio.lowlevel.checkpoint()
        else:
            await over.wait()
