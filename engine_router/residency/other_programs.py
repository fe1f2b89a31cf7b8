"""The programs beside the residents that hold the memory of a pool: looked at when somebody asks, every few seconds at most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import define, field

from engine_router.memory import Holder, MemoryHolders, Own
from engine_router.residency.pool_memory import PoolMemory

# Seconds between two looks, at least: it goes through all processes. A gauge that runs a command costs one more.
LOOK_INTERVAL_S: Final = 5.0
_COMMAND_INTERVAL_S: Final = 60.0
# Nobody waits longer for a look. Seconds.
LOOK_TIMEOUT_S: Final = 1.0

# The most programs that one sentence names.
_NAMED: Final = 3


@define(eq=False, repr=False)
class OtherPrograms:
    """The other programs in one pool.

    Attributes:
        memory: the pool's.
        own: returns what belongs to the router and its residents.
        listed: those that held most at the last look; None where nobody has looked, or nothing can be told.
    """

    memory: PoolMemory
    own: Callable[[], Own]
    holders: MemoryHolders = field()
    listed: tuple[Holder, ...] | None = None
    _looked_at: float = -math.inf
    _looking: trio.Lock = field(factory=trio.Lock)

    @holders.default
    def _of_gauge(self) -> MemoryHolders:
        return MemoryHolders(self.memory.gauge)

    async def look(self) -> tuple[Holder, ...] | None:
        """Look who holds memory, and how much is free, unless that was done just now. Returns `listed`.

        Takes a second at most; what was seen before is returned where there is no answer by then.
        """
        with trio.move_on_after(LOOK_TIMEOUT_S):
            async with self._looking:
                await self._look()
        return self.listed

    async def _look(self) -> None:
        gauge, now = self.memory.gauge, trio.current_time()
        if now - self._looked_at < LOOK_INTERVAL_S:
            return
        self._looked_at = now
        pause_s = _COMMAND_INTERVAL_S if gauge.name.startswith("command") else LOOK_INTERVAL_S
        if now - self.memory.read_at >= pause_s:
            await self.memory.read_gauge()
        if self.holders.can_tell:
            self.listed = await self.holders.read(self.own())


def in_words(others: Sequence[Holder] | None) -> str:
    """Return who holds memory, for people; empty where that is not known.

    >>> in_words([Holder(pid=7, name="python", held_bytes=3 * 2**30), Holder(pid=9, name="game")])
    'python (pid 7) holds 3.0 GiB, game (pid 9) holds some'
    """
    named = [
        f"{one.name} (pid {one.pid}) holds {'some' if one.held_bytes is None else _gib(one.held_bytes)}"
        for one in (others or ())[:_NAMED]
    ]
    return ", ".join(named)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
