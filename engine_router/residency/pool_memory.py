"""The memory of one pool: what is free, what each resident takes and gives back, and what is still on its way."""

from __future__ import annotations

import logging
import math

import trio

from engine_router.memory import (
    Gauge,
    GaugeUnreadable,
    MemoryNotReturned,
    MemoryReading,
    SettleOutcome,
    SettleResult,
    footprint,
    most_taken,
    settle,
)
from engine_router.residency.measurements import Footprint
from engine_router.residency.memory_attribution import MemoryAttribution
from engine_router.residency.resident_task import MemoryShare

logger = logging.getLogger(__name__)

# A gauge that hangs (a command, a driver) must not hold up a start or a stop, which only want a figure.
GAUGE_TIMEOUT_S = 1.0

# What a settle did not wait for is back by then. Seconds.
LATE_MEMORY_S = 1.0


class PoolMemory:
    """The gauge of one pool, and what its readings say of each resident.

    Attributes:
        last: its last reading; None where it could not be read.
        read_at: when that was, by trio's clock.
    """

    def __init__(self, name: str, gauge: Gauge) -> None:
        self.name = name
        self.gauge = gauge
        self.last: MemoryReading | None = None
        self.read_at = -math.inf
        self._attribution = MemoryAttribution()
        self._unmeasured: set[MemoryShare] = set()
        self._late_bytes = 0
        self._settled_at = -math.inf

    async def read_gauge(self) -> MemoryReading | None:
        """Read free memory; None where it cannot be read now."""
        reading = None
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            try:
                reading = await self.gauge.read()
            except GaugeUnreadable as error:
                logger.warning("pool %s: %s", self.name, error)
        self.last, self.read_at = reading, trio.current_time()
        return reading

    async def free_before_start(self, share: MemoryShare) -> float:
        """Return the free memory that a start may count on, in bytes; infinity where nobody measures.

        A settle ends when nearly all is back. Were the rest forgotten, each start in a row would seem to
        take a little less than the one before, and each settle be content with a little less.

        Nothing is noted, and so nothing started, while it is being measured what another start took.
        """
        if share.before is None and trio.current_time() - self._settled_at < LATE_MEMORY_S:
            share.late_bytes = self._late_bytes
        while True:
            share.before = await self.read_gauge()
            if not self._unmeasured:
                break
            await self._until_all_are_measured()
        if share.before is None or not share.before.measured:
            return math.inf
        return self._attribution.still_free(share.before)

    def starts(self, share: MemoryShare, free_bytes: float, need_bytes: int) -> None:
        """Note a start, in the step in which its free memory was looked at."""
        self._attribution.starts(share, free_bytes, need_bytes)

    def disturb(self) -> None:
        """Note that somebody else comes or goes: what is measured of starts and stops under way is worth nothing."""
        self._attribution.disturb()

    def start_succeeded(self, share: MemoryShare) -> None:
        """Note that a start is done; `measure_start` has to follow, and until then nobody else comes or goes."""
        self._unmeasured.add(share)

    def woke(self, share: MemoryShare) -> None:
        """Note that a resident was woken: what it takes cannot be told by that."""
        self._attribution.started(share)
        share.is_measured.set()

    def ended(self, share: MemoryShare) -> None:
        """Note the end of a task, be it asked for or not."""
        share.task.has_ended = True
        self._attribution.started(share)
        if share.task.stop_asked_at == math.inf:
            self._attribution.ends(share)

    async def look_before_stop(self, share: MemoryShare) -> bool:
        """Read free memory before a stop. Returns whether the task still runs."""
        group = self._attribution.group
        reading = await self.read_gauge() if group is None else group.baseline
        await self._until_all_are_measured()
        if share.task.has_ended:
            return False  # it ended by itself while the gauge was read
        self._attribution.started(share)
        self._attribution.stops(share, reading)
        return True

    async def measure_start(self, share: MemoryShare, measured: Footprint) -> bool:
        """Measure what a start took, now that it is done, and remember it. Returns whether it could."""
        try:
            after = await self.read_gauge()
            most = await self._most_taken(share)
        finally:
            self._unmeasured.discard(share)
            self._attribution.started(share)
            share.is_measured.set()
        # A slow gauge may have looked when the resident was going already.
        is_whole = not share.task.has_ended and share.task.stop_asked_at == math.inf
        if share.before is None or after is None or not is_whole or share.is_disturbed:
            return False
        taken = min(share.late_bytes + footprint(share.before, after), most)
        share.footprint_bytes = measured.footprint_bytes = int(taken)
        return share.before.measured and after.measured

    async def _most_taken(self, share: MemoryShare) -> float:
        """Return what a resident's processes can have taken at most, whatever other programs took meanwhile."""
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            if share.task.endpoint is not None:
                return await most_taken(self.gauge, share.task.endpoint.pid, share.task.endpoint.base_url)
        return math.inf

    async def _until_all_are_measured(self) -> None:
        while self._unmeasured:
            await next(iter(self._unmeasured)).is_measured.wait()

    async def expected_release(
        self, share: MemoryShare, measured: Footprint, declared_bytes: int | None
    ) -> int | None:
        """Tell how much memory a stop should bring back, in bytes; None where nothing is known.

        What this start took counts first, then what an earlier one took, then what the configuration
        declares. A part may never come back by the gauge's reckoning (page cache, for one): what share came
        back the last time is learned, so that no later settle waits for it again.

        A start that was given up or failed took as much as is missing since then, be it little or much.
        """
        taken = share.footprint_bytes
        if share.task.endpoint is None and share.before is not None:
            if share.baseline is None:
                share.baseline = await self.read_gauge()
                return (
                    footprint(share.before, share.baseline) if share.baseline is not None else declared_bytes
                )
            taken = footprint(share.before, share.baseline)
        if taken is None:
            taken = measured.footprint_bytes
        if taken is None:
            return declared_bytes
        ratio = measured.release_ratio
        return int(taken * ratio) if ratio is not None else taken

    async def settle(
        self, share: MemoryShare, measured: Footprint, expected_bytes: int | None, timeout_s: float
    ) -> tuple[SettleResult | None, str | None]:
        """Wait for the memory of a task that has ended. Returns what was seen, and a warning if any."""
        baseline = share.baseline
        together = self._attribution.has_gone(share, expected_bytes)
        try:
            seen = await settle(
                self.gauge,
                baseline_bytes=baseline.available_bytes if baseline is not None else None,
                expected_bytes=together,
                timeout_s=timeout_s,
            )
        except MemoryNotReturned as error:
            return None, f"{error}; the next start may not fit"
        except GaugeUnreadable as error:
            return None, f"free memory cannot be read: {error}"
        self._late_bytes = seen.missing_bytes if seen.outcome is SettleOutcome.RETURNED else 0
        self._settled_at = trio.current_time()
        if baseline is not None and self._attribution.is_clear(share) and not share.task.is_asleep:
            _learn_ratio(share, measured, seen)
        if seen.outcome is SettleOutcome.SHORT:
            missing = seen.missing_bytes / 2**30
            return (
                seen,
                f"{missing:.1f} GiB did not come back and nothing moves any more; the next start may not fit",
            )
        return seen, None

    def is_clear(self, share: MemoryShare) -> bool:
        """Tell whether what was measured of a stop, or of falling asleep, was this task's doing alone."""
        is_measured = share.baseline is not None and share.baseline.measured
        return is_measured and self._attribution.is_clear(share)

    def stop_failed(self, share: MemoryShare) -> None:
        """Note that a resident is still there, though its stop was asked for."""
        share.task.has_ended = True
        self._attribution.started(share)
        self._attribution.settled(share)

    def has_settled(self, share: MemoryShare) -> None:
        """Note that the memory of a resident that has gone is not waited for any more."""
        self._attribution.settled(share)


def _learn_ratio(share: MemoryShare, measured: Footprint, seen: SettleResult) -> None:
    """Remember which share of a footprint came back, where the settle ended because it did."""
    if not share.footprint_bytes:
        return
    if seen.outcome is SettleOutcome.RETURNED and measured.release_ratio is None:
        return  # the whole of it: nothing to correct
    ratio = max(0.0, min(1.0, seen.released_bytes / share.footprint_bytes))
    if seen.outcome is SettleOutcome.RETURNED:
        # It ended when nearly all was back. To take that for all would make it a little less each time.
        measured.release_ratio = max(measured.release_ratio or 0.0, ratio)
    elif seen.outcome is SettleOutcome.PLATEAU:
        measured.release_ratio = ratio
