"""The residents that sleep: what runs of them has no task, and still holds a little memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio
from attrs import define, field

from engine_router.engines.base import Engine, ResidentId, Supervision
from engine_router.errors import EngineError, EngineStopFailed

logger = logging.getLogger(__name__)


@define(eq=False, repr=False)
class Sleepers:
    """The residents that fell asleep, and those that are being cleared away."""

    _engines: Mapping[str, Engine]
    _asleep: dict[ResidentId, None] = field(factory=dict)
    _clearing: dict[ResidentId, trio.Event] = field(factory=dict)

    def add(self, resident: ResidentId) -> None:
        """Note that a resident fell asleep."""
        self._asleep[resident] = None

    def take_others(self, resident: ResidentId) -> list[ResidentId]:
        """Take out all residents that sleep but this one. Returns them, to be cleared away."""
        others = [other for other in self._asleep if other != resident]
        for other in others:
            del self._asleep[other]
        return others

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
