"""A state machine that plays engines, memory, clients and the clock to one ledger.

In the end it lets the world run fairly, and sees that every request that waits is served or refused, and that a closed
ledger becomes empty. One machine serves for every kind of pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineDied,
    EngineStartFailed,
    EngineStopFailed,
    NeverFits,
    QueueFull,
    RouterClosing,
    RouterError,
)
from engine_router.residency import messages
from engine_router.residency.ledger import Phase
from engine_router.residency.messages import Ticket
from support.ledger_world import LedgerWorld, Present, Request

residents: st.SearchStrategy[ResidentId] = st.runner().flatmap(
    lambda machine: st.sampled_from(list(machine.pool.profiles))
)
priorities = st.sampled_from(["high", "normal", "normal", "low"])
keep_alives = st.sampled_from([None, None, None, 0.0, 3.0, -1.0])


class LedgerMachine(LedgerWorld):
    """What can happen to a ledger, in any order, and what holds all the while."""

    # What happens.

    @initialize(holders_leave=st.booleans(), found=st.lists(residents, max_size=3, unique=True))
    def begin(self, holders_leave: bool, found: list[ResidentId]) -> None:
        self.holders_leave = holders_leave
        for resident in found:
            self.finds(resident)

    @rule(resident=residents)
    def finds(self, resident: ResidentId) -> None:
        has_room = not (self.no_room_for(resident) or self.closing)
        was_there = set(self.present)
        self.apply(messages.Adopt(resident))
        assert has_room == (resident in set(self.present) - was_there)

    @rule(resident=residents, priority=priorities, keep_alive=keep_alives)
    def acquire(
        self, resident: ResidentId, priority: Priority = "normal", keep_alive: float | None = None
    ) -> None:
        ticket = Ticket(resident, priority, keep_alive)
        deadline = self.now + self.pool.rules.max_wait_s * (0.25 if priority == "high" else 1)
        request = self.requests[ticket] = Request(ticket, self.now, deadline)
        queued = len(self.those("waiting"))
        self.apply(messages.Acquire(ticket))
        self.has_been_answered(request, queued)
        if request.state == "new":
            request.state = "waiting"
        assert resident not in self.pool.hopeless or request.state == "over", "waits for what can never be"

    def has_been_answered(self, request: Request, queued: int) -> None:
        resident, error = request.ticket.resident, request.error
        remembered, until = self.failures.get(resident, (None, 0.0))
        if self.closing:
            assert isinstance(error, RouterClosing)
        elif remembered is not None and self.now < until and not self.pool.profiles[resident].is_checkable:
            assert type(error) is type(remembered)
            assert str(error).startswith(f"{remembered} (remembered: ")
        elif isinstance(error, QueueFull):
            assert queued >= self.pool.rules.max_queue
            assert error.retry_after_s is not None
        elif request.state == "over":
            assert isinstance(error, NeverFits) or resident in self.failures
        elif request.state == "new":
            assert queued < self.pool.rules.max_queue, "more wait than may"

    @rule(resident=residents, priority=priorities, keep_alive=keep_alives)
    def be_served_and_leave(self, resident: ResidentId, priority: Priority, keep_alive: float | None) -> None:
        """Go through what would otherwise rarely come about."""
        self.acquire(resident, priority, keep_alive)
        if resident in self.present and self.present[resident].state == "starting":
            self.becomes_ready(self.present[resident])
        for request in self.those("granted", of=resident):
            self.let_go(request)

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data(), seconds=st.integers(0, 2))
    def everybody_leaves_and_one_comes_back(self, data: st.DataObject, seconds: int) -> None:
        resident = data.draw(st.sampled_from(self.in_state("starting"))).resident
        for request in self.those("waiting", of=resident):
            self.let_go(request)
        self.time_passes(seconds)
        self.acquire(resident)

    @precondition(lambda self: self.those("granted"))
    @rule(data=st.data(), other=residents, seconds=st.integers(4, 6))
    def another_becomes_overdue_and_one_comes_too_late(
        self, data: st.DataObject, other: ResidentId, seconds: int
    ) -> None:
        resident = data.draw(st.sampled_from(self.those("granted"))).ticket.resident
        self.acquire(other)
        self.time_passes(seconds)
        self.acquire(resident)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(list(self.requests.values()))))

    @precondition(lambda self: self.those("waiting"))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.let_go(data.draw(st.sampled_from(self.those("waiting"))))

    def let_go(self, request: Request) -> None:
        resident, was_granted = request.ticket.resident, request.state == "granted"
        request.state = "over"
        if was_granted:
            present = self.present[resident]
            if request.ticket.keep_alive_s is not None:
                present.keep_alive = request.ticket.keep_alive_s
            if not self.those("granted", of=resident):
                present.idle_since = self.now
        self.apply(messages.Release(request.ticket))

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data())
    def start_succeeds(self, data: st.DataObject) -> None:
        self.becomes_ready(data.draw(st.sampled_from(self.in_state("starting"))))

    def becomes_ready(self, present: Present) -> None:
        present.state, present.ready_at, present.idle_since = "ready", self.now, self.now
        batch = self.those("waiting", of=present.resident)
        self.failures.pop(present.resident, None)
        self.apply(messages.BecameReady(present.resident))
        assert all(request.state == "granted" for request in batch), "the batch is not served first"

    @precondition(lambda self: self.in_state("stopping"))
    @rule(data=st.data())
    def news_of_readiness_comes_late(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(self.in_state("stopping")))
        assert self.apply(messages.BecameReady(present.resident)) == []

    @precondition(lambda self: self.in_state("starting", "ready", "stopping"))
    @rule(data=st.data(), dies=st.booleans())
    def ends(self, data: st.DataObject, dies: bool) -> None:
        present = data.draw(st.sampled_from(self.in_state("starting", "ready", "stopping")))
        name = present.resident.engine
        if present.state == "starting":
            self.has_gone(present, EngineStartFailed(name, "failed"))
        else:
            self.has_gone(present, EngineDied(name, "died") if dies or present.state == "ready" else None)

    def has_gone(self, present: Present, error: RouterError | None) -> None:
        resident = present.resident
        held, waited = self.those("granted", of=resident), self.those("waiting", of=resident)
        del self.present[resident]
        self.settling[resident] = present.needs
        assert messages.Settle(resident) in self.apply(messages.HasEnded(resident, error)), (
            "its memory is not waited for"
        )
        assert all(request.state == "over" for request in held), "leases of what is gone"
        if error is not None and present.state == "starting" and not present.adopted:
            assert all(request.error is error for request in waited), "waits for a start that failed"
        if error is not None and not (
            present.state == "stopping" or (present.state == "starting" and present.adopted)
        ):
            self.remember(resident, error)

    def remember(self, resident: ResidentId, error: RouterError) -> None:
        """Note a failure; how long it counts, only the ledger knows."""
        self.failures[resident] = (error, self.ledger.failures()[resident].until)

    @precondition(lambda self: self.in_state("starting", "stopping"))
    @rule(data=st.data())
    def stop_fails(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(self.in_state("starting", "stopping")))
        resident = present.resident
        present.state, present.must_go, present.drain_began = "stuck", math.inf, None
        waited = [
            request
            for request in self.those("waiting")
            if request.ticket.resident == resident
            or (self.is_exclusive and self.pool.shared(resident, request.ticket.resident))
        ]
        elsewhere = [
            request
            for request in self.those("waiting")
            if not self.pool.shared(resident, request.ticket.resident)
        ]
        if self.closing:
            del self.present[resident]  # left behind
        error = EngineStopFailed(resident.engine, "is still there")
        self.apply(messages.StopFailed(resident, error))
        assert all(request.error is error for request in waited), "waits for what cannot be stopped"
        for request in elsewhere:
            assert request.error is not error, "refused for what lies in another memory"

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
        resident = data.draw(st.sampled_from(list(self.settling)))
        self.settles(resident, data.draw(st.sampled_from([None, *self.settling[resident]])))

    def settles(self, resident: ResidentId, place: str | None = None) -> None:
        """Have memory come back: all of it, or that of one place."""
        if place is not None:
            del self.settling[resident][place]
        if place is None or not self.settling[resident]:
            del self.settling[resident]
        self.apply(messages.Settled(resident, place))

    @precondition(lambda self: self.in_state("ready") and not self.is_exclusive)
    @rule(data=st.data(), need=st.integers(1, 9))
    def is_weighed(self, data: st.DataObject, need: int) -> None:
        present = data.draw(st.sampled_from(self.in_state("ready")))
        place = data.draw(st.sampled_from(list(present.needs)))
        if not self.pool.capacities[place].is_exclusive:
            present.needs[place] = need
        self.apply(messages.Weighed(present.resident, need, place))

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data(), missing=st.integers(1, 3))
    def there_is_too_little(self, data: st.DataObject, missing: int) -> None:
        present = data.draw(st.sampled_from(self.in_state("starting")))
        place = data.draw(st.sampled_from(list(present.needs)))
        self.apply(messages.Short(present.resident, missing, place))

    @rule(data=st.data(), missing=st.integers(1, 9))
    def other_programs_take_memory(self, data: st.DataObject, missing: int) -> None:
        place = data.draw(st.sampled_from(list(self.pool.capacities)))
        leaving = [p for p in self.in_state("stopping") if place in p.needs]
        leaving_before = {p.resident for p in self.in_state("stopping")}
        is_settling = any(place in needs for needs in self.settling.values())
        idle = {p.resident for p in self.idle() if place in p.needs and p.resident not in self.pins}
        self.apply(messages.Pressed(place, missing))
        gone = {p.resident for p in self.in_state("stopping")} - leaving_before
        assert gone <= idle, "somebody goes for other programs who is in use, pinned or elsewhere"
        assert not gone or not (leaving or is_settling), "somebody goes though another is on its way"

    @rule(data=st.data())
    def other_programs_give_memory_back(self, data: st.DataObject) -> None:
        self.apply(messages.Relieved(data.draw(st.sampled_from(list(self.pool.capacities)))))

    @precondition(lambda self: self.in_state("ready"))
    @rule(data=st.data())
    def goes_down(self, data: st.DataObject) -> None:
        present = data.draw(st.sampled_from(self.in_state("ready")))
        present.must_go = min(present.must_go, self.now)
        error = EngineDied(present.resident.engine, "hangs")
        self.apply(messages.Down(present.resident, error))
        self.remember(present.resident, error)
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
        self.failures.pop(resident, None)
        self.apply(messages.Reset(resident))
        assert resident not in self.ledger.failures()

    @precondition(lambda self: not self.closing and self.now > 10)
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
        assert self.ledger.budget.settling == self.settling
        assert self.ledger.is_empty == (not self.present and not self.settling)
        assert {state.resident for state in self.ledger.states} == set(self.present)
        for state in self.ledger.states:
            present = self.present[state.resident]
            is_draining = state.phase is Phase.DRAINING
            assert ("ready" if is_draining else state.phase.value) == present.state
            assert state.leases or not is_draining, "draining without leases means stopping"
            assert present.state != "ready" or is_draining == (present.drain_began is not None)
            assert set(state.leases) == {r.ticket for r in self.those("granted", of=state.resident)}
            assert not state.leases or present.state == "ready", "leases of what is not ready"
            assert state.needs == present.needs

    @invariant()
    def a_plan_is_complete(self) -> None:
        promised = self.ledger.wake_at()
        assert self.apply(messages.Tick()) == [], "something was left for the next event"
        assert promised <= self.ledger.wake_at(), "would be woken too late"

    @invariant()
    def too_much_need_makes_the_idle_go(self) -> None:
        # Whoever drains since its end was asked for makes room, too.
        staying = [p for p in self.present.values() if p.state != "stopping" and p.must_go == math.inf]
        for place in self.pool.capacities:
            needs = [p.needs.get(place, 0) for p in staying]
            if not self.closing and sum(needs) > self.pool.budget(place):
                idle = [p for p in self.idle() if p.needs.get(place) and p.resident not in self.pins]
                assert not idle, "more is needed than there is, and yet the idle stay"

    @invariant()
    def nobody_stays_idle_for_too_long(self) -> None:
        for present in self.idle():
            limit = present.keep_alive
            limit = self.pool.profiles[present.resident].idle_timeout_s if limit is None else limit
            limit = math.inf if limit < 0 or present.resident in self.pins else limit
            assert self.now < present.idle_since + limit, "idle for too long"
            assert self.ledger.wake_at() <= present.idle_since + limit or limit == math.inf

    @invariant()
    def every_wait_is_for_something_that_is_going_to_happen(self) -> None:
        waiting = self.those("waiting")
        if not waiting:
            return
        assert not self.closing
        ready = self.in_state("ready")
        for present in ready:
            assert present.drain_began is not None or not self.those("waiting", of=present.resident)
        moving = self.settling or self.in_state("starting", "stopping") or self.those("granted") or self.looks
        assert moving or self.ledger.wake_at() < math.inf, "nothing is going to happen"
        if self.is_exclusive:
            assert self.settling or self.in_state("starting", "stopping", "ready")
            for present in ready:
                assert self.those("granted"), "nobody uses it, and yet it does not yield"
                assert self.now < self.ledger.wake_at() < math.inf
                is_overdue = any(request.deadline <= self.now for request in waiting)
                assert present.drain_began is not None or not is_overdue, (
                    "an overdue ticket, and yet it is open"
                )

    @invariant()
    def nobody_starts_for_nobody(self) -> None:
        for present in self.in_state("starting"):
            if not self.those("waiting", of=present.resident):
                is_kept = present.ahead and not (self.is_exclusive and self.those("waiting"))
                assert is_kept or self.ledger.wake_at() <= self.now + self.pool.rules.abandon_grace_s

    @invariant()
    def whatever_has_room_starts(self) -> None:
        if self.settling or any(present.state != "ready" for present in self.present.values()):
            return  # somebody was promised what comes free
        if self.closing or any(request.deadline <= self.now for request in self.those("waiting")):
            return  # whoever is overdue was promised it
        for resident in {request.ticket.resident for request in self.those("waiting")} - self.looks:
            assert self.no_room_for(resident), "waits, though there is room"

    # What holds in the end.

    def teardown(self) -> None:
        self.run_fairly_until(lambda: not self.those("waiting"))
        if not self.closing:
            self.closing_at = self.now + 3
            self.apply(messages.Close(self.closing_at))
        self.run_fairly_until(lambda: self.ledger.is_empty)
        self.the_ledger_knows_the_world()
        for request in list(self.requests.values()):
            self.let_go(request)
        assert repr(self.ledger) == "<Ledger empty, waiting {}, settling None>"

    def run_fairly_until(self, done: Callable[[], bool]) -> None:
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
            self.every_wait_is_for_something_that_is_going_to_happen()
        raise AssertionError("somebody waits for ever")
