"""The protocol of a gauge, which reads the free memory of one pool, in bytes.

A gauge that cannot read raises `GaugeUnreadable`. It never returns a number that it did not measure:
a zero or an old value in place of an error would look like memory that was taken or freed.
"""

from __future__ import annotations

from typing import Protocol

import attrs


class GaugeUnreadable(Exception):
    """The free memory could not be read; the message says of what, why, and where known the remedy.

    It means that nothing is known, never that memory is free or taken. The next read may succeed.
    """


@attrs.frozen
class MemoryReading:
    """One look at a pool's memory."""

    available_bytes: int
    """The memory that a new engine could take now, in bytes."""
    total_bytes: int | None = None
    """The size of the whole pool in bytes; None where the gauge cannot tell."""
    measured: bool = True
    """False for the stand-in of a pool that is not measured: its numbers mean nothing."""


class Gauge(Protocol):
    """A gauge of the free memory of one pool."""

    @property
    def name(self) -> str:
        """The name for logs and messages."""

    async def read(self) -> MemoryReading:
        """Read the memory now.

        Raises:
            GaugeUnreadable: nothing could be read.

        Cancelling it leaves nothing behind except, for a gauge that asks in a thread, that thread
        until its call returns.
        """


def footprint(before: MemoryReading, after: MemoryReading) -> int:
    """Give the bytes taken between two readings, 0 where memory grew or was not measured.

    Made for the readings just before an engine's start and once it is ready. For the bytes that a stop
    gave back, swap the arguments.
    """
    if not (before.measured and after.measured):
        return 0
    return max(0, before.available_bytes - after.available_bytes)
