"""The publisher of a state: one snapshot, then JSON Merge Patches, made once for everybody who reads them.

There is no task. Of those who wait for the next patch one at a time looks whether there is one; where nobody reads,
nobody looks. What is published is kept in a bounded ring: who comes back is told what it missed, and who reads slowly
holds no memory of its own: it gets a new snapshot once the ring has gone on without it.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Container
from typing import Final

import trio
from attrs import define, field

from engine_router.dialects.frames import named_event
from engine_router.events import Event, EventHub
from engine_router.web.merge_patch import Json, diff

# Seconds between two patches, at least; and between two looks whether there is anything to tell.
PATCH_INTERVAL_S: Final = 1.0
LOOK_INTERVAL_S: Final = 1.0

# What is kept for those who come back: patches, and their bytes together.
KEPT_PATCHES: Final = 256
KEPT_BYTES: Final = 1_048_576


@define(eq=False, repr=False)
class StatePublisher:
    """Publishes what has changed of a state, at most once a second.

    Attributes:
        render: returns the state as it is now; no member of its objects is null.
        passing: the names of members that change by themselves; see `merge_patch.diff`.
        hub: where what changes the state is told of.
        kinds: the events that make a look worthwhile at once.
        series: tells the numbers of this publisher from those of others.
        interruption: its value is another one where those who wait have to look up.
    """

    render: Callable[[], Awaitable[Json]]
    hub: EventHub
    kinds: tuple[type[Event], ...]
    series: str
    passing: Container[str] = ()
    interruption: Callable[[], object] = lambda: None
    _state: Json = field(factory=dict, init=False)
    _number: int = field(default=0, init=False)
    _looked_at: float = field(default=-math.inf, init=False)
    _published_at: float = field(default=-math.inf, init=False)
    _ring: deque[tuple[int, bytes]] = field(factory=deque, init=False)
    _ring_bytes: int = field(default=0, init=False)
    _watching: trio.Lock = field(factory=trio.Lock, init=False)  # held by the one who waits for all
    _looking: trio.Lock = field(
        factory=trio.Lock, init=False
    )  # held for a look, never while something is waited for

    async def join(self, last_event_id: str = "") -> tuple[int, bytes]:
        """Return what a reader begins with: what it missed since the last event that it has seen, else a snapshot.

        The number goes to `advance` and `since`.
        """
        async with self._looking:
            if trio.current_time() - self._looked_at >= LOOK_INTERVAL_S:
                await self._look()
        number = self._number_of(last_event_id)
        return (self._number, self._snapshot()) if number is None else self.since(number)

    async def advance(self, number: int) -> None:
        """Wait until there is something after a number, or an interruption. Cancellation loses nothing."""
        interruption = self.interruption()
        async with self._watching:
            events = self.hub.subscribe(*self.kinds, buffer=1)
            while self._number == number and self.interruption() == interruption:
                with trio.move_on_after(LOOK_INTERVAL_S):
                    await events.ready()
                await trio.sleep_until(self._published_at + PATCH_INTERVAL_S)
                events.take()
                async with self._looking:
                    await self._look()

    def since(self, number: int) -> tuple[int, bytes]:
        """Return all that was published after a number, and the number of that; a snapshot where it is too much."""
        if number == self._number:
            return number, b""
        if self._ring and self._ring[0][0] <= number + 1:
            return self._number, b"".join(patch for at, patch in self._ring if at > number)
        return self._number, self._snapshot()

    async def _look(self) -> None:
        """Render the state, and publish what is different."""
        before, is_first = self._state, self._looked_at == -math.inf
        self._state = await self.render()
        self._looked_at = trio.current_time()
        patch = {} if is_first else diff(before, self._state, self.passing)
        if not patch:
            return
        self._published_at = self._looked_at
        self._number += 1
        self._keep(self._number, self._event("patch", patch))

    def _keep(self, number: int, patch: bytes) -> None:
        self._ring.append((number, patch))
        self._ring_bytes += len(patch)
        while len(self._ring) > KEPT_PATCHES or self._ring_bytes > KEPT_BYTES:
            self._ring_bytes -= len(self._ring.popleft()[1])

    def _snapshot(self) -> bytes:
        return self._event("snapshot", self._state)

    def _event(self, name: str, data: Json) -> bytes:
        return b"id: %s-%d\n%b" % (self.series.encode(), self._number, named_event(name, data))

    def _number_of(self, event_id: str) -> int | None:
        """Return the number in the id of an event, if it is one of this publisher's that may be gone on from."""
        series, _, digits = event_id.rpartition("-")
        if series != self.series or not re.fullmatch("[0-9]{1,12}", digits):
            return None
        return number if (number := int(digits)) <= self._number else None
