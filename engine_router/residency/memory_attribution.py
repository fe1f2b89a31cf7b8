"""The attribution of memory to starts and stops, although one gauge shows the sum of them all.

Where one resident at a time comes or goes, a reading before and one after say what it took or gave back. With
several at once:

- Stops that overlap share the baseline of the first, and each waits for all that has gone since then.
- Starts that overlap count with the level to which free memory will have fallen once they are done, since
  what they have not taken yet still looks free.
- What was measured while a start and a stop, or two starts, overlapped is worth nothing, and not learned. The
  same goes for a start beside somebody who ends unasked, until the memory of that one is back.
"""

from __future__ import annotations

import math

from attrs import define, field

from engine_router.memory import MemoryReading
from engine_router.residency.resident_task import MemoryShare


@define(eq=False, repr=False)
class StopGroup:
    """Stops that overlap.

    Attributes:
        baseline: free memory before the first of them; None where it could not be read.
        shares: those of the tasks whose memory is not back yet.
        gone_bytes: what those that have gone should give back together; None where that is unknown.
        is_single: there was only one.
        is_disturbed: a start overlapped.
    """

    baseline: MemoryReading | None
    shares: set[MemoryShare] = field(factory=set)
    gone_bytes: int | None = 0
    is_single: bool = True
    is_disturbed: bool = False


class MemoryAttribution:
    """The starts and stops under way in one pool."""

    def __init__(self) -> None:
        self._group: StopGroup | None = None
        self._starting: set[MemoryShare] = set()
        self._ended: set[MemoryShare] = set()
        self._low = math.inf  # free memory once all starts are done, in bytes

    # Starts.

    def still_free(self, reading: MemoryReading) -> float:
        """Return what of the free memory no start under way is about to take, in bytes."""
        return min(float(reading.available_bytes), self._low)

    def starts(self, share: MemoryShare, still_free: float, need_bytes: float) -> None:
        """Note a start, which will take memory from what is still free."""
        if self._starting or self._ended or self._group is not None:
            share.is_disturbed = True
        self.disturb()
        self._starting.add(share)
        self._low = still_free - need_bytes

    def started(self, share: MemoryShare) -> None:
        """Note that a start is over, well or not."""
        self._starting.discard(share)
        if not self._starting:
            self._low = math.inf

    # Stops.

    @property
    def group(self) -> StopGroup | None:
        """The stops under way, where there are any."""
        return self._group

    def stops(self, share: MemoryShare, reading: MemoryReading | None) -> None:
        """Note a stop, and give it its baseline."""
        if self._group is None:
            self._group = StopGroup(reading)
        else:
            self._group.is_single = False
        if self._starting or self._ended:
            self.disturb()
        self._group.shares.add(share)
        share.baseline = self._group.baseline

    def ends(self, share: MemoryShare) -> None:
        """Note an end that nobody asked for, and so without a baseline."""
        self._ended.add(share)
        self.disturb()

    def has_gone(self, share: MemoryShare, expected_bytes: int | None) -> int | None:
        """Note the end of a task. Returns what should be back since its baseline; None where unknown."""
        group = self._group
        if group is None or share not in group.shares:
            return expected_bytes
        if expected_bytes is None or group.gone_bytes is None or group.is_disturbed:
            group.gone_bytes = None
        else:
            group.gone_bytes += expected_bytes
        return group.gone_bytes

    def is_clear(self, share: MemoryShare) -> bool:
        """Tell whether what was seen of a stop was this task's doing alone."""
        group = self._group
        return group is None or share not in group.shares or (group.is_single and not group.is_disturbed)

    def settled(self, share: MemoryShare) -> None:
        """Note that a stop is over, or that the memory of who ended unasked is not waited for any more."""
        self._ended.discard(share)
        if self._group is not None:
            self._group.shares.discard(share)
            if not self._group.shares:
                self._group = None

    def disturb(self) -> None:
        """Note that what is seen of the starts and stops under way is not their doing alone."""
        for share in self._starting:
            share.is_disturbed = True
        if self._group is not None:
            self._group.is_disturbed = True
