"""The memory of a pool as people want to see it: who has how much of it."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from engine_router.memory import MemoryReading


@frozen(kw_only=True)
class MemoryStatus:
    """The memory of a pool, in bytes. None: unknown.

    Attributes:
        total_bytes: all of it.
        free_bytes: what a start could take now.
        foreign_bytes: what neither residents nor sleepers have.
        asleep_bytes: what is held for residents that sleep.
    """

    total_bytes: int | None = None
    free_bytes: int | None = None
    foreign_bytes: int | None = None
    asleep_bytes: int | None = None


def memory_status(
    reading: MemoryReading | None, held: Iterable[int | None], asleep: Iterable[int | None]
) -> MemoryStatus:
    """Return who has how much.

    Args:
        reading: the gauge's; None where it cannot be read.
        held: what each resident has that is present.
        asleep: what each one has that sleeps.
    """
    slept_bytes = _sum(asleep)
    if reading is None or not reading.measured:
        return MemoryStatus(asleep_bytes=slept_bytes)
    own = _sum((_sum(held), slept_bytes))
    foreign = None
    if reading.total_bytes is not None and own is not None:
        foreign = max(0, reading.total_bytes - reading.available_bytes - own)
    return MemoryStatus(
        total_bytes=reading.total_bytes,
        free_bytes=reading.available_bytes,
        foreign_bytes=foreign,
        asleep_bytes=slept_bytes,
    )


def _sum(sizes: Iterable[int | None]) -> int | None:
    """Return the sum; None where one of them is unknown."""
    known = list(sizes)
    return None if None in known else sum(filter(None, known))
