"""The files of residents, as residency sees them: who comes may be read ahead, who goes may be dropped."""

from __future__ import annotations

import logging
import math
from typing import Final, Protocol

import trio
from attrs import define, field

from engine_router.engines.base import ResidentId

logger = logging.getLogger(__name__)

# Seconds for which files that were read ahead are taken to be in memory still.
READ_AGAIN_S: Final = 60.0


class Files(Protocol):
    """The use of the page cache when one resident makes way for another."""

    async def ahead(self, resident: ResidentId, *, is_asleep: bool) -> int:
        """Read the files of a resident that starts or is woken. Returns the bytes read. May be cancelled at any time."""
        ...

    async def behind(self, resident: ResidentId) -> None:
        """Drop the files of a resident that has stopped, where they count as used memory."""
        ...


class NoFiles:
    """Nothing is done about files."""

    async def ahead(self, resident: ResidentId, *, is_asleep: bool) -> int:  # noqa: ARG002 - see Files
        """Read nothing."""
        await trio.lowlevel.checkpoint()
        return 0

    async def behind(self, resident: ResidentId) -> None:  # noqa: ARG002 - see Files
        """Drop nothing."""
        await trio.lowlevel.checkpoint()


@define(eq=False, repr=False)
class ReadAhead:
    """The files that are read ahead now, and when others were."""

    _reading: dict[ResidentId, trio.CancelScope] = field(factory=dict)
    _read_at: dict[ResidentId, float] = field(factory=dict)

    def begin(self, resident: ResidentId) -> trio.CancelScope | None:
        """Return the scope in which to read a resident's files; None where they are read, or were of late."""
        last_at = self._read_at.get(resident, -math.inf)
        if resident in self._reading or trio.current_time() - last_at < READ_AGAIN_S:
            return None
        scope = self._reading[resident] = trio.CancelScope()
        return scope

    async def read(
        self, files: Files, resident: ResidentId, scope: trio.CancelScope, is_asleep: bool
    ) -> None:
        """Read the files of a resident, in the scope that `begin` returned."""
        try:
            with scope:
                await files.ahead(resident, is_asleep=is_asleep)
        except Exception:
            # Merely slower without.
            logger.exception("the files of %s cannot be read ahead", resident)
        finally:
            del self._reading[resident]
            self._read_at[resident] = trio.current_time()

    def stop(self, resident: ResidentId) -> None:
        """Stop reading the files of a resident: it has them."""
        if (scope := self._reading.get(resident)) is not None:
            scope.cancel()


async def drop_files(files: Files, resident: ResidentId) -> None:
    """Drop the files of a resident that has stopped, as far as that can be done."""
    try:
        await files.behind(resident)
    except Exception:
        # The memory may be found missing then, and that is told.
        logger.exception("the files of %s cannot be dropped", resident)
