"""Admission: what becomes of a ticket that comes: granted, refused, looked into, or put into the queue."""

from __future__ import annotations

from typing import TypeGuard

from engine_router.engines.base import ResidentId
from engine_router.errors import QueueFull, RouterClosing, RouterError
from engine_router.residency import messages
from engine_router.residency.messages import Effect, Ticket
from engine_router.residency.planning import Planner, PoolState
from engine_router.residency.resident_state import Phase, ResidentState


class Admission:
    """Admits tickets to the memories of one ledger."""

    def __init__(self, pool: PoolState, planner: Planner) -> None:
        self._pool = pool
        self._planner = planner
        self._prechecks = pool.prechecks

    def enter(self, ticket: Ticket, now: float) -> list[Effect]:
        """Take in a new ticket."""
        resident = ticket.resident
        self._pool.idle_gaps.arrived(resident, now)
        if (error := self._refusal(resident, now)) is not None:
            return [messages.Refuse(ticket, error)]
        if self._is_worth_a_look(resident, now):
            self._pool.queue.stamp(ticket, now)
            effects, may_wait = self._make_room(ticket, now)
            return [*effects, *self._prechecks.park(ticket)] if may_wait else effects
        return self._line_up(ticket, now)

    def _line_up(self, ticket: Ticket, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._is_full_for(ticket.resident) and not ticket.is_control:
            effects = self._planner.plan(now)
            # What does not wait needs no room in the queue.
            if not self._admits(self._pool.budget.states.get(ticket.resident)):
                more, may_wait = self._make_room(ticket, now)
                effects += more
                if not may_wait:
                    return effects
        if self._pool.queue.add(ticket, now):
            effects += self._planner.plan(now)
        return effects

    def _make_room(self, ticket: Ticket, now: float) -> tuple[list[Effect], bool]:
        """Have another ticket make room for this one where the queue is full, or refuse this one.

        Returns:
            what follows, and whether the ticket may wait.
        """
        if ticket.is_control or not self._is_full_for(ticket.resident):
            return [], True
        rules, queue = self._pool.rules, self._pool.queue
        limit = min(rules.max_queue_per_model or rules.max_queue, rules.max_queue)
        retry_s = self._planner.scheduler.retry_after_s(now)
        error = QueueFull(f"{limit} requests are waiting already", retry_after_s=retry_s)
        other = queue.yielding(ticket, in_line=self._has_full_line(ticket.resident))
        if other is None:
            return [messages.Refuse(ticket, error)], False
        queue.remove(other)  # its resident may be waited for by nobody now
        return [messages.Refuse(other, error), *self._planner.plan(now)], True

    def _is_worth_a_look(self, resident: ResidentId, now: float) -> bool:
        """Tell whether to look at an engine before a ticket lines up: where others would have to go, or it failed."""
        if resident in self._pool.budget.states or not self._pool.budget.profile(resident).is_checkable:
            return False
        if self._prechecks.count(resident) or self._pool.failures.current(resident, now) is not None:
            return True
        return not (self._pool.queue.count(resident) or self._pool.budget.fits_now(resident))

    @staticmethod
    def _admits(state: ResidentState | None) -> TypeGuard[ResidentState]:
        return state is not None and state.phase is Phase.READY and len(state.leases) < state.most_leases

    def _refusal(self, resident: ResidentId, now: float) -> RouterError | None:
        if self._pool.is_closing:
            return RouterClosing("the router is shutting down")
        failure = self._pool.failures.current(resident, now)
        if failure is not None and not (
            failure.was_seen and self._pool.budget.profile(resident).is_checkable
        ):
            return failure.refusal(now)
        return self._pool.budget.objection(resident)

    def learn(self, event: messages.Checked | messages.Shut | messages.Opened, now: float) -> list[Effect]:
        """Take in what was seen of a resident."""
        match event:
            case messages.Checked(resident, objection):
                return self._checked(resident, objection, now)
            case messages.Shut(resident, error, until):
                return self._shut(resident, error, now, until)
            case messages.Opened(resident):
                self._open(resident)
                return []

    def _checked(self, resident: ResidentId, objection: RouterError | None, now: float) -> list[Effect]:
        """Let those line up who waited for a look, or refuse them."""
        tickets = self._prechecks.end(resident)
        failure = self._pool.failures.current(resident, now)
        if objection is not None:
            if failure is not None:
                failure.was_seen = True
                objection = failure.refusal(now)
            return [messages.Refuse(ticket, objection) for ticket in tickets]
        if failure is not None and failure.was_seen:
            self._pool.failures.forget(resident)  # what was wrong is over
        return self._line_up_all(tickets, now)

    def found(self, resident: ResidentId, now: float) -> list[Effect]:
        """Let those line up who waited for a look at what turned out to run already."""
        return self._line_up_all(self._prechecks.take(resident), now)

    def place(self, ticket: Ticket) -> int:
        """See `Ledger.place`."""
        state = self._pool.budget.states.get(ticket.resident)
        is_alone = state is not None and state.phase is Phase.READY  # others are not in its way then
        budget, resident = self._pool.budget, ticket.resident
        return sum(
            other.arrived_at < ticket.arrived_at
            for other in self._pool.queue
            if other.resident == resident
            or (not is_alone and budget.are_neighbours(other.resident, resident))
        )

    def _shut(self, resident: ResidentId, error: RouterError, now: float, until: float) -> list[Effect]:
        """Admit nobody else to a resident that cannot be reached, and refuse those who wait for it."""
        if (state := self._pool.budget.states.get(resident)) is None:
            return []
        state.is_shut, state.most_leases = True, 0
        self._pool.failures.shut(resident, error, now, until)
        refusal = error.remembered(ago_s=0.0, again_in_s=until - now)
        return [messages.Refuse(ticket, refusal) for ticket in self._pool.queue.take(resident)]

    def _open(self, resident: ResidentId) -> None:
        """Admit to a resident again that was shut."""
        if (state := self._pool.budget.states.get(resident)) is not None:
            state.is_shut = False
            self._pool.budget.describe(state)
            self._pool.failures.forget(resident)

    def _line_up_all(self, tickets: list[Ticket], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for ticket in tickets:
            # Somebody may have been pinned meanwhile.
            error = self._refusal(ticket.resident, now)
            effects += [messages.Refuse(ticket, error)] if error is not None else self._line_up(ticket, now)
        return effects

    def _has_full_line(self, resident: ResidentId) -> bool:
        per_model = self._pool.rules.max_queue_per_model
        if not per_model:
            return False
        return self._pool.queue.count(resident) + self._prechecks.count(resident) >= per_model

    def _is_full_for(self, resident: ResidentId) -> bool:
        waiting = self._pool.queue.length + len(self._prechecks)
        return self._has_full_line(resident) or waiting >= self._pool.rules.max_queue
