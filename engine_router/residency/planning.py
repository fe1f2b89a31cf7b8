"""What follows from the state of a pool: who is let go, who starts, who is granted, and when to look again.

After every event the plan is made anew from the state alone. So there is no swap under way that could be
left half done when its client goes: what was begun for a ticket that is gone is simply continued for whoever
is next, or ends in an empty memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.errors import LeaseRevoked
from engine_router.residency import messages as book
from engine_router.residency.failures import Failures
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Effect
from engine_router.residency.prechecks import Prechecks
from engine_router.residency.queue import TicketQueue
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import Rules
from engine_router.residency.scheduling import Scheduler, Turn


@define(eq=False)
class PoolState:
    """All that is known of one pool.

    Attributes:
        wishes: residents to be loaded ahead of any request, in this order.
        is_tighter: somebody pinned is there who was not, or needs more: some may wait for what cannot be now.
        closing_at: when the leases end that are left, while the router goes down; infinity before.
    """

    rules: Rules
    queue: TicketQueue
    budget: MemoryBudget
    times: IdleGaps
    failures: Failures
    prechecks: Prechecks = field(factory=Prechecks)
    preload: dict[ResidentId, None] = field(factory=dict)
    is_tighter: bool = False
    closing_at: float = math.inf

    @property
    def is_closing(self) -> bool:
        """Whether the router goes down."""
        return self.closing_at < math.inf

    def can_come(self, resident: ResidentId) -> bool:
        """Tell whether nobody has to go for a resident: it is there, or has room."""
        return resident in self.budget.residences or self.budget.fits_now(resident)


class Planner:
    """Makes the plan of one pool.

    Attributes:
        wake_at: when the plan has to be looked at again if nothing happens before.
    """

    def __init__(self, books: PoolState) -> None:
        self._books = books
        self._queue = books.queue
        self._occupancy = books.budget
        self._failures = books.failures
        self.scheduler = Scheduler(books.rules, books.queue, books.budget, books.times)
        self.wake_at = math.inf

    @property
    def _rules(self) -> Rules:
        return self._books.rules

    def plan(self, now: float) -> list[Effect]:
        """Return what has to be done now, in order."""
        residences = self._occupancy.residences
        effects: list[Effect] = []
        for residence in tuple(residences.values()):
            effects += self._force(residence, now)
        turns = self.scheduler.turns(now) if self._queue and not self._books.is_closing else []
        for turn in turns:
            effects += self._take_turn(turn, now)
        for residence in self.scheduler.to_trim(now):
            effects += self._stop(residence, "more memory is needed than was believed", None)
        victims = {victim.resident: turn for turn in turns for victim in turn.victims}
        for residence in tuple(residences.values()):
            effects += self._go_on(residence, victims.get(residence.resident), now)
        if self._books.is_tighter:
            effects += self._refuse_the_impossible()
        if not (self._queue or self._books.prechecks or self._books.is_closing):
            effects += self._look_ahead(now)
        self.wake_at = self._next_wake(now)
        return effects

    def may_idle(self, residence: ResidentState, now: float) -> bool:
        """Tell whether the plan stays what it was though nobody uses a resident any more."""
        if self._queue or residence.phase is not Phase.READY or self._occupancy.excess_bytes > 0:
            return False
        residence.expires_at = self.expiry(residence, now)
        return residence.expires_at >= self.wake_at

    def _force(self, residence: ResidentState, now: float) -> list[Effect]:
        """Let a resident go that has to go whoever waits."""
        cause = self._reason_to_go(residence)
        if cause is None or residence.phase is Phase.STOPPING:
            return []
        if residence.phase is Phase.STUCK:
            return self._stop_again(residence, None)
        wanted = self._queue.first_in_turn(now, lambda other: other != residence.resident)
        if not residence.leases:
            return self._stop(residence, cause, wanted)
        effects: list[Effect] = []
        if residence.phase is Phase.READY:
            effects = self._drain(residence, cause, wanted, math.inf)
        residence.drain_cause = cause
        # Asked for while it drained already, it is shortened; of what is wanted, the earliest wins.
        latest = now if residence.down else self._books.closing_at if self._books.is_closing else math.inf
        if residence.unloading and not self._books.is_closing and residence.unload_by == math.inf:
            residence.unload_by = now + self._rules.drain_timeout_s
        residence.drain_deadline = min(residence.drain_deadline, latest, residence.unload_by)
        return effects

    def _reason_to_go(self, residence: ResidentState) -> str | None:
        if self._books.is_closing:
            return "shutting down"
        if residence.unloading:
            return "unload asked for"
        return None if residence.down is None else "it does not answer any more"

    def _take_turn(self, turn: Turn, now: float) -> list[Effect]:
        """Start who is next, or make those go who are in its way."""
        if turn.starts:
            return self._start(turn.resident, "requested")
        effects: list[Effect] = []
        for victim in turn.victims:
            if victim.phase is Phase.STUCK:
                effects += self._stop_again(victim, turn.resident)
            elif victim.is_idle:
                effects += self._stop(victim, turn.cause, turn.resident)
            elif victim.phase is Phase.READY:
                fair_s = max(now, victim.ready_at + self._rules.max_wait_s)
                deadline = fair_s + self._rules.drain_timeout_s
                effects += self._drain(victim, turn.cause, turn.resident, deadline)
        return effects

    def _go_on(self, residence: ResidentState, in_the_way_of: Turn | None, now: float) -> list[Effect]:
        """Do what is due for a resident by itself."""
        match residence.phase:
            case Phase.STARTING:
                return self._go_on_starting(residence, in_the_way_of, now)
            case Phase.DRAINING:
                return self._go_on_draining(residence, in_the_way_of, now)
            case Phase.READY:
                return self._go_on_serving(residence, now)
            case _:
                return []

    def _go_on_starting(
        self, residence: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[Effect]:
        if self._queue.count(residence.resident) or (residence.keep and in_the_way_of is None):
            residence.abandon_at = math.inf
            return []
        if residence.abandon_at == math.inf:
            residence.abandon_at = now + self._rules.abandon_grace_s
        if now < residence.abandon_at:
            return []
        wanted = self._queue.first_in_turn(now, lambda other: other != residence.resident)
        return self._stop(residence, "nobody waits for it any more", wanted)

    def _go_on_draining(
        self, residence: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[Effect]:
        if in_the_way_of is None and self._reason_to_go(residence) is None:
            residence.phase = Phase.READY
            residence.drain_deadline = math.inf
            return [book.Resume(residence.resident), *self._go_on_serving(residence, now)]
        cause, wanted = residence.drain_cause, residence.makes_way_for
        if in_the_way_of is not None:
            cause, wanted = in_the_way_of.cause, in_the_way_of.resident
        effects: list[Effect] = []
        if residence.leases:
            if now < residence.drain_deadline:
                return []
            error = residence.down or LeaseRevoked(
                f"the engine was needed ({cause}) and the drain deadline has passed"
            )
            effects = [book.Revoke(ticket, error) for ticket in residence.take_all_back()]
        return effects + self._stop(residence, cause, wanted)

    def _go_on_serving(self, residence: ResidentState, now: float) -> list[Effect]:
        effects = self.grant(residence, now)
        if residence.leases:
            return effects
        residence.expires_at = self.expiry(residence, residence.idle_since)
        if now < residence.expires_at:
            return effects
        idle = f"idle for {now - residence.idle_since:.4g} s"
        wanted = self._occupancy.capacity.home if not self._queue else None
        return effects + self._stop(residence, idle, wanted)

    def expiry(self, residence: ResidentState, idle_since: float) -> float:
        """Return when a resident that is idle since then is stopped for it."""
        home = self._occupancy.capacity.home
        if residence.pinned or residence.resident == home:
            return math.inf
        limit_s = residence.keep_alive_s
        if limit_s is None:
            limit_s = residence.idle_timeout_s
            if self._is_home_kept_out():
                limit_s = min(limit_s, self._occupancy.capacity.return_after_s)
        return idle_since + (math.inf if limit_s < 0 else limit_s)

    def _is_home_kept_out(self) -> bool:
        home = self._occupancy.capacity.home
        return home is not None and not self._books.can_come(home)

    def _look_ahead(self, now: float) -> list[Effect]:
        """While nobody waits, start one of those that are meant to be there, where there is room."""
        if any(r.phase is Phase.STARTING for r in self._occupancy.residences.values()):
            return []
        for resident in self._meant_to_be_there():
            if now >= self._failures.until(resident) and self._occupancy.fits_now(resident):
                effects = self._start(resident, "nobody waits, and it is meant to be there")
                self._occupancy.residences[resident].keep = True
                return effects
        return []

    def _meant_to_be_there(self) -> Iterator[ResidentId]:
        home = self._occupancy.capacity.home
        for resident in (*self._books.preload, *(() if home is None else (home,))):
            if resident not in self._occupancy.residences:
                yield resident

    def _next_wake(self, now: float) -> float:
        wake_at, is_anybody_open = math.inf, False
        for residence in self._occupancy.residences.values():
            match residence.phase:
                case Phase.STARTING:
                    wake_at = min(wake_at, residence.abandon_at)
                case Phase.DRAINING:
                    wake_at = min(wake_at, residence.drain_deadline)
                case Phase.READY:
                    is_anybody_open = True
                    if not residence.leases:
                        wake_at = min(wake_at, residence.expires_at)
                        if self._queue and (held := self.scheduler.held_until(residence)) > now:
                            wake_at = min(wake_at, held)
                case _:
                    pass
        if self._queue and is_anybody_open:
            wake_at = min(wake_at, self._queue.next_deadline(now))
        if not self._queue:
            untils = (self._failures.until(resident) for resident in self._meant_to_be_there())
            wake_at = min(wake_at, *(until for until in untils if until > now), math.inf)
        return wake_at

    # Steps.

    def grant(self, residence: ResidentState, now: float) -> list[Effect]:
        """Grant everybody who waits for a ready resident."""
        tickets = self._queue.take(residence.resident)
        for ticket in tickets:
            residence.lend(ticket, now)
        return [book.Grant(ticket) for ticket in tickets]

    def _refuse_the_impossible(self) -> list[Effect]:
        """Refuse those who wait for what cannot be started beside those who are pinned now."""
        self._books.is_tighter = False
        effects: list[Effect] = []
        for resident in self._queue.counts():
            if resident in self._occupancy.residences:
                continue
            if (error := self._occupancy.objection(resident)) is not None:
                effects += [book.Refuse(ticket, error) for ticket in self._queue.take(resident)]
        return effects

    def _start(self, resident: ResidentId, cause: str) -> list[Effect]:
        residence = self._occupancy.residences[resident] = self._occupancy.new(resident)
        self._books.is_tighter |= residence.pinned
        return [book.Start(resident, cause)]

    def _drain(
        self, residence: ResidentState, cause: str, wanted: ResidentId | None, deadline: float
    ) -> list[Effect]:
        residence.phase = Phase.DRAINING
        residence.drain_cause, residence.makes_way_for = cause, wanted
        residence.drain_deadline = deadline
        return [book.Drain(residence.resident, cause, wanted)]

    def _stop(self, residence: ResidentState, cause: str, wanted: ResidentId | None) -> list[Effect]:
        residence.phase = Phase.STOPPING
        residence.failure = None
        return [book.Stop(residence.resident, cause, wanted)]

    def _stop_again(self, residence: ResidentState, wanted: ResidentId | None) -> list[Effect]:
        return self._stop(residence, "stopping it again, since it could not be stopped before", wanted)
