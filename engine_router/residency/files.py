"""The files of residents, as residency sees them: who comes may be read ahead, who goes may be dropped."""

from __future__ import annotations

from typing import Protocol

import trio

from engine_router.engines.base import ResidentId


class Files(Protocol):
    """What can be done about the page cache when one resident makes way for another."""

    async def ahead(self, resident: ResidentId) -> int:
        """Read the files of a resident that is about to start. Returns the bytes read. May be cancelled at any time."""
        ...

    async def behind(self, resident: ResidentId) -> None:
        """Drop the files of a resident that has stopped, where they count as used memory."""
        ...


class NoFiles:
    """Nothing is done about files."""

    async def ahead(self, resident: ResidentId) -> int:  # noqa: ARG002 - see Files
        """Read nothing."""
        await trio.lowlevel.checkpoint()
        return 0

    async def behind(self, resident: ResidentId) -> None:  # noqa: ARG002 - see Files
        """Drop nothing."""
        await trio.lowlevel.checkpoint()
