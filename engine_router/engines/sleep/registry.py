"""Where the sleeping residents are between two lives: looked after, woken, or ended with the router.

A life ends when its resident falls asleep, and with it the task that lived with it. From then on the
resident is the dormitory's: a task of its own watches it, so that what it writes is read and its death is
noticed, and whoever takes it out again has it for itself. At no point is it nobody's: what is cancelled on
the way is killed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol, TypeVar

import trio
from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineError

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound="Sleeper")


class Sleeper(Protocol):
    """A resident that sleeps."""

    @property
    def is_ours(self) -> bool:
        """Whether the router started it, and so has to stop it when it goes."""
        ...

    async def watch(self) -> str:
        """Look after it until it dies by itself; say how it did. Nothing is left of it then.

        Cancellation leaves it asleep.
        """
        ...

    async def end(self) -> object:
        """Stop it really, and wait until it is gone.

        Raises:
            EngineError: it could not be stopped.
        """
        ...

    def kill(self) -> None:
        """End it at once, without waiting, as far as it is the router's. Silent where it is gone."""
        ...


@define(eq=False)
class _SleepEntry:
    sleeper: Sleeper
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    left: trio.Event = field(factory=trio.Event)
    is_taken: bool = False
    has_died: bool = False


class SleepRegistry:
    """Keeps what sleeps; `run` must be running meanwhile, else nobody may sleep."""

    def __init__(self) -> None:
        self._beds: dict[ResidentId, _SleepEntry] = {}
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Dormitory {', '.join(map(str, self._beds)) or 'empty'}>"

    @property
    def is_open(self) -> bool:
        """Whether a resident may be put to bed."""
        return self._nursery is not None

    @property
    def residents(self) -> tuple[ResidentId, ...]:
        """Who sleeps here."""
        return tuple(self._beds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the sleepers. Cancellation kills them without waiting."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def close(self) -> None:
        """Stop all sleepers that are the router's, at the same time, and let nobody sleep any more. Failures are logged.

        Cancellation kills those that are left.
        """
        self._nursery, is_open = None, self._nursery is not None
        if is_open:
            await self.clear(self.residents)

    async def clear(self, residents: Iterable[ResidentId]) -> None:
        """Stop some sleepers, at the same time, as far as they are the router's. Failures are logged.

        Cancellation kills those that are left.
        """
        async with trio.open_nursery() as ends:
            for resident in residents:
                ends.start_soon(self._end, resident)

    def put(self, resident: ResidentId, sleeper: Sleeper) -> None:
        """Take charge of a resident that has fallen asleep. Without a checkpoint, so that none is lost."""
        if self._nursery is None:
            sleeper.kill()
            return
        bed = self._beds[resident] = _SleepEntry(sleeper)
        self._nursery.start_soon(self._look_after, resident, bed)

    async def take(self, resident: ResidentId, kind: type[Kind]) -> Kind | None:
        """Hand a sleeper over to whoever wakes or stops it; None where none is left.

        One of another kind, from before a change of the configuration, is stopped.

        Raises:
            EngineError: that could not be done.

        Cancellation kills it.
        """
        sleeper = await self._take(resident)
        if sleeper is None or isinstance(sleeper, kind):
            return sleeper
        await sleeper.end()
        return None

    async def _take(self, resident: ResidentId) -> Sleeper | None:
        bed = self._beds.pop(resident, None)
        if bed is None:
            return None
        bed.is_taken = True
        bed.scope.cancel()
        try:
            await bed.left.wait()
        except trio.Cancelled:
            bed.sleeper.kill()
            raise
        return None if bed.has_died else bed.sleeper

    async def _look_after(self, resident: ResidentId, bed: _SleepEntry) -> None:
        try:
            with bed.scope:
                how = await bed.sleeper.watch()
                bed.has_died = True
                logger.warning("%s %s while it slept; it is started anew when it is needed", resident, how)
        finally:
            if not bed.is_taken:
                bed.sleeper.kill()
                self._beds.pop(resident, None)
            bed.left.set()

    async def _end(self, resident: ResidentId) -> None:
        sleeper = await self._take(resident)
        if sleeper is None or not sleeper.is_ours:
            return
        try:
            await sleeper.end()
        except EngineError as error:
            logger.error("%s; it is left behind", error)  # noqa: TRY400 - our words say it all
