"""Memory that exists only in the program, a gauge of itself: for tests of residency under a virtual clock.

It comes back late, as real memory does, and it objects to what a router must never do: two residents in one memory, or
a start into memory that is not back. An objection is raised where it happens, and kept in `SimulatedMemory.faults`,
since a supervisor survives the errors of its engines.
"""

from __future__ import annotations

import math

import trio
from attrs import define, field, frozen

from engine_router.engines.base import ResidentId
from engine_router.memory import GaugeUnreadable, MemoryReading

GIB = 2**30


@frozen
class Reclaim:
    """The speed at which memory comes back once its owner has gone.

    Attributes:
        delay_s: seconds in which nothing happens.
        bytes_per_s: speed after that.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf


@frozen
class _Return:
    """Memory on its way back."""

    size_bytes: int
    freed_at: float
    reclaim: Reclaim

    def pending(self, now: float) -> int:
        """Return the bytes that are not back yet."""
        spent_s = now - self.freed_at - self.reclaim.delay_s
        if spent_s < 0:
            return self.size_bytes
        if math.isinf(self.reclaim.bytes_per_s):
            return 0
        return max(0, self.size_bytes - int(spent_s * self.reclaim.bytes_per_s))


@define(eq=False)
class SimulatedMemory:
    """The memory of one pool.

    Attributes:
        total_bytes: its size.
        reclaim: how memory that is freed from now on comes back.
        kept_ratio: part of what is freed that never comes back by the gauge, such as page cache.
        readable: False makes the gauge unreadable.
        read_s: seconds that a reading takes.
        tolerance: part of what was freed last that may still be on its way when the next start takes memory.
        others_bytes: what other tenants hold.
        shared: residents may be there together, as long as they fit.
        held: what each resident holds.
        faults: every objection.
    """

    total_bytes: int = 128 * GIB
    reclaim: Reclaim = field(factory=Reclaim)
    kept_ratio: float = 0.0
    readable: bool = True
    read_s: float = 0.0
    tolerance: float = 0.05
    others_bytes: int = 0
    shared: bool = False
    held: dict[ResidentId, int] = field(factory=dict)
    faults: list[str] = field(factory=list)
    _returning: list[_Return] = field(factory=list)
    _kept_bytes: int = 0

    @property
    def name(self) -> str:
        """The name of the gauge."""
        return "simulated"

    @property
    def available_bytes(self) -> int:
        """Free memory now."""
        return self.total_bytes - sum(self.held.values()) - self.pending_bytes - self._reserved()

    @property
    def pending_bytes(self) -> int:
        """Memory that was freed and is not back yet."""
        now = trio.current_time()
        return sum(part.pending(now) for part in self._returning)

    async def read(self) -> MemoryReading:
        """Read free memory.

        Raises:
            GaugeUnreadable: `readable` is False.
        """
        await trio.sleep(self.read_s)
        if not self.readable:
            raise GaugeUnreadable("the simulated gauge is not readable now")
        return MemoryReading(self.available_bytes, self.total_bytes)

    def take(self, resident: ResidentId, size_bytes: int) -> None:
        """Give memory to a resident that starts.

        Raises:
            AssertionError: another resident is there, or it does not fit, or the last one's memory is not back.
        """
        if self.shared:
            if size_bytes > self.available_bytes + max(64 * 2**20, size_bytes // 10):
                self.object(f"{resident} starts, and only {self.available_bytes / GIB:.1f} GiB are free")
            self.held[resident] = size_bytes
            return
        if self.held:
            self.object(f"{resident} starts beside {', '.join(map(str, self.held))}")
        last = self._returning[-1].size_bytes if self._returning else 0
        pending = self.pending_bytes
        if pending > max(last * self.tolerance, 64 * 2**20):
            self.object(f"{resident} starts while {pending / GIB:.1f} GiB are not back")
        # A page cache is dropped under pressure.
        self._kept_bytes = min(self._kept_bytes, max(0, self.available_bytes + self._kept_bytes - size_bytes))
        self.held[resident] = size_bytes

    def free(self, resident: ResidentId) -> None:
        """Take the memory of a resident that has gone; it comes back as `reclaim` says."""
        size = self.held.pop(resident)
        kept = int(size * self.kept_ratio)
        self._kept_bytes += kept
        still = [part for part in self._returning if self.shared and part.pending(trio.current_time())]
        self._returning = [*still, _Return(size - kept, trio.current_time(), self.reclaim)]

    def object(self, what: str) -> None:
        """Note a misuse and raise it."""
        self.faults.append(what)
        raise AssertionError(what)

    def _reserved(self) -> int:
        return self.others_bytes + self._kept_bytes
