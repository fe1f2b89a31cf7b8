"""What starts and stops do to free memory, told apart although one gauge shows the sum of them all.

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
from engine_router.residency.resident_task import ResidentTask


@define(eq=False)
class StopGroup:
    """Stops that overlap.

    Attributes:
        baseline: free memory before the first of them; None where it could not be read.
        lives: those whose memory is not back yet.
        gone_bytes: what those that have gone should give back together; None where that is unknown.
        is_single: there was only one.
        is_disturbed: a start overlapped.
    """

    baseline: MemoryReading | None
    lives: set[ResidentTask] = field(factory=set)
    gone_bytes: int | None = 0
    is_single: bool = True
    is_disturbed: bool = False


class MemoryAttribution:
    """The starts and stops under way in one pool."""

    def __init__(self) -> None:
        self._ebb: StopGroup | None = None
        self._starting: set[ResidentTask] = set()
        self._ended: set[ResidentTask] = set()
        self._low = math.inf  # free memory once all starts are done, in bytes

    # Starts.

    def still_free(self, reading: MemoryReading) -> float:
        """Return what of the free memory no start under way is about to take, in bytes."""
        return min(float(reading.available_bytes), self._low)

    def starts(self, life: ResidentTask, still_free: float, need_bytes: float) -> None:
        """Note a start, which will take memory from what is still free."""
        if self._starting or self._ended or self._ebb is not None:
            life.is_disturbed = True
        self._disturb()
        self._starting.add(life)
        self._low = still_free - need_bytes

    def started(self, life: ResidentTask) -> None:
        """Note that a start is over, well or not."""
        self._starting.discard(life)
        if not self._starting:
            self._low = math.inf

    # Stops.

    @property
    def group(self) -> StopGroup | None:
        """The stops under way, where there are any."""
        return self._ebb

    def ebbs(self, life: ResidentTask, reading: MemoryReading | None) -> None:
        """Note a stop, and give it its baseline."""
        if self._ebb is None:
            self._ebb = StopGroup(reading)
        else:
            self._ebb.is_single = False
        if self._starting or self._ended:
            self._disturb()
        self._ebb.lives.add(life)
        life.baseline = self._ebb.baseline

    def ends(self, life: ResidentTask) -> None:
        """Note an end that nobody asked for, and so without a baseline."""
        self._ended.add(life)
        self._disturb()

    def has_gone(self, life: ResidentTask, expected_bytes: int | None) -> int | None:
        """Note the end of a life. Returns what should be back since its baseline; None where unknown."""
        group = self._ebb
        if group is None or life not in group.lives:
            return expected_bytes
        if expected_bytes is None or group.gone_bytes is None or group.is_disturbed:
            group.gone_bytes = None
        else:
            group.gone_bytes += expected_bytes
        return group.gone_bytes

    def is_clear(self, life: ResidentTask) -> bool:
        """Tell whether what was seen of a stop was this life's doing alone."""
        group = self._ebb
        return group is None or life not in group.lives or (group.is_single and not group.is_disturbed)

    def settled(self, life: ResidentTask) -> None:
        """Note that a stop is over, or that the memory of who ended unasked is not waited for any more."""
        self._ended.discard(life)
        if self._ebb is not None:
            self._ebb.lives.discard(life)
            if not self._ebb.lives:
                self._ebb = None

    def _disturb(self) -> None:
        for life in self._starting:
            life.is_disturbed = True
        if self._ebb is not None:
            self._ebb.is_disturbed = True
