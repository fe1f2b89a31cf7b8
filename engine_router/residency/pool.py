"""One memory as the supervisor sees it: its ledger, its gauge, and the lives in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import trio

from engine_router.engines.base import ResidentId
from engine_router.errors import NotEnoughMemory
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
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Ledger
from engine_router.residency.measurements import Measurement
from engine_router.residency.memory_attribution import MemoryAttribution
from engine_router.residency.messages import Ticket
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.swap_tracker import SwapTracker

logger = logging.getLogger(__name__)

# A gauge that hangs (a command, a driver) must not hold up a start or a stop, which only want a figure.
GAUGE_TIMEOUT_S = 1.0

# Seconds between two looks whether there is enough memory for a start.
SHORT_INTERVAL_S = 0.05

# What a settle did not wait for is back by then. Seconds.
LATE_MEMORY_S = 1.0


class Pool:
    """One memory.

    Attributes:
        tasks: the residents that have a task now.
        leases: every lease that is not given back yet, by its ticket.
        gone: the lives that have ended and whose memory is waited for.
        stuck: the lives whose last stop failed.
        settles: the waits for memory that are under way.
    """

    def __init__(self, name: str, ledger: Ledger, gauge: Gauge, swap_tracker: SwapTracker) -> None:
        self.name = name
        self.ledger = ledger
        self.gauge = gauge
        self.swap_tracker = swap_tracker
        self.tasks: dict[ResidentId, ResidentTask] = {}
        self.leases: dict[Ticket, Lease] = {}
        self.gone: dict[ResidentId, ResidentTask] = {}
        self.stuck: dict[ResidentId, ResidentTask] = {}
        self.settles: dict[ResidentId, trio.CancelScope] = {}
        self._attribution = MemoryAttribution()
        self._unmeasured: set[ResidentTask] = set()
        self._late_bytes = 0
        self._settled_at = -math.inf
        self._changed: trio.Event | None = None
        self._told = self._taken = 0

    @property
    def is_closed(self) -> bool:
        """Whether nothing is resident, no memory is waited for, no task lives, and none ever will again."""
        return self.ledger.is_closing and self.ledger.is_empty and not self.tasks

    def note_change(self) -> None:
        """Wake whoever waits for a change; costs next to nothing while nobody does."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def is_behind(self) -> bool:
        """Whether events are on their way to the ledger."""
        return self._taken < self._told

    def note_told(self) -> None:
        """Note an event on its way to the ledger."""
        self._told += 1

    def note_taken(self) -> None:
        """Note that the ledger has taken in the oldest of the events on their way."""
        self._taken += 1

    def note_end(self) -> None:
        """Note that no event will be taken in any more."""
        self._taken = self._told
        self.note_change()

    async def caught_up(self) -> None:
        """Wait until the ledger has taken in everything that was told until now."""
        told = self._told
        await trio.lowlevel.checkpoint()
        while self._taken < told:
            await self.change()

    async def change(self) -> None:
        """Wait until the ledger has taken in another event."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    async def read_gauge(self) -> MemoryReading | None:
        """Read free memory; None where it cannot be read now."""
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            try:
                return await self.gauge.read()
            except GaugeUnreadable as error:
                logger.warning("pool %s: %s", self.name, error)
        return None

    async def look_before_start(
        self,
        task: ResidentTask,
        need_bytes: int | None,
        timeout_s: float,
        on_short: Callable[[int], None],
        least_bytes: int | None = None,
    ) -> None:
        """Read free memory before a start, and wait until there is enough of it.

        A settle ends when nearly all is back. Were the rest forgotten, each start in a row would seem to
        take a little less than the one before, and each settle be content with a little less.

        Args:
            task: what is about to start.
            need_bytes: what has to be free; None where that is not known or nobody counts.
            timeout_s: longest wait for it, in seconds.
            on_short: told how much is missing, as long as some is.
            least_bytes: what it needs for certain, where the rest is a guess: with that it starts in the end.

        Raises:
            NotEnoughMemory: there was too little until the end.

        It ends early where the start is not wanted any more.

        Nothing is noted, and so nothing started, while it is being measured what another start took.
        """
        if trio.current_time() - self._settled_at < LATE_MEMORY_S:
            task.late_bytes = self._late_bytes
        deadline = trio.current_time() + timeout_s
        while True:
            task.before = await self.read_gauge()
            if self._unmeasured:
                await self._until_all_are_measured()
                continue
            free = math.inf
            if task.before is not None and task.before.measured:
                free = self._attribution.still_free(task.before)
            lacking = 0.0 if need_bytes is None else need_bytes - _slack(need_bytes) - free
            missing = int(max(0.0, lacking))  # nothing is lacking where nobody measures
            if missing <= 0 or task.supervision.stop_asked.is_set():
                self._attribution.starts(task, free, need_bytes or 0)
                return
            if trio.current_time() >= deadline and least_bytes is not None and free >= least_bytes:
                self._attribution.starts(task, free, least_bytes)
                return
            if trio.current_time() >= deadline:
                raise NotEnoughMemory(task.resident.engine, need_bytes or 0, int(free), timeout_s)
            on_short(missing)
            await trio.sleep(SHORT_INTERVAL_S)

    def start_succeeded(self, task: ResidentTask) -> None:
        """Note that a start is done; `measure_start` has to follow, and until then nobody else comes or goes."""
        self._unmeasured.add(task)

    def woke(self, task: ResidentTask) -> None:
        """Note that a resident was woken: what it takes cannot be told by that."""
        self._attribution.started(task)
        task.is_measured.set()

    def ended(self, task: ResidentTask) -> None:
        """Note the end of a task, be it asked for or not."""
        self._attribution.started(task)
        if task.stop_asked_at == math.inf:
            self._attribution.ends(task)

    async def look_before_stop(self, task: ResidentTask) -> bool:
        """Read free memory before a stop. Returns whether the life is still there."""
        group = self._attribution.group
        reading = await self.read_gauge() if group is None else group.baseline
        await self._until_all_are_measured()
        if self.tasks.get(task.resident) is not task:
            return False  # it ended by itself while the gauge was read
        self._attribution.started(task)
        self._attribution.stops(task, reading)
        return True

    async def measure_start(self, task: ResidentTask, measured: Measurement) -> bool:
        """Measure what a start took, now that it is done, and remember it. Returns whether it could."""
        try:
            after = await self.read_gauge()
            most = await self._most_taken(task)
        finally:
            self._unmeasured.discard(task)
            self._attribution.started(task)
            task.is_measured.set()
        # A slow gauge may have looked when the resident was going already.
        is_whole = self.tasks.get(task.resident) is task and task.stop_asked_at == math.inf
        if task.before is None or after is None or not is_whole or task.is_disturbed:
            return False
        taken = min(task.late_bytes + footprint(task.before, after), most)
        task.footprint_bytes = measured.footprint_bytes = int(taken)
        return task.before.measured and after.measured

    async def _most_taken(self, task: ResidentTask) -> float:
        """Return what a resident's processes can have taken at most, whatever other programs took meanwhile."""
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            if task.endpoint is not None:
                return await most_taken(self.gauge, task.endpoint.pid, task.endpoint.base_url)
        return math.inf

    async def _until_all_are_measured(self) -> None:
        while self._unmeasured:
            await next(iter(self._unmeasured)).is_measured.wait()

    async def expected_release(
        self, task: ResidentTask | None, measured: Measurement, declared_bytes: int | None
    ) -> int | None:
        """Tell how much memory a stop should bring back, in bytes; None where nothing is known.

        What this start took counts first, then what an earlier one took, then what the configuration
        declares. A part may never come back by the gauge's reckoning (page cache, for one): what share came
        back the last time is learned, so that no later settle waits for it again.

        A start that was given up or failed took as much as is missing since then, be it little or much.
        """
        taken = task.footprint_bytes if task is not None else None
        if task is not None and task.endpoint is None and task.before is not None:
            if task.baseline is None:
                task.baseline = await self.read_gauge()
                return footprint(task.before, task.baseline) if task.baseline is not None else declared_bytes
            taken = footprint(task.before, task.baseline)
        if taken is None:
            taken = measured.footprint_bytes
        if taken is None:
            return declared_bytes
        ratio = measured.release_ratio
        return int(taken * ratio) if ratio is not None else taken

    async def settle(
        self, task: ResidentTask | None, measured: Measurement, expected_bytes: int | None, timeout_s: float
    ) -> tuple[SettleResult | None, str | None]:
        """Wait for the memory of a life that has ended. Returns what was seen, and a warning if any."""
        baseline = task.baseline if task is not None else None
        together = expected_bytes if task is None else self._attribution.has_gone(task, expected_bytes)
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
        if (
            task is not None
            and baseline is not None
            and self._attribution.is_clear(task)
            and not task.is_asleep
        ):
            _learn_ratio(task, measured, seen)
        if seen.outcome is SettleOutcome.SHORT:
            missing = seen.missing_bytes / 2**30
            return (
                seen,
                f"{missing:.1f} GiB did not come back and nothing moves any more; the next start may not fit",
            )
        return seen, None

    def engines(self) -> Iterator[str]:
        """Yield the engines that have something in this memory, or are waited for; one may come more than once."""
        present = (state.resident for state in self.ledger.states)
        wanted = (lease.resident for lease in self.leases.values() if lease.error is None)
        for resident in (*present, *self.ledger.settling, *wanted):
            yield resident.engine

    def stop_failed(self, task: ResidentTask) -> None:
        """Note that a life goes on, though its stop was asked for."""
        self.stuck[task.resident] = task
        self._attribution.started(task)
        self._attribution.settled(task)

    def has_settled(self, resident: ResidentId) -> None:
        """Note that the memory of a resident that had gone is not waited for any more."""
        self.settles.pop(resident, None)
        if (task := self.gone.pop(resident, None)) is not None:
            self._attribution.settled(task)


def _slack(need_bytes: int) -> int:
    """Return what may be missing all the same: figures are never exact, and hosts drift."""
    return max(64 * 2**20, need_bytes // 20)


def _learn_ratio(task: ResidentTask, measured: Measurement, seen: SettleResult) -> None:
    """Remember which share of a footprint came back, where the settle ended because it did."""
    if not task.footprint_bytes:
        return
    if seen.outcome is SettleOutcome.RETURNED and measured.release_ratio is None:
        return  # the whole of it: nothing to correct
    ratio = max(0.0, min(1.0, seen.released_bytes / task.footprint_bytes))
    if seen.outcome is SettleOutcome.RETURNED:
        # It ended when nearly all was back. To take that for all would make it a little less each time.
        measured.release_ratio = max(measured.release_ratio or 0.0, ratio)
    elif seen.outcome is SettleOutcome.PLATEAU:
        measured.release_ratio = ratio
