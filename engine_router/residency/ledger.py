"""The ledger: who is resident, who waits, and what has to happen next, in the memories that are planned together.

Pure: no I/O, no clock, no tasks. Each event goes in with the time at which it happened; out comes the list
of effects that the supervisor performs. Everything that the router decides about residency is decided here.

The phases of a resident::

    (absent) --Start--> STARTING --BecameReady--> READY <--> DRAINING --Stop--> STOPPING --Ended--> (absent)
                           |                                                      |
                           `-- abandoned, failed ----------------> settle     StopFailed --> STUCK --Reset--> (absent)

The rules, in the order in which they are tested; `Rule N` stands at the code that keeps each:

1. Nothing is started but where there is room: beside what is present, what leaves, and what has gone but is
   not settled. Without a budget there is room for one resident, or one group, and only once all is settled.
2. What waits when a resident becomes ready is granted at once, as one batch, before any deadline is tested.
3. While nobody else is overdue, a ready resident's own requests go first (a swap costs far more than they
   do); once it has no leases, and is not held, it yields to whoever needs its room.
4. When another ticket is overdue, admission closes to those who have to make room for it. The leases that
   exist may run for at least `max_wait_s` from the moment the resident was ready, and `drain_timeout_s`
   beyond; then they are revoked. So every batch gets a fair time to be served, and no ticket that is next
   waits longer than its deadline plus one batch plus one swap.
5. In turn are the overdue tickets, the longest first, then the others by priority and arrival. Those make
   room whose end costs least. What was promised to one in turn is not given to a later one.
6. When nobody waits, what was to be loaded ahead, and the pool's default model, are started where there is
   room; nobody has to go for them but whoever has been idle for long enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied, RouterClosing, RouterError
from engine_router.residency import messages
from engine_router.residency.admission import Admission
from engine_router.residency.causes import FOUND_RUNNING
from engine_router.residency.failures import Failure, Failures
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Effect, LedgerEvent, Ticket
from engine_router.residency.planning import Planner, PoolState
from engine_router.residency.queue import TicketQueue
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import ONE_MEMORY, UNKNOWN, Capacity, Profile, Rules
from engine_router.residency.scheduling import Turn
from engine_router.residency.speeds import NOTHING_TO_READ, Reading
from engine_router.residency.swap_costs import SwapCosts

__all__ = ["Capacity", "Ledger", "Phase", "Profile", "ResidentState", "Rules"]


class Ledger:
    """The state of one memory, or of several that some residents lie across. Not thread-safe; driven by one supervisor.

    Args:
        capacities: what each memory can hold, by the name of its pool.
        profile: what is known of a resident; asked often, and so not to take long. While a resident is waited
            for and not present, group and need change with its own events and `Reconfigured` only.
        reading: what a resident has to read again once it was stopped; asked now and then.

    Attributes:
        budget: the residents and the room for them; to be read only.
        costs: what swaps between them cost.
    """

    def __init__(
        self,
        rules: Rules,
        capacities: Mapping[str, Capacity] = ONE_MEMORY,
        profile: Callable[[ResidentId], Profile] = lambda _: UNKNOWN,
        reading: Callable[[ResidentId], Reading] = lambda _: NOTHING_TO_READ,
    ) -> None:
        self._queue = TicketQueue(rules.max_wait_s)
        self.budget = MemoryBudget(capacities, profile)
        self._idle_gaps = IdleGaps()
        self.costs = SwapCosts(self.budget, self._idle_gaps, reading)
        self._failures = Failures(rules.failed_start_memory_s)
        self._pool = PoolState(rules, self._queue, self.budget, self._idle_gaps, self._failures, self.costs)
        self._planner = Planner(self._pool)
        self._prechecks = self._pool.prechecks
        self._admission = Admission(self._pool, self._planner)

    def __repr__(self) -> str:
        present = ", ".join(f"{r.resident} {r.phase.value}" for r in self.states) or "empty"
        waiting = {str(resident): count for resident, count in self.waiting_counts().items()}
        settling = ", ".join(map(str, self.settling)) or None
        return f"<Ledger {present}, waiting {waiting}, settling {settling}>"

    # What can be seen.

    @property
    def states(self) -> Collection[ResidentState]:
        """The residents that are present, in whatever phase; the first to come is first."""
        return self.budget.states.values()

    def state(self, resident: ResidentId) -> ResidentState | None:
        """Return a resident that is there."""
        return self.budget.states.get(resident)

    @property
    def settling(self) -> Collection[ResidentId]:
        """The residents that have gone and whose memory is waited for."""
        return self.budget.settling.keys()

    @property
    def is_closing(self) -> bool:
        """Whether the router goes down."""
        return self._pool.is_closing

    @property
    def is_empty(self) -> bool:
        """Whether nothing is resident and no memory is waited for."""
        return not (self.budget.states or self.budget.settling)

    def waiting(self) -> Iterator[Ticket]:
        """Yield the tickets that wait."""
        yield from self._queue
        yield from self._prechecks

    def waiting_counts(self) -> Mapping[ResidentId, int]:
        """Return how many tickets wait, for each resident that is waited for."""
        counts = self._queue.counts()
        for resident, count in self._prechecks.counts().items():
            counts[resident] = counts.get(resident, 0) + count
        return counts

    def place(self, ticket: Ticket) -> int:
        """Return how many tickets arrived before this one and still wait: for the same where that is ready."""
        return self._admission.place(ticket)

    def failures(self) -> Mapping[ResidentId, Failure]:
        """Return which residents failed and have not worked since."""
        present = self.budget.states
        return {
            resident: failure
            for resident, failure in self._failures.listed().items()
            if resident not in present or not present[resident].is_open
        }

    def turns(self, now: float) -> list[Turn]:
        """Return who is next, and what has to happen for it: for people, who want to know why they wait."""
        return [] if self._pool.is_closing else self._planner.scheduler.all_turns(now)

    def expires_at(self, resident: ResidentId, now: float) -> float | None:
        """Return when a resident is stopped for being idle if nobody uses it; None where it is not there."""
        state = self.budget.states.get(resident)
        if state is None or state.phase in (Phase.STOPPING, Phase.STUCK):
            return None
        return self._planner.expiry(state, min(now, state.idle_since))

    def wake_at(self) -> float:
        """Return when the ledger wants a `Tick`, if nothing happens before; infinity for never."""
        return self._planner.wake_at

    # What decides nothing, and so may happen in the caller's step.

    def lend(self, ticket: Ticket, now: float) -> bool:
        """Give a new ticket its lease where that changes no plan: the way of nearly every request. Returns whether it did.

        Nothing that could be decided changes by one more lease of a ready resident while nobody is overdue.
        """
        state = self.budget.states.get(ticket.resident)
        if state is None or state.phase is not Phase.READY or len(state.leases) >= state.most_leases:
            return False
        if self._queue.length and now >= self._queue.first_deadline():  # Rules 3 and 4
            return False
        self._idle_gaps.arrived(ticket.resident, now)
        state.lend(ticket, now)
        return True

    def give_back(self, ticket: Ticket, now: float) -> LedgerEvent | None:
        """End a lease. Returns what has to be taken in where a plan may change by that.

        A ticket that has no lease is left as it is, to be withdrawn.
        """
        state = self.budget.states.get(ticket.resident)
        if state is None or ticket not in state.leases:
            return messages.Release(ticket)
        took_s = state.take_back(ticket, now)
        self._idle_gaps.answered(state, took_s, now)
        if state.leases:
            return messages.GivenBack(ticket.resident) if self._planner.may_grant(state) else None
        return None if self._planner.may_idle(state, now) else messages.GivenBack(ticket.resident)

    # What happens.

    def apply(self, event: LedgerEvent, now: float) -> list[Effect]:
        """Take in one event and return what has to be done, in order.

        Args:
            event: what happened.
            now: the time of the supervisor's clock, in seconds; never less than at an earlier call.
        """
        match event:
            case messages.Acquire(ticket):
                return self._enter(ticket, now)
            case messages.Release(ticket):
                return self._release(ticket, now)
            case _:
                self._planner.scheduler.learn(event)
                return [*self._take_in(event, now), *self._planner.plan(now)]

    def _take_in(self, event: LedgerEvent, now: float) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case messages.BecameReady(resident):
                effects = self._became_ready(resident, now)
            case messages.HasEnded(resident, error):
                effects = self._ended(resident, error, now)
            case messages.StopFailed(resident, error):
                effects = self._stop_failed(resident, error)
            case messages.Checked() | messages.Shut() | messages.Opened():
                effects = self._admission.learn(event, now)
            case messages.Adopt(resident):
                effects = self._adopt(resident, now)
            case messages.Pin(resident, pinned):
                self.budget.pin(resident, pinned=pinned)
                self._pool.is_tighter = True
            case messages.Reconfigured(rules, capacities):
                self._reconfigure(rules, capacities)
            case messages.Close(deadline):
                effects = self._close(deadline)
            case messages.Reset(resident):
                effects = self._reset(resident)
            case _:
                self._note(event, now)
        return effects

    def _note(self, event: LedgerEvent, now: float) -> None:
        """Take in what concerns nobody at once."""
        match event:
            case messages.Settled(resident, pool):
                self.budget.settled(resident, pool)
            case messages.Down(resident, error):
                self._went_down(resident, error, now)
            case messages.Weighed(resident, need_bytes, pool):
                self._weigh(resident, need_bytes, pool)
            case messages.Short(resident, missing_bytes, pool):
                self.budget.run_short(resident, missing_bytes, pool)
            case messages.Preload(residents):
                self._pool.preload.update(dict.fromkeys(self._fitting(residents)))
            case messages.Unload(resident):
                self._unload(resident)
            case messages.KeepAlive(resident, seconds):
                self._keep(resident, seconds, now)
            case _:  # a lease was given back, or time has passed
                pass

    # What each event changes.

    def _enter(self, ticket: Ticket, now: float) -> list[Effect]:
        return [messages.Grant(ticket)] if self.lend(ticket, now) else self._admission.enter(ticket, now)

    def _release(self, ticket: Ticket, now: float) -> list[Effect]:
        """Forget a ticket, wherever it is. A ticket that is nowhere (refused, revoked) is forgotten already."""
        event = self.give_back(ticket, now)
        if event is None:
            return []
        is_withdrawn = isinstance(event, messages.Release)
        if is_withdrawn and not (self._prechecks.remove(ticket) or self._queue.remove(ticket)):
            return []
        return self._planner.plan(now)

    def _became_ready(self, resident: ResidentId, now: float) -> list[Effect]:
        state = self.state(resident)
        if state is None or state.phase is not Phase.STARTING:
            return []  # its stop was decided before this was told
        state.phase = Phase.READY
        state.short.clear()
        state.ready_at = state.idle_since = now
        state.abandon_at = math.inf
        self._pool.preload.pop(resident, None)
        self._failures.forgive(resident, now)
        self._idle_gaps.pace.swapped(now)
        return self._planner.grant(state, now)  # Rule 2: as one batch, whoever is overdue

    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[Effect]:
        state = self.budget.states.pop(resident, None)
        if state is None:
            return []
        self.budget.settling[resident] = state.needs
        self._pool.is_tighter = True  # who waits for it to come back may find its room taken by a pinned one
        lost = error or EngineDied(resident.engine, "ended")
        effects: list[Effect] = [messages.Revoke(ticket, lost) for ticket in state.leases]
        if error is not None and state.phase in (Phase.READY, Phase.DRAINING):
            self._note_death(state, error, now)
        # A takeover that came too late is no failed start: what waits for it is started properly.
        elif error is not None and state.phase is Phase.STARTING and not state.found:
            if error.is_engines_fault:
                self._failures.start_failed(resident, error, now)
            effects += [messages.Refuse(ticket, error) for ticket in self._queue.take(resident)]
            if self.budget.profile(resident).is_checkable and not self._pool.is_closing:
                effects += self._prechecks.begin(resident)
        return [*effects, messages.Settle(resident)]

    def _note_death(self, state: ResidentState, error: RouterError, now: float) -> None:
        resident = state.resident
        self._failures.died(resident, error, now, served_s=now - state.ready_at)
        if state.pinned and not state.unloading:
            self._pool.preload[resident] = None  # it is meant to be there

    def _went_down(self, resident: ResidentId, error: RouterError, now: float) -> None:
        state = self.state(resident)
        if state is not None and state.phase in (Phase.READY, Phase.DRAINING):
            state.down = error
            self._note_death(state, error, now)

    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[Effect]:
        """Note that a resident is still there: everybody who waits for its room is told.

        When the router goes down nothing will be started any more, and the resident is left behind.
        """
        state = self.state(resident)
        if state is None:
            return []
        effects: list[Effect] = [messages.Revoke(ticket, error) for ticket in state.take_all_back()]
        state.phase = Phase.STUCK
        state.failure = error
        state.unloading = False
        state.down = None
        if self._pool.is_closing:
            del self.budget.states[resident]
        for waited_for in self._queue.counts():
            if not self._pool.is_unconcerned(waited_for, resident):
                effects += [messages.Refuse(ticket, error) for ticket in self._queue.take(waited_for)]
        return effects

    def _unload(self, resident: ResidentId) -> None:
        self._pool.preload.pop(resident, None)
        if (state := self.state(resident)) is not None:
            state.unloading = True

    def _reset(self, resident: ResidentId) -> list[Effect]:
        """Forget what went wrong with a resident. One that could not be stopped is taken to be gone."""
        self._failures.forget(resident)
        state = self.state(resident)
        if state is None or state.phase is not Phase.STUCK:
            return []
        del self.budget.states[resident]
        return [messages.Forget(resident)]

    def _keep(self, resident: ResidentId, seconds: float | None, now: float) -> None:
        if (state := self.state(resident)) is not None:
            state.keep_alive_s = state.keep_alive_s if seconds is None else seconds
            state.idle_since = now if seconds is None and state.is_idle else state.idle_since

    def _weigh(self, resident: ResidentId, need_bytes: int, pool: str | None) -> None:
        state = self.state(resident)
        if state is None:
            return
        pool = pool or next(iter(state.needs))
        if not self.budget.capacities[pool].is_exclusive:
            state.needs[pool] = need_bytes
            self._pool.is_tighter |= state.pinned

    def _adopt(self, resident: ResidentId, now: float) -> list[Effect]:
        if self._pool.is_closing or resident in self.budget.states or not self.budget.fits_now(resident):
            return []
        state = self.budget.new(resident)
        state.keep = state.found = True
        self._pool.is_tighter |= state.pinned
        self.budget.states[resident] = state
        start = messages.Start(resident, FOUND_RUNNING, adopt=True)
        return [start, *self._admission.found(resident, now)]

    def _fitting(self, residents: tuple[ResidentId, ...]) -> list[ResidentId]:
        """Return those that fit together, beside what is there."""
        chosen: list[ResidentState] = []
        for resident in residents:
            if resident not in self.budget.states and self.budget.fits_now(resident, chosen):
                chosen.append(self.budget.new(resident))
        return [state.resident for state in chosen]

    def _reconfigure(self, rules: Rules, capacities: Mapping[str, Capacity]) -> None:
        """Go by other rules from now on. Who waits already keeps the deadline that was promised."""
        self._pool.rules = self._planner.scheduler.rules = rules
        self._queue.set_max_wait(rules.max_wait_s)
        self._failures.first_s = rules.failed_start_memory_s
        self.budget.set_capacities(capacities)
        for state in self.budget.states.values():
            self.budget.describe(state)
        self._pool.is_tighter = True

    def _close(self, deadline: float) -> list[Effect]:
        self._pool.closing_at = min(deadline, self._pool.closing_at)
        error = RouterClosing("the router is shutting down")
        return [
            messages.Refuse(ticket, error)
            for ticket in (*self._queue.take_all(), *self._prechecks.take_all())
        ]
