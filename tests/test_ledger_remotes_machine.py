"""The ledger of residents that are always there, against a model of the world: their limits, and their circuits.

Whatever happens, in whatever order: none is lent more often than it may be, or while it cannot be reached; nobody waits
beside a free place; each line is served in its order, and concerns no other. Broken parts show that it would be noticed.
"""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
from attrs import define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.broken_ledger import assert_caught

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import EngineUnreachable, QueueFull, RouterClosing, RouterError
from engine_router.residency import messages
from engine_router.residency.admission import Admission
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, ResidentState, Rules
from engine_router.residency.messages import Ticket
from engine_router.residency.planning import Planner
from engine_router.residency.queue import TicketQueue

RULES = Rules(max_wait_s=8, max_queue=20, max_queue_per_model=4)
PLACES = {"remotes": Capacity(is_boundless=True)}
LIMITS = {ResidentId("one"): 1.0, ResidentId("two"): 2.0, ResidentId("any"): math.inf}
residents = st.sampled_from(list(LIMITS))
RANKS = ("high", "normal", "low")


@define(eq=False)
class Waiting:
    """What the world knows of a ticket that waits."""

    at: int
    rank: int
    deadline: float

    def turn(self, now: float) -> tuple[float, ...]:
        return (0, self.deadline, self.at) if self.deadline <= now else (1, self.rank, self.at)


class RemotesMachine(RuleBasedStateMachine):
    """Servers elsewhere, their clients and a clock around one ledger, whose effects are judged."""

    ledger_type: ClassVar[type[Ledger]] = Ledger

    def __init__(self) -> None:
        super().__init__()
        self.limits = dict(LIMITS)
        self.ledger = self.ledger_type(RULES, PLACES, self.profile)
        self.now = 0.0
        self.arrivals = 0
        self.waiting: dict[Ticket, Waiting] = {}
        self.held: dict[Ticket, None] = {}
        self.shut: dict[ResidentId, tuple[RouterError, float]] = {}
        self.is_closing = False

    def profile(self, resident: ResidentId) -> Profile:
        return Profile(is_always_there=True, max_leases=self.limits[resident])

    # What the world knows.

    def held_of(self, resident: ResidentId) -> list[Ticket]:
        return [ticket for ticket in self.held if ticket.resident == resident]

    def line_of(self, resident: ResidentId) -> list[Ticket]:
        line = [ticket for ticket in self.waiting if ticket.resident == resident]
        return sorted(line, key=lambda ticket: self.waiting[ticket].turn(self.now))

    def has_place(self, resident: ResidentId) -> bool:
        is_open = resident not in self.shut and not self.is_closing
        return is_open and len(self.held_of(resident)) < self.limits[resident]

    def is_refusing(self, resident: ResidentId) -> bool:
        return resident in self.shut and self.now < self.shut[resident][1]

    # What the ledger says must be done, and whether it may.

    def apply(self, event: messages.LedgerEvent) -> None:
        for effect in self.ledger.apply(event, self.now):
            match effect:
                case messages.Grant(ticket):
                    self.granted(ticket)
                case messages.Refuse(ticket, error):
                    self.refused(ticket, error)
                case messages.Revoke(ticket, _):
                    assert self.is_closing, "revoked, though nobody goes down"
                    del self.held[ticket]
                case messages.Drain() | messages.Stop():
                    assert self.is_closing, "what runs by itself is not stopped for anybody"
                case _:
                    pass

    def granted(self, ticket: Ticket) -> None:
        resident = ticket.resident
        assert self.has_place(resident), "lent past its limit, or while it cannot be reached"
        if self.limits[resident] < math.inf:  # else all of the line goes at once
            assert ticket == self.line_of(resident)[0], "overtakes its line"
        del self.waiting[ticket]
        self.held[ticket] = None

    def refused(self, ticket: Ticket, error: RouterError) -> None:
        resident = ticket.resident
        if isinstance(error, RouterClosing):
            assert self.is_closing
        elif isinstance(error, QueueFull):
            is_full = len(self.line_of(resident)) > RULES.max_queue_per_model
            assert is_full or len(self.waiting) > RULES.max_queue, "refused beside an empty queue"
        else:
            assert self.is_refusing(resident), "refused, though it can be reached"
            assert error.retry_after_s == self.shut[resident][1] - self.now
        del self.waiting[ticket]

    # What happens.

    @initialize()
    def begin(self) -> None:
        for resident in self.limits:
            effect = messages.Start(resident, "found running", adopt=True)
            assert self.ledger.apply(messages.Adopt(resident), 0) == [effect]
            self.apply(messages.BecameReady(resident))

    @rule(
        resident=residents,
        priority=st.sampled_from(["high", "normal", "normal", "low"]),
        count=st.integers(1, 3),
    )
    def asks(self, resident: ResidentId, priority: Priority, count: int) -> None:
        for _ in range(count):
            ticket, has_place = Ticket(resident, priority), self.has_place(resident)
            has_place = has_place and not self.line_of(resident)
            wait_s = RULES.max_wait_s * (0.25 if priority == "high" else 1)
            self.arrivals += 1
            self.waiting[ticket] = Waiting(self.arrivals, RANKS.index(priority), self.now + wait_s)
            if self.ledger.lend(ticket, self.now):
                self.granted(ticket)
            else:
                self.apply(messages.Acquire(ticket))
            assert not has_place or ticket in self.held, "waits beside a free place"
            assert not self.is_refusing(resident) or ticket not in self.waiting, "waits for what is not there"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def gives_back(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(list(self.held))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leaves_its_line(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(list(self.waiting))))

    def let_go(self, ticket: Ticket) -> None:
        self.held.pop(ticket, None)
        self.waiting.pop(ticket, None)
        if (event := self.ledger.give_back(ticket, self.now)) is not None:
            self.apply(event)

    @rule(resident=residents, seconds=st.integers(1, 9))
    def cannot_be_reached(self, resident: ResidentId, seconds: int) -> None:
        error = EngineUnreachable(resident.engine, "does not accept connections")
        held = self.held_of(resident)
        self.shut[resident] = (error, self.now + seconds)
        self.apply(messages.Shut(resident, error, self.now + seconds))
        assert not self.line_of(resident), "waits for what is not there"
        assert self.is_closing or self.held_of(resident) == held, "those under way do not go on"

    @rule(resident=residents)
    def can_be_reached_again(self, resident: ResidentId) -> None:
        self.shut.pop(resident, None)
        self.apply(messages.Opened(resident))

    @rule(resident=residents)
    def is_reset(self, resident: ResidentId) -> None:
        """Somebody wants it tried again: who comes now waits for the next look at it."""
        if resident in self.shut:
            self.shut[resident] = (self.shut[resident][0], self.now)
        self.apply(messages.Reset(resident))

    @rule(resident=residents, limit=st.sampled_from([1, 2, 3, math.inf]))
    def another_limit(self, resident: ResidentId, limit: float) -> None:
        self.limits[resident] = limit
        self.apply(messages.Reconfigured(RULES, PLACES))

    @rule(resident=residents, seconds=st.sampled_from([0.0, 3.0, -1.0]))
    def keep_alive(self, resident: ResidentId, seconds: float) -> None:
        self.apply(messages.KeepAlive(resident, seconds))

    @rule(seconds=st.integers(1, 9))
    def time_passes(self, seconds: int) -> None:
        until = self.now + seconds
        while self.ledger.wake_at() <= until:
            self.now = max(self.now, self.ledger.wake_at())
            self.apply(messages.Tick())
            assert self.ledger.wake_at() > self.now, "wants to be woken again and again"
        self.now = until

    @precondition(lambda self: not self.is_closing and self.now > 30)
    @rule()
    def close(self) -> None:
        self.is_closing = True
        self.apply(messages.Close(self.now + 3))
        assert not self.waiting

    # What holds always.

    @invariant()
    def the_ledger_knows_the_world(self) -> None:
        assert set(self.ledger.waiting()) == set(self.waiting)
        for state in self.ledger.states:
            assert set(state.leases) == set(self.held_of(state.resident))
            assert self.is_closing or state.phase is Phase.READY

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        for resident in self.limits:
            assert not (self.line_of(resident) and self.has_place(resident)), "waits beside a free place"

    @invariant()
    def nothing_is_left_for_the_next_event(self) -> None:
        assert self.ledger.apply(messages.Tick(), self.now) == []

    def teardown(self) -> None:
        """Whoever waits is served in the end, once all can be reached and all give back."""
        for resident in self.limits:
            self.can_be_reached_again(resident)
        for _ in range(self.arrivals + 1):
            for ticket in list(self.held):
                self.let_go(ticket)
        assert not self.waiting, "somebody waits for ever"


RemotesMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRemotes = RemotesMachine.TestCase


# Parts that were broken on purpose.


class LendsPastTheLimit(Ledger):
    def lend(self, ticket: Ticket, now: float) -> bool:
        state = self.state(ticket.resident)
        if state is None or state.is_shut or self.is_closing:
            return False
        state.lend(ticket, now)
        return True


class LendsWhatIsShut(Ledger):
    def lend(self, ticket: Ticket, now: float) -> bool:
        state = self.state(ticket.resident)
        if state is not None and state.is_shut and not self.is_closing:
            state.lend(ticket, now)
            return True
        return super().lend(ticket, now)


class GrantsTheWholeLine(Planner):
    def grant(self, state: ResidentState, now: float) -> list[messages.Effect]:
        most, state.most_leases = state.most_leases, math.inf
        try:
            return super().grant(state, now) if most else []
        finally:
            state.most_leases = most


class GrantsOneAtATime(Planner):
    def grant(self, state: ResidentState, now: float) -> list[messages.Effect]:
        return super().grant(state, now) if not state.leases else []


class ForgetsWhoWaitsForAPlace(Planner):
    def may_grant(self, state: ResidentState) -> bool:
        return False


class ServesTheYoungestFirst(TicketQueue):
    def take_next(self, resident: ResidentId, now: float) -> Ticket | None:
        line = [ticket for ticket in self if ticket.resident == resident]
        if not line:
            return None
        self.remove(line[-1])
        return line[-1]


class LetsNobodyOvertakeAnywhere(Ledger):
    """One line keeps all others waiting."""

    def _enter(self, ticket: Ticket, now: float) -> list[messages.Effect]:
        if self._queue.length and not self.is_closing:
            self._queue.add(ticket, now)
            return []
        return super()._enter(ticket, now)

    def lend(self, ticket: Ticket, now: float) -> bool:
        return not self._queue.length and super().lend(ticket, now)


class KeepsWaitersOfWhatIsShut(Admission):
    def _shut(
        self, resident: ResidentId, error: RouterError, now: float, until: float
    ) -> list[messages.Effect]:
        waiting = self._pool.queue.take(resident)
        super()._shut(resident, error, now, until)
        for ticket in waiting:
            self._pool.queue.add(ticket, now)
        return []


class RevokesWhatIsShut(Admission):
    def _shut(
        self, resident: ResidentId, error: RouterError, now: float, until: float
    ) -> list[messages.Effect]:
        effects = super()._shut(resident, error, now, until)
        leases = list(self._pool.budget.states[resident].leases)
        return [*effects, *(messages.Revoke(ticket, error) for ticket in leases)]


class AdmitsWhileItIsShut(Admission):
    def _shut(
        self, resident: ResidentId, error: RouterError, now: float, until: float
    ) -> list[messages.Effect]:
        effects = super()._shut(resident, error, now, until)
        self._pool.failures.forget(resident)
        return effects


class NeverOpensAgain(Admission):
    def _open(self, resident: ResidentId) -> None:
        self._pool.failures.forget(resident)


class OpensForOneOnly(Admission):
    def _open(self, resident: ResidentId) -> None:
        super()._open(resident)
        if (state := self._pool.budget.states.get(resident)) is not None:
            state.most_leases = 1


class ForgetsNewLimits(Ledger):
    def _take_in(self, event: messages.LedgerEvent, now: float) -> list[messages.Effect]:
        before = {state.resident: state.most_leases for state in self.states}
        effects = super()._take_in(event, now)
        if isinstance(event, messages.Reconfigured):
            for state in self.states:
                state.most_leases = before[state.resident]
        return effects


class OpensByANewConfiguration(Ledger):
    def _take_in(self, event: messages.LedgerEvent, now: float) -> list[messages.Effect]:
        if isinstance(event, messages.Reconfigured):
            for state in self.states:
                state.is_shut = False
        return super()._take_in(event, now)


BROKEN: list[type] = [
    LendsPastTheLimit,
    LendsWhatIsShut,
    GrantsTheWholeLine,
    GrantsOneAtATime,
    ForgetsWhoWaitsForAPlace,
    ServesTheYoungestFirst,
    LetsNobodyOvertakeAnywhere,
    KeepsWaitersOfWhatIsShut,
    RevokesWhatIsShut,
    AdmitsWhileItIsShut,
    NeverOpensAgain,
    OpensForOneOnly,
    ForgetsNewLimits,
    OpensByANewConfiguration,
]


@pytest.mark.parametrize("part", BROKEN, ids=lambda part: part.__name__)
def test_a_broken_part_is_caught(part: type) -> None:
    assert_caught(RemotesMachine, part)
