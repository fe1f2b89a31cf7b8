"""The ledger of a pool with a budget against a model of the world, as in test_ledger_machine.py.

Several residents at once, of different needs; groups, pins, priorities, holds, keep-alives, what is loaded
ahead; starts that fail, deaths, stops that fail, cancelled requests, needs that turn out different.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import attrs
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
    NeverFits,
    QueueFull,
    RouterError,
)
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, ResidentState, Rules
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Ticket
from engine_router.residency.planning import Planner
from engine_router.residency.queue import TicketQueue
from engine_router.residency.scheduling import Scheduler, Turn

RULES = Rules(
    drain_timeout_s=3, max_wait_s=8, abandon_grace_s=2, failed_start_memory_s=4, max_queue=12, hold_s=2
)
BUDGET = 10
CAPACITY = Capacity(budget_bytes=BUDGET, max_resident=3)
IDLE_S = 12
PROFILES = {
    ResidentId(name): Profile(
        need_bytes=need, group=group, start_s=start, idle_timeout_s=IDLE_S, is_checkable=name in "acf"
    )
    for name, need, group, start in [
        ("a", 4, None, 10), ("b", 4, None, 2), ("c", 6, None, 30),
        ("d", 3, "x", 5), ("e", 3, "y", 5), ("f", 2, "x", None), ("g", 1, None, 1), ("huge", 11, None, 1), ("new", None, None, None),
    ]
}  # fmt: skip
PROFILES[ResidentId("guess")] = Profile(
    need_bytes=14, is_estimated=True, least_bytes=3, idle_timeout_s=IDLE_S
)
RESIDENTS = list(PROFILES)
residents = st.sampled_from(RESIDENTS)
priorities = st.sampled_from(["high", "normal", "normal", "low"])
keep_alives = st.sampled_from([None, None, None, 0.0, 3.0, -1.0])


def may_share(one: ResidentId, other: ResidentId) -> bool:
    groups = {PROFILES[one].group, PROFILES[other].group} - {None}
    return len(groups) < 2


@define(eq=False)
class Request:
    """What the world knows of a ticket."""

    ticket: Ticket
    at: float
    state: Literal["new", "waiting", "granted", "over"] = "new"
    error: RouterError | None = None

    @property
    def deadline(self) -> float:
        return self.at + RULES.max_wait_s * (0.25 if self.ticket.priority == "high" else 1)


@define(eq=False)
class Present:
    """What the world knows of a resident that is there."""

    resident: ResidentId
    need: float
    state: Literal["starting", "ready", "stopping", "stuck"] = "starting"
    ready_at: float = math.inf
    idle_since: float = math.inf
    keep_alive: float | None = None
    drain_began: float | None = None
    must_go: float = math.inf  # since when


class BudgetMachine(RuleBasedStateMachine):
    """The world around one ledger."""

    ledger_type: ClassVar[type[Ledger]] = Ledger

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.ledger_type(RULES, CAPACITY, PROFILES.__getitem__)
        self.now = 0.0
        self.requests: dict[Ticket, Request] = {}
        self.present: dict[ResidentId, Present] = {}
        self.settling: dict[ResidentId, float] = {}
        self.pins: set[ResidentId] = set()
        self.looks: set[ResidentId] = set()  # at engines, before others are stopped for them
        self.closing_at = math.inf
        self.holders_leave = True

    # What the world knows.

    def need_of(self, resident: ResidentId) -> float:
        """Return what a resident will be given; a guess takes no more than the pinned leave, but what is certain."""
        profile = PROFILES[resident]
        if not profile.is_guessed and profile.need_bytes is not None:
            return profile.need_bytes
        pinned = [p for p in self.present.values() if p.resident in self.pins and p.resident != resident]
        room = BUDGET - sum(p.need for p in pinned)
        guess = BUDGET if profile.need_bytes is None else profile.need_bytes
        return max(profile.least_bytes, min(guess, room)) if room > 0 else guess

    def those(self, state: str) -> list[Request]:
        return [request for request in self.requests.values() if request.state == state]

    def holders(self, resident: ResidentId) -> list[Request]:
        return [request for request in self.those("granted") if request.ticket.resident == resident]

    def waiting_for(self, resident: ResidentId) -> list[Request]:
        return [request for request in self.those("waiting") if request.ticket.resident == resident]

    def wanted(self) -> list[Request]:
        """Those who wait, or are being entered."""
        return [request for request in self.requests.values() if request.state in ("new", "waiting")]

    def in_state(self, *states: str) -> list[Present]:
        return [present for present in self.present.values() if present.state in states]

    @property
    def closing(self) -> bool:
        return self.closing_at < math.inf

    # What the ledger says must be done, and whether it may.

    def apply(self, event: messages.LedgerEvent) -> list[messages.Effect]:
        effects = take_in(self.ledger, event, self.now)
        for effect in effects:
            match effect:
                case messages.Grant(ticket):
                    self.granted(self.requests[ticket])
                case messages.Refuse(ticket, error):
                    self.refused(self.requests[ticket], error)
                case messages.Revoke(ticket, error):
                    self.revoked(self.requests[ticket], error, event)
                case messages.Start(resident, _, adopt):
                    self.started(resident, event, adopt=adopt)
                case messages.Drain(resident):
                    self.drained(self.present[resident])
                case messages.Resume(resident):
                    assert self.present[resident].drain_began is not None
                    self.present[resident].drain_began = None
                case messages.Stop(resident, _, wanted):
                    self.stopped(self.present[resident], wanted)
                case _:
                    self.noted(effect)
        return effects

    def noted(self, effect: messages.Effect) -> None:
        match effect:
            case messages.Settle(resident):
                assert resident in self.settling
            case messages.CheckStart(resident):
                assert PROFILES[resident].is_checkable
                assert resident not in self.looks, "looks twice"
                self.looks.add(resident)

    def granted(self, request: Request) -> None:
        assert request.state in ("new", "waiting"), "granted, though it does not wait"
        present = self.present[request.ticket.resident]
        assert present.state == "ready"
        assert present.drain_began is None, "granted by a resident that drains"
        assert not self.closing
        request.state, present.idle_since = "granted", math.inf

    def refused(self, request: Request, error: RouterError) -> None:
        assert request.state in ("new", "waiting"), "refused, though it does not wait"
        if isinstance(error, NeverFits):
            resident = request.ticket.resident
            pinned = [p for p in self.present.values() if p.resident in self.pins and p.resident != resident]
            assert (
                self.need_of(resident) + sum(p.need for p in pinned) > BUDGET
                or not all(may_share(resident, p.resident) for p in pinned)
                or len(pinned) >= CAPACITY.max_resident
            ), "it could fit"
        request.state, request.error = "over", error

    def revoked(self, request: Request, error: RouterError, event: messages.LedgerEvent) -> None:
        assert request.state == "granted", "revoked, though it holds nothing"
        present = self.present.get(request.ticket.resident)
        if isinstance(error, LeaseRevoked):
            assert present is not None
            assert present.drain_began is not None
            fair = max(present.drain_began, present.ready_at + RULES.max_wait_s) + RULES.drain_timeout_s
            asked = present.must_go + RULES.drain_timeout_s
            assert self.now >= min(fair, asked, self.closing_at), "revoked too early"
        else:
            assert isinstance(event, messages.HasEnded | messages.StopFailed | messages.Down)
        request.state, request.error = "over", error
        if present is not None and not self.holders(present.resident):
            present.idle_since = self.now

    def started(self, resident: ResidentId, event: messages.LedgerEvent, *, adopt: bool) -> None:
        assert resident not in self.present, "started twice"
        assert resident not in self.settling, "started while its own memory is still to come back"
        assert not self.closing
        assert adopt == isinstance(event, messages.Adopt)
        assert self.taken() + self.need_of(resident) <= BUDGET, "starts where there is no room"
        assert len(self.present) < CAPACITY.max_resident, "more residents than may be"
        assert all(may_share(resident, other) for other in self.present), "beside another group"
        wants = [request for request in self.wanted() if request.ticket.resident == resident]
        if not (wants or adopt):
            assert not self.wanted(), "loaded ahead, though somebody waits"
        self.breaks_no_promise(resident, wants)
        self.present[resident] = Present(resident, self.need_of(resident))

    def breaks_no_promise(self, resident: ResidentId, wants: list[Request]) -> None:
        """Who is overdue and first in turn must not wait longer because somebody else starts."""
        absent = [
            r
            for r in self.wanted()
            if r.ticket.resident not in {*self.present, *self.looks} and r.deadline <= self.now
        ]
        first = min(absent, key=lambda request: request.deadline, default=None)
        if first is None or first.ticket.resident == resident or not wants:
            return
        if min(request.deadline for request in wants) <= first.deadline:
            return
        other = first.ticket.resident
        assert may_share(resident, other), "overtakes an overdue ticket of another group"
        assert self.need_of(resident) + self.need_of(other) <= BUDGET, "overtakes an overdue ticket"

    def taken(self) -> float:
        return sum(present.need for present in self.present.values()) + sum(self.settling.values())

    def drained(self, present: Present) -> None:
        assert present.state == "ready"
        assert present.drain_began is None
        assert self.holders(present.resident), "drains nothing"
        forced = self.closing or present.must_go < math.inf
        assert forced or present.resident not in self.pins, "drains what is pinned"
        assert forced or any(r.deadline <= self.now for r in self.wanted()), "nobody is overdue"
        present.drain_began = self.now

    def stopped(self, present: Present, wanted: ResidentId | None) -> None:
        assert present.state != "stopping", "stopped twice"
        assert not self.holders(present.resident), "stopped under its leases"
        forced = self.closing or present.must_go < math.inf
        if present.state == "starting" and not forced:
            assert not self.waiting_for(present.resident), "a start is stopped that somebody waits for"
        if present.state == "ready" and not forced:
            assert present.resident not in self.pins, "stops what is pinned"
            if present.drain_began is None and wanted is not None:
                self.is_no_longer_held(present, wanted)
        present.state = "stopping"

    def is_no_longer_held(self, present: Present, wanted: ResidentId) -> None:
        reasons = [r for r in self.wanted() if r.ticket.resident == wanted]
        assert reasons, "stopped for nobody"
        assert (
            self.now >= present.idle_since + RULES.hold_s
            or any(r.deadline <= self.now or r.ticket.priority == "high" for r in reasons)
        ), "not held"  # fmt: skip

    # What happens.

    @initialize(holders_leave=st.booleans(), found=st.lists(residents, max_size=3, unique=True))
    def begin(self, holders_leave: bool, found: list[ResidentId]) -> None:
        self.holders_leave = holders_leave
        for resident in found:
            self.apply(messages.Adopt(resident))

    @rule(resident=residents, priority=priorities, keep_alive=keep_alives)
    def acquire(self, resident: ResidentId, priority: messages.Priority, keep_alive: float | None) -> None:
        ticket = Ticket(resident, priority, keep_alive)
        request = self.requests[ticket] = Request(ticket, self.now)
        queued = len(self.those("waiting"))
        self.apply(messages.Acquire(ticket))
        if isinstance(request.error, QueueFull):
            assert queued >= RULES.max_queue
            assert request.error.retry_after_s is not None
        if request.state == "new":
            request.state = "waiting"
        if resident.engine == "huge":
            assert request.state == "over", "waits for what can never be"

    @rule(resident=residents, priority=priorities, keep_alive=keep_alives)
    def be_served_and_leave(
        self, resident: ResidentId, priority: messages.Priority, keep_alive: float | None
    ) -> None:
        """Go through what would otherwise rarely come about."""
        self.acquire(resident, priority, keep_alive)
        if resident in self.present and self.present[resident].state == "starting":
            self.becomes_ready(self.present[resident])
        for request in self.holders(resident):
            self.let_go(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(list(self.requests.values()))))

    def let_go(self, request: Request) -> None:
        resident, was_granted = request.ticket.resident, request.state == "granted"
        request.state = "over"
        if was_granted:
            present = self.present[resident]
            if request.ticket.keep_alive_s is not None:
                present.keep_alive = request.ticket.keep_alive_s
            if not self.holders(resident):
                present.idle_since = self.now
        self.apply(messages.Release(request.ticket))

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data())
    def start_succeeds(self, data: st.DataObject) -> None:
        self.becomes_ready(data.draw(st.sampled_from(self.in_state("starting"))))

    def becomes_ready(self, present: Present) -> None:
        present.state, present.ready_at, present.idle_since = "ready", self.now, self.now
        batch = self.waiting_for(present.resident)
        self.apply(messages.BecameReady(present.resident))
        assert all(request.state == "granted" for request in batch), "the batch is not served first"

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(list(self.present.values())))
        name = present.resident.engine
        if present.state == "stuck":
            return
        errors = {"starting": EngineStartFailed(name, "failed"), "ready": EngineDied(name, "died")}
        self.has_gone(present, errors.get(present.state))

    def has_gone(self, present: Present, error: RouterError | None) -> None:
        held = self.holders(present.resident)
        del self.present[present.resident]
        self.settling[present.resident] = present.need
        effects = self.apply(messages.HasEnded(present.resident, error))
        assert messages.Settle(present.resident) in effects
        assert all(request.state == "over" for request in held), "leases of what is gone"

    @precondition(lambda self: self.in_state("stopping"))
    @rule(data=st.data())
    def stop_fails(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(self.in_state("stopping")))
        present.state, present.must_go, present.drain_began = "stuck", math.inf, None
        if self.closing:
            del self.present[present.resident]
        self.apply(
            messages.StopFailed(present.resident, EngineStopFailed(present.resident.engine, "is there"))
        )

    @precondition(lambda self: self.looks)
    @rule(data=st.data(), objects=st.booleans())
    def a_look_ends(self, data: st.DataObject, objects: bool) -> None:
        self.look_ends(data.draw(st.sampled_from(sorted(self.looks))), objects=objects)

    def look_ends(self, resident: ResidentId, *, objects: bool) -> None:
        self.looks.remove(resident)
        error = EngineStartFailed(resident.engine, "its program is missing") if objects else None
        self.apply(messages.Checked(resident, error))

    @precondition(lambda self: self.settling)
    @rule(data=st.data())
    def memory_settles(self, data: st.DataObject) -> None:
        self.settles(data.draw(st.sampled_from(list(self.settling))))

    def settles(self, resident: ResidentId) -> None:
        del self.settling[resident]
        self.apply(messages.Settled(resident))

    @precondition(lambda self: self.in_state("ready"))
    @rule(data=st.data(), need=st.integers(1, 9))
    def is_weighed(self, data: st.DataObject, need: int) -> None:
        present = data.draw(st.sampled_from(self.in_state("ready")))
        present.need = need
        self.apply(messages.Weighed(present.resident, need))

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data(), missing=st.integers(1, 3))
    def there_is_too_little(self, data: st.DataObject, missing: int) -> None:
        present = data.draw(st.sampled_from(self.in_state("starting")))
        self.apply(messages.Short(present.resident, missing))

    @precondition(lambda self: self.in_state("ready"))
    @rule(data=st.data())
    def goes_down(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(self.in_state("ready")))
        present.must_go = min(present.must_go, self.now)
        self.apply(messages.Down(present.resident, EngineDied(present.resident.engine, "hangs")))
        assert present.state == "stopping"

    @rule(resident=residents, seconds=st.sampled_from([0.0, 3.0, -1.0]))
    def keep_alive(self, resident: ResidentId, seconds: float) -> None:
        if resident in self.present:
            self.present[resident].keep_alive = seconds
        self.apply(messages.KeepAlive(resident, seconds))

    @rule(resident=residents)
    def pin_or_unpin(self, resident: ResidentId) -> None:
        self.pins ^= {resident}
        self.apply(messages.Pin(resident, pinned=resident in self.pins))

    @rule(resident=residents)
    def unload(self, resident: ResidentId) -> None:
        if resident in self.present:
            self.present[resident].must_go = min(self.present[resident].must_go, self.now)
        self.apply(messages.Unload(resident))

    @rule(ahead=st.lists(residents, max_size=3, unique=True))
    def preload(self, ahead: list[ResidentId]) -> None:
        self.apply(messages.Preload(tuple(ahead)))

    @rule(resident=residents)
    def reset(self, resident: ResidentId) -> None:
        if resident in self.present and self.present[resident].state == "stuck":
            del self.present[resident]  # whoever asks for this has seen to it that it is gone
        self.apply(messages.Reset(resident))
        assert resident not in self.ledger.failures()

    @precondition(lambda self: not self.closing and self.now > 20)
    @rule(grace_s=st.integers(0, 5))
    def close(self, grace_s: int) -> None:
        self.closing_at = self.now + grace_s
        self.apply(messages.Close(self.closing_at))

    @rule(seconds=st.integers(1, 9))
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
        assert set(self.ledger.settling) == set(self.settling)
        seen = {}
        for state in self.ledger.states:
            present = self.present[state.resident]
            phase = "ready" if state.phase is Phase.DRAINING else state.phase.value
            assert phase == present.state
            assert state.phase is not Phase.DRAINING or state.leases
            assert set(state.leases) == {r.ticket for r in self.holders(state.resident)}
            assert state.need_bytes == present.need
            seen[state.resident] = state
        assert set(seen) == set(self.present)

    @invariant()
    def who_needs_too_much_makes_the_idle_go(self) -> None:
        # Whoever drains since its end was asked for makes room, too.
        staying = [p for p in self.present.values() if p.state != "stopping" and p.must_go == math.inf]
        if not self.closing and sum(p.need for p in staying) > BUDGET:
            idle = [p for p in self.idle() if p.resident not in self.pins]
            assert not idle, "more is needed than there is, and yet the idle stay"

    def idle(self) -> list[Present]:
        return [p for p in self.in_state("ready") if not self.holders(p.resident)]

    @invariant()
    def nobody_stays_idle_for_too_long(self) -> None:
        for present in self.idle():
            limit = IDLE_S if present.keep_alive is None else present.keep_alive
            limit = math.inf if limit < 0 or present.resident in self.pins else limit
            assert self.now < present.idle_since + limit, "idle for too long"
            assert self.ledger.wake_at() <= present.idle_since + limit or limit == math.inf

    @invariant()
    def whoever_waits_waits_for_something_that_is_going_to_happen(self) -> None:
        if not self.those("waiting"):
            return
        assert not self.closing
        for present in self.in_state("ready"):
            assert present.drain_began is not None or not self.waiting_for(present.resident)
        moving = self.settling or self.in_state("starting", "stopping") or self.those("granted") or self.looks
        assert moving or self.ledger.wake_at() < math.inf, "nothing is going to happen"

    @invariant()
    def whoever_has_room_starts(self) -> None:
        if self.settling or any(present.state != "ready" for present in self.present.values()):
            return  # somebody was promised what comes free
        if self.closing or any(request.deadline <= self.now for request in self.those("waiting")):
            return  # whoever is overdue was promised it
        for resident in {request.ticket.resident for request in self.those("waiting")}:
            if resident in self.present or resident in self.looks:
                continue
            assert (
                self.taken() + self.need_of(resident) > BUDGET
                or len(self.present) >= CAPACITY.max_resident
                or not all(may_share(resident, other) for other in self.present)
            ), "waits, though there is room"

    # What holds in the end.

    def teardown(self) -> None:
        self.run_fairly_until(lambda: not self.those("waiting"))
        if not self.closing:
            self.closing_at = self.now + 3
            self.apply(messages.Close(self.closing_at))
        self.run_fairly_until(lambda: self.ledger.is_empty)
        for request in list(self.requests.values()):
            self.let_go(request)
        assert repr(self.ledger) == "<Ledger empty, waiting {}, settling None>"

    def run_fairly_until(self, done: object) -> None:
        assert callable(done)
        for _ in range(300):
            if done():
                return
            if self.settling:
                self.settles(next(iter(self.settling)))
            elif self.looks:
                self.look_ends(next(iter(self.looks)), objects=False)
            elif self.in_state("starting"):
                self.becomes_ready(self.in_state("starting")[0])
            elif self.in_state("stopping"):
                self.has_gone(self.in_state("stopping")[0], None)
            elif self.holders_leave and self.those("granted"):
                self.let_go(self.those("granted")[0])
            else:
                assert self.ledger.wake_at() < math.inf, (
                    f"nothing is going to happen: {self.ledger}, {self.pins}"
                )
                self.wake()
            self.the_ledger_knows_the_world()
        raise AssertionError("somebody waits for ever")


BudgetMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBudget = BudgetMachine.TestCase


# Parts that were broken on purpose.


class KnowsNoFairness(Planner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        return [] if any(victim.leases for victim in turn.victims) else super()._take_turn(turn, now)


class EvictsTheLeased(Planner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        effects = super()._take_turn(turn, now)
        for victim in turn.victims:
            if victim.leases and victim.phase is Phase.DRAINING:
                effects += self._stop(victim, "impatience", turn.resident)
        return effects


class ForgetsKeepAlives(Planner):
    def expiry(self, state: ResidentState, idle_since: float) -> float:
        state.keep_alive_s = None
        return super().expiry(state, idle_since)


class NeverExpires(Planner):
    def expiry(self, state: ResidentState, idle_since: float) -> float:
        return math.inf


class NeverTakesBack(Ledger):
    def give_back(self, ticket: Ticket, now: float) -> messages.LedgerEvent | None:
        is_leased = any(ticket in state.leases for state in self.states)
        return None if is_leased else super().give_back(ticket, now)


class ForgetsWhatSettles(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        effects = super()._ended(resident, error, now)
        if resident in self._budget.settling:
            self._budget.settling[resident] = 0
        return effects


class ForgetsTheBudget(MemoryBudget):
    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        return resident not in self.settling and len(self.states) < CAPACITY.max_resident


class ForgetsGroups(MemoryBudget):
    def are_compatible(self, one: str | None, other: str | None) -> bool:
        return True


class ForgetsTheNumber(MemoryBudget):
    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        real, self.capacity = self.capacity, attrs.evolve(self.capacity, max_resident=0)
        try:
            return super().fits_now(resident, starting)
        finally:
            self.capacity = real


class ForgetsPins(Scheduler):
    def _may_go(self, victim: ResidentState, head: Ticket, now: float) -> bool:
        victim.pinned = False
        return super()._may_go(victim, head, now)


class ForgetsHolds(Scheduler):
    def held_until(self, idle: ResidentState) -> float:
        return 0.0


class NeverTrims(Scheduler):
    def to_trim(self, now: float) -> list[ResidentState]:
        return []


class LooksAtTheFirstOnly(Scheduler):
    def turns(self, now: float) -> list[Turn]:
        return super().turns(now)[:1]


class StarvesTheLow(TicketQueue):
    def in_turn(self, now: float) -> Iterator[ResidentId]:
        for _, resident in self._by_rank:
            yield resident


BROKEN = [
    EvictsTheLeased,
    ForgetsGroups,
    ForgetsHolds,
    ForgetsKeepAlives,
    ForgetsPins,
    ForgetsTheBudget,
    ForgetsTheNumber,
    ForgetsWhatSettles,
    KnowsNoFairness,
    LooksAtTheFirstOnly,
    NeverExpires,
    NeverTakesBack,
    NeverTrims,
    StarvesTheLow,
]


def with_broken(part: type) -> type[Ledger]:
    """Make a type of ledger in which one part is the broken one."""
    if issubclass(part, Ledger):
        return part

    class Broken(Ledger):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            if issubclass(part, Planner):
                self._planner = part(self._pool)
            places = {
                Scheduler: self._planner.scheduler,
                MemoryBudget: self._budget,
                TicketQueue: self._queue,
            }
            for kind, place in places.items():
                if issubclass(part, kind):
                    place.__class__ = part

    return Broken


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_part_is_caught(broken: type) -> None:
    machine = type(broken.__name__ + "Machine", (BudgetMachine,), {"ledger_type": with_broken(broken)})
    quick = settings(
        max_examples=3000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[HypothesisPhase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # Once a rule is broken, the world makes no sense any more: its end may fail as well, and hide the reason.
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(machine, settings=quick)
