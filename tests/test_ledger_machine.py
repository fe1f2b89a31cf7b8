"""The ledger against a model of the world: whatever happens, in whatever order, its invariants hold.

The machine plays engines, memory, clients and the clock. It believes only the effects that the ledger
returned, and judges each of them by what it knows of the world. In the end it lets the world run fairly, and
sees that everybody who waits is served or refused, and that a closed ledger becomes empty.

Copies of the ledger that were broken on purpose show that the machine would notice.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import pytest
from attrs import define
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.short_cut import take_in

from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineDied,
    EngineStartFailed,
    EngineStopFailed,
    LeaseRevoked,
    QueueFull,
    RouterClosing,
    RouterError,
)
from engine_router.residency import messages
from engine_router.residency.ledger import Ledger, Phase, ResidentState, Rules
from engine_router.residency.messages import Ticket
from engine_router.residency.planning import Planner
from engine_router.residency.queue import TicketQueue
from engine_router.residency.scheduling import Turn

# Whole seconds, so that many things happen at the same moment.
RULES = Rules(drain_timeout_s=3, max_wait_s=5, abandon_grace_s=2, failed_start_memory_s=4, max_queue=6)
RESIDENTS = [ResidentId(name) for name in "abc"]
residents = st.sampled_from(RESIDENTS)


@define(eq=False)
class Request:
    """What the world knows of a ticket."""

    ticket: Ticket
    at: float
    state: Literal["new", "waiting", "granted", "over"] = "new"
    error: RouterError | None = None


@define(eq=False)
class Present:
    """What the world knows of the resident that is there."""

    resident: ResidentId
    state: Literal["starting", "ready", "stopping", "stuck"] = "starting"
    ready_at: float = math.inf
    drain_began: float | None = None
    unload_at: float = math.inf
    adopted: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """The world around one ledger."""

    ledger_type: ClassVar[type[Ledger]] = Ledger

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.ledger_type(RULES)
        self.now = 0.0
        self.requests: dict[Ticket, Request] = {}
        self.present: Present | None = None
        self.settling: ResidentId | None = None
        self.closing_at = math.inf
        self.closing = False
        self.failures: dict[ResidentId, tuple[RouterError, float]] = {}
        self.holders_leave = True

    # What the world knows.

    def those(self, state: str) -> list[Request]:
        return [request for request in self.requests.values() if request.state == state]

    def waiting_for(self, resident: ResidentId) -> list[Request]:
        return [request for request in self.those("waiting") if request.ticket.resident == resident]

    def is_overdue(self, request: Request) -> bool:
        return request.state == "waiting" and self.now >= request.at + RULES.max_wait_s

    def is_in(self, *states: str) -> bool:
        return self.present is not None and self.present.state in states

    # What the ledger says must be done, and whether it may.

    def apply(self, event: messages.LedgerEvent) -> list[messages.Effect]:
        waited_before = [request.ticket for request in self.those("waiting")]
        effects = take_in(self.ledger, event, self.now)
        for effect in effects:
            match effect:
                case messages.Grant(ticket):
                    self.granted(self.requests[ticket], event, waited_before)
                case messages.Refuse(ticket, error):
                    request = self.requests[ticket]
                    assert request.state in ("new", "waiting"), "refused, though it does not wait"
                    request.state, request.error = "over", error
                case messages.Revoke(ticket, error):
                    self.revoked(self.requests[ticket], error, event)
                case messages.Start(resident, _, adopt):
                    self.started(resident, event, adopt=adopt)
                case messages.Drain(resident):
                    assert self.present is not None
                    assert (self.present.resident, self.present.state) == (resident, "ready")
                    assert self.present.drain_began is None
                    assert self.those("granted"), "drains nothing"
                    self.present.drain_began = self.now
                case messages.Resume(resident):
                    assert self.present is not None
                    assert self.present.drain_began is not None
                    self.present.drain_began = None
                case messages.Stop(resident):
                    self.stopped(resident)
                case messages.Settle(resident):
                    assert isinstance(event, messages.HasEnded)
                    assert event.resident == resident
                    assert not self.settling
                    self.settling = resident
        return effects

    def granted(self, request: Request, event: messages.LedgerEvent, waited_before: list[Ticket]) -> None:
        assert request.state in ("new", "waiting"), "granted, though it does not wait"
        assert self.present is not None
        assert (self.present.resident, self.present.state) == (request.ticket.resident, "ready")
        assert self.present.drain_began is None, "granted by a resident that drains"
        assert not self.closing
        is_of_batch = isinstance(event, messages.BecameReady) and request.ticket in waited_before
        if not is_of_batch:
            overtaken = [o for o in self.those("waiting") if self.is_overdue(o) and o.at <= request.at]
            overtaken = [o for o in overtaken if o.ticket.resident != request.ticket.resident]
            assert not overtaken, "overtakes an overdue ticket"
        request.state = "granted"

    def revoked(self, request: Request, error: RouterError, event: messages.LedgerEvent) -> None:
        assert request.state == "granted", "revoked, though it holds nothing"
        if isinstance(error, LeaseRevoked):
            present = self.present
            assert present is not None
            assert present.drain_began is not None
            by_rule = max(present.drain_began, present.ready_at + RULES.max_wait_s) + RULES.drain_timeout_s
            by_unload = max(present.drain_began, present.unload_at) + RULES.drain_timeout_s
            # What somebody asked for wins over the fair time of a batch.
            assert self.now >= min(by_rule, by_unload, self.closing_at), "revoked too early"
        else:
            assert isinstance(event, messages.HasEnded | messages.StopFailed)
        request.state, request.error = "over", error

    def started(self, resident: ResidentId, event: messages.LedgerEvent, *, adopt: bool) -> None:
        assert self.present is None, "starts beside another resident"
        assert not self.settling, "starts before memory has settled"
        assert not self.closing
        assert adopt == isinstance(event, messages.Adopt)
        if not adopt:
            assert self.those("waiting") or isinstance(event, messages.Acquire)
            oldest = min(
                (request.at for request in self.requests.values() if self.wants(request)), default=None
            )
            assert any(r.at == oldest for r in self.requests.values() if self.wants(r, resident)), (
                "not the oldest"
            )
        self.present = Present(resident, adopted=adopt)

    def wants(self, request: Request, resident: ResidentId | None = None) -> bool:
        return request.state in ("new", "waiting") and resident in (None, request.ticket.resident)

    def stopped(self, resident: ResidentId) -> None:
        present = self.present
        assert present is not None
        assert present.resident == resident
        assert present.state != "stopping", "stopped twice"
        assert not self.those("granted"), "stopped under its leases"
        if present.state == "starting" and not self.closing and present.unload_at == math.inf:
            assert not self.waiting_for(resident), "a start is stopped that somebody waits for"
        present.state = "stopping"

    # What happens.

    @initialize(holders_leave=st.booleans(), found=st.none() | residents)
    def begin(self, holders_leave: bool, found: ResidentId | None) -> None:
        self.holders_leave = holders_leave
        if found is not None:
            self.apply(messages.Adopt(found))
            assert self.present is not None
            assert self.present.adopted

    @rule(resident=residents)
    def acquire(self, resident: ResidentId) -> None:
        ticket = Ticket(resident)
        request = self.requests[ticket] = Request(ticket, self.now)
        queued = len(self.those("waiting"))
        self.apply(messages.Acquire(ticket))
        remembered, until = self.failures.get(resident, (None, 0.0))
        if self.closing:
            assert isinstance(request.error, RouterClosing)
        elif remembered is not None and self.now < until:
            assert type(request.error) is type(remembered)
            assert str(request.error).startswith(f"{remembered} (remembered: ")
        elif request.state == "over":
            assert isinstance(request.error, QueueFull)
            assert queued >= RULES.max_queue
        elif request.state == "new":
            assert queued < RULES.max_queue, "more wait than may"
            request.state = "waiting"

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(list(self.requests.values()))))

    @precondition(lambda self: self.those("waiting"))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(self.those("waiting"))))

    @precondition(lambda self: self.is_in("starting"))
    @rule(seconds=st.integers(0, 2))
    def everybody_leaves_and_one_comes_back(self, seconds: int) -> None:
        assert self.present is not None
        for request in self.waiting_for(self.present.resident):
            self.let_go(request)
        self.time_passes(seconds)
        if self.present is not None:
            self.acquire(self.present.resident)

    @precondition(lambda self: self.is_in("ready") and self.those("granted"))
    @rule(other=residents, seconds=st.integers(4, 6))
    def another_becomes_overdue_and_one_comes_too_late(self, other: ResidentId, seconds: int) -> None:
        assert self.present is not None
        resident = self.present.resident
        self.acquire(other)
        self.time_passes(seconds)
        self.acquire(resident)

    def let_go(self, request: Request) -> None:
        request.state = "over"
        self.apply(messages.Release(request.ticket))

    @precondition(lambda self: self.is_in("starting"))
    @rule()
    def start_succeeds(self) -> None:
        assert self.present is not None
        self.present.state, self.present.ready_at = "ready", self.now
        batch = self.waiting_for(self.present.resident)
        self.apply(messages.BecameReady(self.present.resident))
        assert all(request.state == "granted" for request in batch), "the batch is not served first"

    @precondition(lambda self: self.is_in("stopping"))
    @rule()
    def news_of_readiness_comes_late(self) -> None:
        assert self.present is not None
        assert self.apply(messages.BecameReady(self.present.resident)) == []

    @precondition(lambda self: self.is_in("starting"))
    @rule()
    def start_fails(self) -> None:
        assert self.present is not None
        resident, was_adopted = self.present.resident, self.present.adopted
        error = EngineStartFailed(resident.engine, "failed")
        waited = self.waiting_for(resident)
        self.ends(error)
        if not was_adopted:
            assert all(request.error is error for request in waited)
            self.failures[resident] = (error, self.ledger.failures()[resident].until)

    @precondition(lambda self: self.is_in("ready", "stopping"))
    @rule()
    def dies(self) -> None:
        assert self.present is not None
        resident, was_ready = self.present.resident, self.present.state == "ready"
        error = EngineDied(resident.engine, "died")
        self.ends(error)
        if was_ready:
            self.failures[resident] = (error, self.ledger.failures()[resident].until)

    @precondition(lambda self: self.is_in("stopping"))
    @rule()
    def stop_succeeds(self) -> None:
        self.ends(None)

    def ends(self, error: RouterError | None) -> None:
        present, self.present = self.present, None
        assert present is not None
        held = self.those("granted")
        effects = self.apply(messages.HasEnded(present.resident, error))
        assert any(isinstance(effect, messages.Settle) for effect in effects), "its memory is not waited for"
        assert all(request.state == "over" for request in held), "leases of what is gone"

    @precondition(lambda self: self.is_in("starting", "stopping"))
    @rule()
    def stop_fails(self) -> None:
        assert self.present is not None
        resident = self.present.resident
        self.present.state, self.present.unload_at = "stuck", math.inf
        if self.closing:
            self.present = None  # left behind
        error = EngineStopFailed(resident.engine, "is still there")
        waited = self.those("waiting")
        self.apply(messages.StopFailed(resident, error))
        assert all(request.error is error for request in waited), "waits for what cannot be stopped"

    @precondition(lambda self: self.settling)
    @rule()
    def memory_settles(self) -> None:
        resident, self.settling = self.settling, None
        assert resident is not None
        self.apply(messages.Settled(resident))

    @rule(resident=residents)
    def unload(self, resident: ResidentId) -> None:
        if self.present is not None and self.present.resident == resident:
            self.present.unload_at = min(self.present.unload_at, self.now)
        self.apply(messages.Unload(resident))

    @precondition(lambda self: not self.closing and self.now > 10)
    @rule(grace_s=st.integers(0, 5))
    def close(self, grace_s: int) -> None:
        self.closing, self.closing_at = True, self.now + grace_s
        self.apply(messages.Close(self.closing_at))

    @rule(resident=residents)
    def finds_something_late(self, resident: ResidentId) -> None:
        if self.present is not None or self.settling or self.closing:
            assert self.apply(messages.Adopt(resident)) == []

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds: int) -> None:
        until = self.now + seconds
        while self.ledger.wake_at() <= until:
            self.wake()
        self.now = until

    def wake(self) -> None:
        self.now = max(self.now, self.ledger.wake_at())
        self.apply(messages.Tick())
        assert self.ledger.wake_at() > self.now, "wants to be woken again and again"

    # What holds always.

    @invariant()
    def the_ledger_knows_the_world(self) -> None:
        assert set(self.ledger.waiting()) == {request.ticket for request in self.those("waiting")}
        assert list(self.ledger.settling) == ([self.settling] if self.settling else [])
        assert self.ledger.is_empty == (self.present is None and self.settling is None)
        present = next(iter(self.ledger.states), None)
        assert (present is None) == (self.present is None)
        leases = set(present.leases) if present is not None else set()
        assert leases == {request.ticket for request in self.those("granted")}
        if present is not None and self.present is not None:
            state = "ready" if present.phase is Phase.DRAINING else present.phase.value
            assert (present.resident, state) == (self.present.resident, self.present.state)
            assert (present.phase is Phase.DRAINING) == (
                self.present.drain_began is not None
            ) or state != "ready"
            assert not leases or state == "ready", "leases of what is not ready"

    @invariant()
    def draining_without_leases_means_stopping(self) -> None:
        present = next(iter(self.ledger.states), None)
        assert present is None or present.phase is not Phase.DRAINING or present.leases

    @invariant()
    def whoever_waits_waits_for_something_that_is_going_to_happen(self) -> None:
        waiting = self.those("waiting")
        if waiting:
            assert not self.closing
            assert self.settling or self.is_in("starting", "stopping", "ready")
        if waiting and self.is_in("ready"):
            assert self.those("granted"), "nobody uses it, and yet it does not yield"
            assert self.now < self.ledger.wake_at() < math.inf
        if waiting and self.present is not None and self.is_in("ready") and self.present.drain_began is None:
            assert not self.waiting_for(self.present.resident), "it is open, and yet somebody waits for it"
            assert not any(map(self.is_overdue, waiting)), "an overdue ticket, and yet it is open"

    @invariant()
    def nobody_starts_for_nobody(self) -> None:
        if (
            self.present is not None
            and self.is_in("starting")
            and not self.waiting_for(self.present.resident)
        ):
            has_reason = self.present.adopted and not self.those("waiting")
            assert has_reason or self.ledger.wake_at() <= self.now + RULES.abandon_grace_s

    # What holds in the end.

    def teardown(self) -> None:
        self.run_fairly_until(lambda: not self.those("waiting"))
        if not self.closing:
            self.closing, self.closing_at = True, self.now + 3
            self.apply(messages.Close(self.closing_at))
        self.run_fairly_until(lambda: self.ledger.is_empty)
        self.the_ledger_knows_the_world()
        for request in list(self.requests.values()):
            self.let_go(request)
        assert repr(self.ledger) == "<Ledger empty, waiting {}, settling None>"

    def run_fairly_until(self, done: object) -> None:
        assert callable(done)
        for _ in range(60):
            if done():
                return
            if self.settling:
                self.memory_settles()
            elif self.is_in("starting"):
                self.start_succeeds()
            elif self.is_in("stopping"):
                self.stop_succeeds()
            elif self.holders_leave and self.those("granted"):
                self.let_go(self.those("granted")[0])
            else:
                assert self.ledger.wake_at() < math.inf, "nothing is going to happen"
                self.wake()
            self.the_ledger_knows_the_world()
            self.whoever_waits_waits_for_something_that_is_going_to_happen()
        raise AssertionError("somebody waits for ever")


LedgerMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase


# Ledgers that were broken on purpose.


class BrokenPlanner(Planner):
    """A planner with one rule broken."""


class BrokenQueue(TicketQueue):
    """A queue with one rule broken."""


class KnowsNoFairness(BrokenPlanner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        return [] if any(victim.leases for victim in turn.victims) else super()._take_turn(turn, now)


class NeverTakesBack(Ledger):
    def give_back(self, ticket: Ticket, now: float) -> messages.LedgerEvent | None:
        is_leased = any(ticket in state.leases for state in self.states)
        return None if is_leased else super().give_back(ticket, now)


class KeepsWithdrawnTickets(Ledger):
    def _release(self, ticket: Ticket, now: float) -> list[messages.Effect]:
        is_leased = any(ticket in state.leases for state in self.states)
        return super()._release(ticket, now) if is_leased else []


class GrantsWhileDraining(BrokenPlanner):
    def _go_on_draining(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        return [*self.grant(state, now), *super()._go_on_draining(state, in_the_way_of, now)]


class DrainsForEver(BrokenPlanner):
    def _go_on_draining(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        state.drain_deadline = math.inf
        return super()._go_on_draining(state, in_the_way_of, now)


class RevokesTooEarly(BrokenPlanner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        effects = super()._take_turn(turn, now)
        for victim in turn.victims:
            victim.drain_deadline = min(victim.drain_deadline, now + 1)
        return effects


class StartsBeforeMemorySettled(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        effects = super()._ended(resident, error, now)
        self._budget.settling.clear()
        return effects


class StartsBesideWhatIsStuck(Ledger):
    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[messages.Effect]:
        self._budget.states.pop(resident, None)
        return []


class ForgetsWhomItRefused(Ledger):
    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[messages.Effect]:
        super()._stop_failed(resident, error)
        return []


class KeepsWaitersOfFailedStarts(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        return super()._ended(resident, None, now)


class KeepsLeasesOfTheDead(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        effects = super()._ended(resident, error, now)
        return [effect for effect in effects if not isinstance(effect, messages.Revoke)]


class TestsTheDeadlineBeforeTheBatch(Ledger):
    __test__ = False

    def _became_ready(self, resident: ResidentId, now: float) -> list[messages.Effect]:
        state = self.state(resident)
        if state is not None and state.phase is Phase.STARTING:
            state.phase, state.ready_at, state.idle_since = Phase.READY, now, now
        return []


class BelievesLateNews(Ledger):
    def _became_ready(self, resident: ResidentId, now: float) -> list[messages.Effect]:
        if (state := self.state(resident)) is not None:
            state.phase = Phase.STARTING
        return super()._became_ready(resident, now)


class SwapsUnderLeases(BrokenPlanner):
    def _go_on_serving(self, state: ResidentState, now: float) -> list[messages.Effect]:
        effects = super()._go_on_serving(state, now)
        if state.leases and self._queue:
            effects += self._stop(state, "impatience", None)
        return effects


class GrantsTwice(BrokenPlanner):
    def grant(self, state: ResidentState, now: float) -> list[messages.Effect]:
        tickets = [ticket for ticket in self._queue if ticket.resident == state.resident]
        for ticket in tickets:
            state.lend(ticket, now)
        return [messages.Grant(ticket) for ticket in tickets]


class ServesTheYoungestFirst(BrokenQueue):
    def in_turn(self, now: float) -> Iterator[ResidentId]:
        return reversed(list(super().in_turn(now)))


class NeverGivesUpAStart(BrokenPlanner):
    def _go_on_starting(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        return []


class GivesUpWantedStarts(BrokenPlanner):
    def _go_on_starting(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        if now >= state.abandon_at:
            return self._stop(state, "too late", None)
        if self._queue.count(state.resident) and state.abandon_at < math.inf:
            return []  # nobody tells it that the client came back
        return super()._go_on_starting(state, in_the_way_of, now)


class ForgetsFailures(Ledger):
    def _enter(self, ticket: Ticket, now: float) -> list[messages.Effect]:
        self._failures.forget(ticket.resident)
        return super()._enter(ticket, now)


class SleepsTooLong(Ledger):
    def wake_at(self) -> float:
        return super().wake_at() + 1


class KeepsTheIdleOne(BrokenPlanner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        return [] if any(victim.is_idle for victim in turn.victims) else super()._take_turn(turn, now)


class AdmitsWhileClosing(Ledger):
    def _close(self, deadline: float) -> list[messages.Effect]:
        effects = super()._close(deadline)
        self._pool.closing_at = math.inf
        return effects


def with_broken(part: type[Ledger | BrokenPlanner | BrokenQueue]) -> type[Ledger]:
    """Make a type of ledger in which one part is the broken one."""
    if issubclass(part, Ledger):
        return part

    class Broken(Ledger):
        def __init__(self, rules: Rules) -> None:
            super().__init__(rules)
            if issubclass(part, BrokenPlanner):
                self._planner = part(self._pool)
            else:
                self._queue.__class__ = part

    return Broken


BROKEN = [
    AdmitsWhileClosing,
    BelievesLateNews,
    DrainsForEver,
    ForgetsFailures,
    ForgetsWhomItRefused,
    GivesUpWantedStarts,
    GrantsTwice,
    GrantsWhileDraining,
    KeepsLeasesOfTheDead,
    KeepsTheIdleOne,
    KeepsWaitersOfFailedStarts,
    KeepsWithdrawnTickets,
    KnowsNoFairness,
    NeverGivesUpAStart,
    NeverTakesBack,
    RevokesTooEarly,
    ServesTheYoungestFirst,
    SleepsTooLong,
    StartsBeforeMemorySettled,
    StartsBesideWhatIsStuck,
    SwapsUnderLeases,
    TestsTheDeadlineBeforeTheBatch,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_ledger_is_caught(broken: type[Ledger | BrokenPlanner | BrokenQueue]) -> None:
    machine = type(broken.__name__ + "Machine", (LedgerMachine,), {"ledger_type": with_broken(broken)})
    quick = settings(
        max_examples=2000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[HypothesisPhase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=quick)
