"""One memory: its gauge, and the other programs in it."""

from __future__ import annotations

from attrs import frozen

from engine_router.residency.other_programs import OtherPrograms
from engine_router.residency.pool_memory import PoolMemory


@frozen(eq=False, repr=False)
class Pool:
    """One memory that residents share."""

    name: str
    memory: PoolMemory
    others: OtherPrograms
