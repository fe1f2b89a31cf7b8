"""The residents that sleep: what runs of them has no task, and still holds a little memory."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

import trio
from attrs import define, field

from engine_router.engines.base import Engine, ResidentId, Supervision
from engine_router.errors import EngineError, EngineStopFailed

logger = logging.getLogger(__name__)


@define(eq=False, repr=False)
class SleepStatus:
    """What is known of a resident that sleeps.

    Attributes:
        since: when it fell asleep, by trio's clock.
        kept: the bytes that it has of each of its pools still; 0 where that is not known.
    """

    since: float
    kept: dict[str, int]


@define(eq=False, repr=False)
class Sleepers:
    """The residents that fell asleep, and those that are being cleared away."""

    _engines: Mapping[str, Engine]
    _asleep: dict[ResidentId, SleepStatus] = field(factory=dict)
    _clearing: dict[ResidentId, trio.Event] = field(factory=dict)

    def add(self, resident: ResidentId, pools: Iterable[str]) -> None:
        """Note that a resident fell asleep, which holds something of these pools still."""
        self._asleep[resident] = SleepStatus(trio.current_time(), dict.fromkeys(pools, 0))

    def note_kept(self, resident: ResidentId, pool: str, size_bytes: int) -> None:
        """Note how much of a pool a resident keeps that sleeps."""
        if (status := self._asleep.get(resident)) is not None:
            status.kept[pool] = size_bytes

    def kept(self, resident: ResidentId) -> Mapping[str, int]:
        """Return what a resident has of each pool already since it sleeps there, in bytes, as far as is known."""
        status = self._asleep.get(resident)
        return {} if status is None else status.kept

    @property
    def all(self) -> Mapping[ResidentId, SleepStatus]:
        """The residents that sleep, the one that has slept longest first."""
        return self._asleep

    def take(self, residents: Iterable[ResidentId]) -> None:
        """Take out residents, which are cleared away now."""
        for resident in residents:
            self._asleep.pop(resident, None)

    async def leave(self, resident: ResidentId, pools: Collection[str]) -> None:
        """End what sleeps of a resident in other pools than these, in which it starts now.

        Raises:
            EngineStopFailed: it could not be ended.
        """
        if (status := self._asleep.get(resident)) is None or status.kept.keys() == set(pools):
            return
        if (left := await self.clear_away(resident)) is not None:
            raise left

    async def taken_up(self, resident: ResidentId) -> None:
        """Note that a task takes up a resident, once it is not being cleared away any more."""
        if (clearing := self._clearing.get(resident)) is not None:
            await clearing.wait()
        self._asleep.pop(resident, None)

    async def clear_away(self, resident: ResidentId) -> EngineStopFailed | None:
        """End what runs of a resident without a task. Return why it could not be ended."""
        supervision = Supervision(lambda _: None)
        supervision.stop(for_good=True)
        self._asleep.pop(resident, None)
        cleared = self._clearing[resident] = trio.Event()
        try:
            await self._engines[resident.engine].run_resident(resident, supervision, adopt=True)
        except EngineStopFailed as failure:
            return failure
        except EngineError as error:
            logger.warning("%s", error)  # nothing of it is left
        except Exception:
            logger.exception("engine %s: unexpected error", resident.engine)
        finally:
            if self._clearing.get(resident) is cleared:
                del self._clearing[resident]
            cleared.set()
        return None
