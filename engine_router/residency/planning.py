"""The plan of the memories that are planned together, from their state: evictions, starts, grants, and when to look again.

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
from engine_router.residency import causes, messages
from engine_router.residency.failures import Failures
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Effect
from engine_router.residency.prechecks import Prechecks
from engine_router.residency.queue import TicketQueue
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import Rules
from engine_router.residency.scheduling import Scheduler, Turn
from engine_router.residency.swap_costs import SwapCosts

# What makes a plan worth another look: room comes free, is taken, or is promised to one less.
_CHANGES = (messages.Start, messages.Stop, messages.Drain, messages.Refuse)
# Far more than it takes until nothing is left to be done.
_MOST_ROUNDS = 100


@define(eq=False, repr=False)
class PoolState:
    """All that is known of the memories that one ledger plans.

    Attributes:
        preload: residents to be loaded ahead of any request, in this order.
        is_tighter: somebody pinned is there who was not, or needs more: some may wait for what cannot be now.
        closing_at: when the leases end that are left, while the router goes down; infinity before.
    """

    rules: Rules
    queue: TicketQueue
    budget: MemoryBudget
    idle_gaps: IdleGaps
    failures: Failures
    costs: SwapCosts
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
        return resident in self.budget.states or self.budget.fits_now(resident)

    def is_unconcerned(self, resident: ResidentId, other: ResidentId) -> bool:
        """Tell whether a resident waits neither for another nor for its room."""
        return resident != other and (
            self.can_come(resident) or not self.budget.are_neighbours(resident, other)
        )


class Planner:
    """Makes the plan of one ledger.

    Attributes:
        wake_at: when the plan has to be looked at again if nothing happens before.
    """

    def __init__(self, pool: PoolState) -> None:
        self._pool = pool
        self._queue = pool.queue
        self._budget = pool.budget
        self._failures = pool.failures
        self.scheduler = Scheduler(pool.rules, pool.queue, pool.budget, pool.costs)
        self.wake_at = math.inf

    @property
    def _rules(self) -> Rules:
        return self._pool.rules

    def plan(self, now: float) -> list[Effect]:
        """Return what has to be done now, in order.

        Whoever is made to go is in nobody's way any more, and what is guessed of one depends on who is there: once
        somebody is made to go or starts, those who wait are looked at again at once.
        """
        effects: list[Effect] = []
        for _ in range(_MOST_ROUNDS):
            steps = self._next_steps(now)
            effects += steps
            if not any(isinstance(step, _CHANGES) for step in steps):
                break
        self._pool.idle_gaps.pace.note(now, is_contended=self._queue.length > 0)
        self.wake_at = self._next_wake(now)
        return effects

    def _next_steps(self, now: float) -> list[Effect]:
        states = self._budget.states
        effects: list[Effect] = []
        for state in tuple(states.values()):
            effects += self._force(state, now)
        turns = self.scheduler.turns(now) if self._queue.length and not self._pool.is_closing else []
        for turn in turns:
            effects += self._take_turn(turn, now)
        for state in self.scheduler.to_trim(now):
            effects += self._stop(state, causes.MORE_MEMORY, None)
        for state in self.scheduler.to_relieve(now):
            effects += self._stop(state, causes.PRESSURE, None)
        victims = {victim.resident: turn for turn in turns for victim in turn.victims}
        for state in tuple(states.values()):
            effects += self._go_on(state, victims.get(state.resident), now)
        if self._pool.is_tighter:
            effects += self._refuse_the_impossible()
        if not (self._queue.length or self._pool.prechecks or self._pool.is_closing):
            effects += self._look_ahead(now)
        return effects

    def may_grant(self, state: ResidentState) -> bool:
        """Tell whether somebody may wait for the place of a lease that was given back."""
        return state.most_leases < math.inf and self._queue.count(state.resident) > 0

    def may_idle(self, state: ResidentState, now: float) -> bool:
        """Tell whether the plan stays what it was though nobody uses a resident any more."""
        if self._queue.length or state.phase is not Phase.READY:
            return False
        if self._budget.limits and self._budget.has_excess:
            return False
        state.expires_at = self.expiry(state, now)
        return state.expires_at >= self.wake_at

    def _force(self, state: ResidentState, now: float) -> list[Effect]:
        """Let a resident go that has to go whoever waits."""
        cause = self._reason_to_go(state)
        if cause is None or state.phase is Phase.STOPPING:
            return []
        if state.phase is Phase.STUCK:
            return self._stop_again(state, None)
        wanted = self._next_beside(state, now)
        if not state.leases:
            return self._stop(state, cause, wanted)
        effects: list[Effect] = []
        if state.phase is Phase.READY:
            effects = self._drain(state, cause, wanted, math.inf)
        state.drain_cause = cause
        # Asked for while it drained already, it is shortened; of what is wanted, the earliest wins.
        latest = now if state.down else self._pool.closing_at if self._pool.is_closing else math.inf
        if state.unloading and not self._pool.is_closing and state.unload_by == math.inf:
            state.unload_by = now + self._rules.drain_timeout_s
        state.drain_deadline = min(state.drain_deadline, latest, state.unload_by)
        return effects

    def _reason_to_go(self, state: ResidentState) -> str | None:
        if self._pool.closing_at < math.inf:
            return causes.SHUTTING_DOWN
        if state.unloading:
            return causes.UNLOAD_ASKED
        return None if state.down is None else causes.NO_ANSWER

    def _take_turn(self, turn: Turn, now: float) -> list[Effect]:
        """Start who is next, or make those go who are in its way."""
        if turn.starts:
            return self._start(turn.resident, causes.REQUESTED)
        effects: list[Effect] = []
        for victim in turn.victims:
            if victim.phase is Phase.STUCK:
                effects += self._stop_again(victim, turn.resident)
            elif victim.is_idle:
                effects += self._stop(victim, turn.cause, turn.resident)
            elif victim.phase is Phase.READY:  # Rule 4: after a fair time, and the drain
                fair_s = max(now, victim.ready_at + self._rules.max_wait_s)
                deadline = fair_s + self._rules.drain_timeout_s
                effects += self._drain(victim, turn.cause, turn.resident, deadline)
        return effects

    def _go_on(self, state: ResidentState, in_the_way_of: Turn | None, now: float) -> list[Effect]:
        """Do what is due for a resident by itself."""
        match state.phase:
            case Phase.READY:  # as most are
                return self._go_on_serving(state, now)
            case Phase.STARTING:
                return self._go_on_starting(state, in_the_way_of, now)
            case Phase.DRAINING:
                return self._go_on_draining(state, in_the_way_of, now)
            case _:
                return []

    def _go_on_starting(self, state: ResidentState, in_the_way_of: Turn | None, now: float) -> list[Effect]:
        if self._queue.count(state.resident) or (state.keep and in_the_way_of is None):
            state.abandon_at = math.inf
            return []
        if state.abandon_at == math.inf:
            state.abandon_at = now + self._rules.abandon_grace_s
        if now < state.abandon_at:
            return []
        wanted = self._next_beside(state, now)
        return self._stop(state, causes.NOT_WAITED_FOR, wanted)

    def _go_on_draining(self, state: ResidentState, in_the_way_of: Turn | None, now: float) -> list[Effect]:
        if in_the_way_of is None and self._reason_to_go(state) is None:
            state.phase = Phase.READY
            state.drain_deadline = math.inf
            return [messages.Resume(state.resident), *self._go_on_serving(state, now)]
        cause, wanted = state.drain_cause, state.makes_way_for
        if in_the_way_of is not None:
            cause, wanted = in_the_way_of.cause, in_the_way_of.resident
        effects: list[Effect] = []
        if state.leases:
            if now < state.drain_deadline:
                return []
            error = state.down or LeaseRevoked(
                f"the engine was needed ({cause}) and the drain deadline has passed"
            )
            effects = [messages.Revoke(ticket, error) for ticket in state.take_all_back()]
        return effects + self._stop(state, cause, wanted)

    def _go_on_serving(self, state: ResidentState, now: float) -> list[Effect]:
        effects = self.grant(state, now)
        if state.leases:
            return effects
        state.expires_at = self.expiry(state, state.idle_since)
        if now < state.expires_at:
            return effects
        idle = causes.idle_for(now - state.idle_since)
        wanted = None if self._queue else next(self._defaults_beside(state), (None, 0))[0]
        return effects + self._stop(state, idle, wanted)

    def expiry(self, state: ResidentState, idle_since: float) -> float:
        """Return when a resident that is idle since then is stopped for it."""
        defaults = list(self._defaults_beside(state)) if self._budget.defaults else []
        if state.pinned or state.is_always_there or state.resident in dict(defaults):
            return math.inf
        limit_s = state.keep_alive_s
        if limit_s is None:
            limit_s = state.idle_timeout_s
            for default_model, return_after_s in defaults:
                if not self._pool.can_come(default_model):
                    limit_s = min(limit_s, return_after_s)
        return idle_since + (math.inf if limit_s < 0 else limit_s)

    def _defaults_beside(self, state: ResidentState) -> Iterator[tuple[ResidentId, float]]:
        """Yield the default models that want the memory in which a resident lies, and after how many idle seconds."""
        for pool, capacity in self._budget.defaults.items():
            default_model = capacity.default_model
            if default_model is not None and (
                pool in state.needs or self._budget.are_neighbours(default_model, state.resident)
            ):
                yield default_model, capacity.return_after_s

    def _look_ahead(self, now: float) -> list[Effect]:
        """While nobody waits, start one of those that are meant to be there, where there is room (Rule 6)."""
        if any(r.phase is Phase.STARTING for r in self._budget.states.values()):
            return []
        for resident in self._meant_to_be_there():
            if now >= self._failures.until(resident) and self._budget.fits_now(resident):
                effects = self._start(resident, causes.MEANT_TO_BE_THERE)
                self._budget.states[resident].keep = True
                return effects
        return []

    def _meant_to_be_there(self) -> Iterator[ResidentId]:
        defaults = (capacity.default_model for capacity in self._budget.defaults.values())
        for resident in (*self._pool.preload, *defaults):
            if resident is None or resident in self._budget.states or self.scheduler.is_pressed(resident):
                continue
            yield resident

    def _next_wake(self, now: float) -> float:
        wake_at = math.inf
        is_anybody_waiting = self._queue.length > 0
        for state in self._budget.states.values():
            match state.phase:
                case Phase.STARTING:
                    wake_at = min(wake_at, state.abandon_at)
                case Phase.DRAINING:
                    wake_at = min(wake_at, state.drain_deadline)
                case Phase.READY:
                    if not state.leases:
                        wake_at = min(wake_at, state.expires_at)
                        if is_anybody_waiting and (held := self.scheduler.held_until(state)) > now:
                            wake_at = min(wake_at, held)
                case _:
                    pass
        if is_anybody_waiting:  # who is overdue then may have room that is promised to another now
            return min(wake_at, self._queue.next_deadline(now))
        untils = (self._failures.until(resident) for resident in self._meant_to_be_there())
        return min(wake_at, *(until for until in untils if until > now), math.inf)

    # Steps.

    def grant(self, state: ResidentState, now: float) -> list[Effect]:
        """Grant everybody who waits for a ready resident, as far as it takes so many at the same time."""
        if state.most_leases < math.inf:
            return list(self._grant_some(state, now))
        tickets = self._queue.take(state.resident)
        if not tickets:
            return []
        for ticket in tickets:
            state.lend(ticket, now)
        return [messages.Grant(ticket) for ticket in tickets]

    def _grant_some(self, state: ResidentState, now: float) -> Iterator[Effect]:
        while len(state.leases) < state.most_leases:
            ticket = self._queue.take_next(state.resident, now)
            if ticket is None:
                return
            state.lend(ticket, now)
            yield messages.Grant(ticket)

    def _refuse_the_impossible(self) -> list[Effect]:
        """Refuse those who wait for what cannot be started beside those who are pinned now."""
        self._pool.is_tighter = False
        effects: list[Effect] = []
        for resident in self._queue.counts():
            if resident in self._budget.states:
                continue
            if (error := self._budget.objection(resident)) is not None:
                effects += [messages.Refuse(ticket, error) for ticket in self._queue.take(resident)]
        return effects

    def _next_beside(self, state: ResidentState, now: float) -> ResidentId | None:
        """Return who is next in turn of those that a resident is in the way of."""
        resident, budget = state.resident, self._budget
        return self._queue.first_in_turn(
            now, lambda other: other != resident and budget.are_neighbours(other, resident)
        )

    def _start(self, resident: ResidentId, cause: str) -> list[Effect]:
        state = self._budget.states[resident] = self._budget.new(resident)
        self._pool.is_tighter |= state.pinned
        return [messages.Start(resident, cause, adopt=state.is_always_there)]

    def _drain(
        self, state: ResidentState, cause: str, wanted: ResidentId | None, deadline: float
    ) -> list[Effect]:
        state.phase = Phase.DRAINING
        state.drain_cause, state.makes_way_for = cause, wanted
        state.drain_deadline = deadline
        return [messages.Drain(state.resident, cause, wanted)]

    def _stop(self, state: ResidentState, cause: str, wanted: ResidentId | None) -> list[Effect]:
        state.phase = Phase.STOPPING
        state.failure = None
        return [messages.Stop(state.resident, cause, wanted)]

    def _stop_again(self, state: ResidentState, wanted: ResidentId | None) -> list[Effect]:
        return self._stop(state, causes.STOPPED_AGAIN, wanted)
