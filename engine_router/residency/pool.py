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


@define(eq=False)
class Life:
    """What the supervisor knows of one present resident, beside the ledger.

    Attributes:
        supervision: the line to the task that lives with it.
        started_at: the supervisor's clock, in seconds.
        adopted: it was found running, so it is left running when the router goes down.
        scope: ends that task at once.
        endpoint: where it answers, once ready.
        before: free memory just before its start.
        footprint_bytes: memory that this start took, once measured.
        baseline: free memory just before its stop.
        stop_asked_at: the supervisor's clock; infinity where nobody asked.
    """

    supervision: Supervision
    started_at: float
    adopted: bool
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    endpoint: Endpoint | None = None
    before: Reading | None = None
    footprint_bytes: int | None = None
    baseline: Reading | None = None
    stop_asked_at: float = math.inf


class Pool:
    """One memory.

    Attributes:
        lives: the residents that have a task now.
        leases: every lease that is not given back yet, by its ticket.
        last_gone: the life that ended last: its memory is what a settle waits for.
        stuck: the resident whose last stop failed.
    """

    def __init__(self, name: str, rules: Rules, gauge: Gauge, journal: SwapJournal) -> None:
        self.name = name
        self.ledger = Ledger(rules)
        self.gauge = gauge
        self.journal = journal
        self.lives: dict[ResidentId, Life] = {}
        self.leases: dict[Ticket, Lease] = {}
        self.last_gone: Life | None = None
        self.stuck: ResidentId | None = None
        self._changed = trio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is resident, no memory is waited for, and no task lives."""
        return self.ledger.is_empty and not self.lives

    def note_change(self) -> None:
        """Wake whoever waits for `until_empty`."""
        self._changed.set()
        self._changed = trio.Event()

    async def until_empty(self) -> None:
        """Wait until nothing is resident any more."""
        while not self.is_empty:
            await self._changed.wait()

    async def read_gauge(self) -> Reading | None:
        """Read free memory; None where it cannot be read now."""
        with trio.move_on_after(GAUGE_TIMEOUT_S):
            try:
                return await self.gauge.read()
            except GaugeUnreadable as error:
                logger.warning("pool %s: %s", self.name, error)
        return None

    async def measure_start(self, life: Life, measured: Measured) -> None:
        """Measure what a start took, now that it is done, and remember it."""
        after = await self.read_gauge()
        if life.before is not None and after is not None:
            life.footprint_bytes = measured.footprint_bytes = footprint(life.before, after)

    def expected_release(
        self, life: Life | None, measured: Measured, declared_bytes: int | None
    ) -> int | None:
        """Tell how much memory a stop should bring back, in bytes; None where nothing is known.

        What this start took counts first, then what an earlier one took, then what the configuration
        declares. A part may never come back by the gauge's reckoning (page cache, for one): what share came
        back the last time is learned, so that no later settle waits for it again.
        """
        taken = life.footprint_bytes if life is not None else None
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
    if seen.outcome in (Outcome.RETURNED, Outcome.PLATEAU):
        measured.release_ratio = max(0.0, min(1.0, seen.released_bytes / life.footprint_bytes))
