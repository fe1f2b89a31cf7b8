"""The task of one resident, beside the state that the ledger keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio
from attrs import define, field

from engine_router.engines.base import Endpoint, ResidentId, Supervision
from engine_router.memory import MemoryReading
from engine_router.residency.files import Files
from engine_router.residency.rules import Profile


@define(eq=False, repr=False)
class MemoryShare:
    """What the gauge of one pool showed of one resident.

    Attributes:
        task: the resident's.
        before: free memory just before its start.
        late_bytes: memory that was still on its way back then.
        footprint_bytes: memory that this start took, once measured.
        baseline: free memory just before its stop.
        is_disturbed: others came or went during its start, so that what it took cannot be told.
        is_measured: what it took is known, as far as it ever will be.
    """

    task: ResidentTask
    before: MemoryReading | None = None
    late_bytes: int = 0
    footprint_bytes: int | None = None
    baseline: MemoryReading | None = None
    is_disturbed: bool = False
    is_measured: trio.Event = field(factory=trio.Event)

    def take_up(self, earlier: MemoryShare) -> None:
        """Go on where an earlier task of the same resident was."""
        self.before, self.footprint_bytes = earlier.before, earlier.footprint_bytes


@define(eq=False, repr=False)
class ResidentTask:
    """One resident from its start to its end.

    Attributes:
        supervision: the line to the engine that runs it.
        started_at: the supervisor's clock, in seconds.
        adopted: it ran already when this task began: it was found, or is taken up again to be stopped.
        files: what is done about its files, by the configuration that it began with.
        found: it was found running, so it is left running when the router goes down.
        scope: ends that task at once.
        endpoint: where it answers, once ready.
        ready_at: when its start succeeded, by the same clock; infinity before.
        shares: what the gauge of each pool in which it lies showed of it.
        stop_asked_at: the supervisor's clock; infinity where nobody asked.
        health_scope: ends its health checks.
        missing: the bytes that were to come free in each of its pools when it was asked to end, where known.
        wanted: who was to start in its place.
        is_asleep: it did not end but fell asleep.
        has_ended: nothing stays with it any more, be it gone, asleep or stuck.
        settle_scope: ends the wait for its memory.
    """

    resident: ResidentId
    supervision: Supervision
    started_at: float
    adopted: bool
    found: bool
    files: Files
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    endpoint: Endpoint | None = None
    ready_at: float = math.inf
    shares: dict[str, MemoryShare] = field(factory=dict)
    stop_asked_at: float = math.inf
    health_scope: trio.CancelScope = field(factory=trio.CancelScope)
    missing: dict[str, float] | None = None
    wanted: ResidentId | None = None
    is_asleep: bool = False
    has_ended: bool = False
    settle_scope: trio.CancelScope = field(factory=trio.CancelScope)

    def start_s_between(self, since: float, until: float) -> float:
        """Return for how many seconds of a span of time its start ran."""
        if self.adopted:
            return 0.0
        return max(0.0, min(until, self.ready_at) - max(since, self.started_at))

    def missing_for(self, other: Profile, kept: Mapping[str, int]) -> dict[str, float] | None:
        """Return the bytes that have to come free in each of its pools for another resident; None where not known.

        Args:
            kept: what the other has of each already, asleep.
        """
        missing: dict[str, float] = {}
        for name, share in self.shares.items():
            if other.pools and name not in other.pools:
                continue
            need = other.need_in(name)
            if need is None or share.baseline is None or not share.baseline.measured:
                return None
            missing[name] = max(0.0, need - kept.get(name, 0) - share.baseline.available_bytes)
        return missing
