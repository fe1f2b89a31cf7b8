"""The registry of sleeping residents, which are watched, woken, or ended with the router.

`Engine.run_resident` returns when its resident falls asleep. From then on the resident is the registry's: a task of
its own watches it, so that what it writes is read and its death is noticed, and whoever takes it out again has it for
itself. At no point is it nobody's: what is cancelled on the way is killed.
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

S = TypeVar("S", bound="SleepingResident")


class SleepingResident(Protocol):
    """A resident that sleeps."""

    @property
    def is_ours(self) -> bool:
        """True where the router started it, and so has to stop it when it goes."""
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


@define(eq=False, repr=False)
class _SleepEntry:
    """A resident of the registry, and the task that watches it.

    Attributes:
        scope: the task's.
        left: set when the task has ended.
        is_taken: somebody wakes or stops the resident now.
        has_died: it has died by itself.
    """

    sleeper: SleepingResident
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    left: trio.Event = field(factory=trio.Event)
    is_taken: bool = False
    has_died: bool = False


class SleepRegistry:
    """The residents that sleep; `run` must be running meanwhile, else nobody may sleep."""

    def __init__(self) -> None:
        self._entries: dict[ResidentId, _SleepEntry] = {}
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<SleepRegistry {', '.join(map(str, self._entries)) or 'empty'}>"

    @property
    def is_open(self) -> bool:
        """True while residents may be put to sleep."""
        return self._nursery is not None

    @property
    def residents(self) -> tuple[ResidentId, ...]:
        """The residents that sleep here."""
        return tuple(self._entries)

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

    def put(self, resident: ResidentId, sleeper: SleepingResident) -> None:
        """Take charge of a resident that has fallen asleep. Without a checkpoint, so that none is lost."""
        if self._nursery is None:
            sleeper.kill()
            return
        entry = self._entries[resident] = _SleepEntry(sleeper)
        self._nursery.start_soon(self._look_after, resident, entry)

    async def take(self, resident: ResidentId, kind: type[S]) -> S | None:
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

    async def _take(self, resident: ResidentId) -> SleepingResident | None:
        entry = self._entries.pop(resident, None)
        if entry is None:
            return None
        entry.is_taken = True
        entry.scope.cancel()
        try:
            await entry.left.wait()
        except trio.Cancelled:
            entry.sleeper.kill()
            raise
        return None if entry.has_died else entry.sleeper

    async def _look_after(self, resident: ResidentId, entry: _SleepEntry) -> None:
        try:
            with entry.scope:
                how = await entry.sleeper.watch()
                entry.has_died = True
                logger.warning("%s %s while it slept; it is started anew when it is needed", resident, how)
        finally:
            if not entry.is_taken:
                entry.sleeper.kill()
                self._entries.pop(resident, None)
            entry.left.set()

    async def _end(self, resident: ResidentId) -> None:
        sleeper = await self._take(resident)
        if sleeper is None or not sleeper.is_ours:
            return
        try:
            await sleeper.end()
        except EngineError as error:
            logger.error("%s; it is left behind", error)  # noqa: TRY400 - our words say it all
