"""One memory as the supervisor sees it: its ledger, its gauge, and the lives in it."""

from __future__ import annotations

import logging
import math

import trio
from attrs import define, field

from engine_router.engines.base import Endpoint, ResidentId, Supervision
from engine_router.memory import (
    Gauge,
    GaugeUnreadable,
    MemoryNotReturned,
    Outcome,
    Reading,
    Settled,
    footprint,
    settle,
)
from engine_router.residency.journal import SwapJournal
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Ledger, Rules
from engine_router.residency.messages import Ticket
from engine_router.state import Measured

logger = logging.getLogger(__name__)

# A gauge that hangs (a command, a driver) must not hold up a start or a stop, which only want a figure.
GAUGE_TIMEOUT_S = 1.0

# What a settle did not wait for is back by then. Seconds.
LATE_MEMORY_S = 1.0


@define(eq=False)
class Life:
    """What the supervisor knows of one present resident, beside the ledger.

    Attributes:
        supervision: the line to the task that lives with it.
        started_at: the supervisor's clock, in seconds.
        adopted: it ran already when this life began: it was found, or is taken up again to be stopped.
        found: it was found running, so it is left running when the router goes down.
        scope: ends that task at once.
        endpoint: where it answers, once ready.
        before: free memory just before its start.
        late_bytes: memory that was still on its way back then.
        footprint_bytes: memory that this start took, once measured.
        baseline: free memory just before its stop.
        stop_asked_at: the supervisor's clock; infinity where nobody asked.
    """

    supervision: Supervision
    started_at: float
    adopted: bool
    found: bool
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    endpoint: Endpoint | None = None
    before: Reading | None = None
    late_bytes: int = 0
    footprint_bytes: int | None = None
    baseline: Reading | None = None
    stop_asked_at: float = math.inf


class Pool:
    """One memory.

    Attributes:
        lives: the residents that have a task now.
        leases: every lease that is not given back yet, by its ticket.
        last_gone: the life that ended last: its memory is what a settle waits for.
        stuck: the lives whose last stop failed.
        settle_scope: ends the wait for memory that is under way.
    """

    def __init__(self, name: str, rules: Rules, gauge: Gauge, journal: SwapJournal) -> None:
        self.name = name
        self.ledger = Ledger(rules)
        self.gauge = gauge
        self.journal = journal
        self.lives: dict[ResidentId, Life] = {}
        self.leases: dict[Ticket, Lease] = {}
        self.last_gone: Life | None = None
        self.stuck: dict[ResidentId, Life] = {}
        self.settle_scope = trio.CancelScope()
        self._late_bytes = 0
        self._settled_at = -math.inf
        self._changed = trio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is resident, no memory is waited for, no task lives, and none ever will again."""
        return self.ledger.is_closing and self.ledger.is_empty and not self.lives

    def note_change(self) -> None:
        """Wake whoever waits for a change; costs next to nothing while nobody does."""
        if self._changed.statistics().tasks_waiting:
            self._changed.set()
            self._changed = trio.Event()

    async def change(self) -> None:
        """Wait until the ledger has taken in another event."""
        await self._changed.wait()

    async def read_gauge(self) -> Reading | None:
        """Read free memory; None where it cannot be read now."""
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            try:
                return await self.gauge.read()
            except GaugeUnreadable as error:
                logger.warning("pool %s: %s", self.name, error)
        return None

    async def look_before_start(self, life: Life) -> None:
        """Read free memory before a start, and note what is still to come back.

        A settle ends when nearly all is back. Were the rest forgotten, each start in a row would seem to
        take a little less than the one before, and each settle be content with a little less.
        """
        if trio.current_time() - self._settled_at < LATE_MEMORY_S:
            life.late_bytes = self._late_bytes
        life.before = await self.read_gauge()

    async def measure_start(self, resident: ResidentId, life: Life, measured: Measured) -> None:
        """Measure what a start took, now that it is done, and remember it."""
        after = await self.read_gauge()
        # A slow gauge may have looked when the resident was going already.
        is_whole = self.lives.get(resident) is life and life.stop_asked_at == math.inf
        if life.before is not None and after is not None and is_whole:
            life.footprint_bytes = measured.footprint_bytes = life.late_bytes + footprint(life.before, after)

    async def expected_release(
        self, life: Life | None, measured: Measured, declared_bytes: int | None
    ) -> int | None:
        """Tell how much memory a stop should bring back, in bytes; None where nothing is known.

        What this start took counts first, then what an earlier one took, then what the configuration
        declares. A part may never come back by the gauge's reckoning (page cache, for one): what share came
        back the last time is learned, so that no later settle waits for it again.

        A start that was given up or failed took as much as is missing since then, be it little or much.
        """
        taken = life.footprint_bytes if life is not None else None
        if life is not None and life.endpoint is None and life.before is not None:
            if life.baseline is None:
                life.baseline = await self.read_gauge()
                return footprint(life.before, life.baseline) if life.baseline is not None else declared_bytes
            taken = footprint(life.before, life.baseline)
        if taken is None:
            taken = measured.footprint_bytes
        if taken is None:
            return declared_bytes
        ratio = measured.release_ratio
        return int(taken * ratio) if ratio is not None else taken

    async def settle(
        self, measured: Measured, expected_bytes: int | None, timeout_s: float
    ) -> tuple[Settled | None, str | None]:
        """Wait for the memory of the life that ended last. Returns what was seen, and a warning if any."""
        life = self.last_gone
        baseline = life.baseline if life is not None else None
        try:
            seen = await settle(
                self.gauge,
                baseline_bytes=baseline.available_bytes if baseline is not None else None,
                expected_bytes=expected_bytes,
                timeout_s=timeout_s,
            )
        except MemoryNotReturned as error:
            return None, f"{error}; the next start may not fit"
        except GaugeUnreadable as error:
            return None, f"free memory cannot be read: {error}"
        self._late_bytes = seen.missing_bytes if seen.outcome is Outcome.RETURNED else 0
        self._settled_at = trio.current_time()
        if baseline is not None:
            _learn_ratio(life, measured, seen)
        if seen.outcome is Outcome.SHORT:
            missing = seen.missing_bytes / 2**30
            return (
                seen,
                f"{missing:.1f} GiB did not come back and nothing moves any more; the next start may not fit",
            )
        return seen, None


def _learn_ratio(life: Life | None, measured: Measured, seen: Settled) -> None:
    """Remember which share of a footprint came back, where the settle ended because it did."""
    if life is None or not life.footprint_bytes:
        return
    if seen.outcome is Outcome.RETURNED and measured.release_ratio is None:
        return  # the whole of it: nothing to correct
    ratio = max(0.0, min(1.0, seen.released_bytes / life.footprint_bytes))
    if seen.outcome is Outcome.RETURNED:
        # It ended when nearly all was back. To take that for all would make it a little less each time.
        measured.release_ratio = max(measured.release_ratio or 0.0, ratio)
    elif seen.outcome is Outcome.PLATEAU:
        measured.release_ratio = ratio
