"""The world around one ledger, as far as it only looks on: what it knows, and how it judges the ledger's effects.

It believes nothing but the effects that the ledger returned. `Pool` says what differs between pools.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from attrs import define, frozen
from hypothesis.stateful import RuleBasedStateMachine

from engine_router.engines.base import ResidentId
from engine_router.errors import (
    LeaseRevoked,
    NeverFits,
    RouterError,
)
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Profile, Rules
from engine_router.residency.messages import Ticket
from engine_router.residency.rules import ONE_MEMORY


@frozen(eq=False)
class Pool:
    """The pools that a ledger runs: its rules, its memories and its residents.

    Attributes:
        hopeless: what can never be loaded.
    """

    rules: Rules
    profiles: Mapping[ResidentId, Profile]
    capacities: Mapping[str, Capacity] = ONE_MEMORY
    hopeless: frozenset[ResidentId] = frozenset()

    @property
    def is_exclusive(self) -> bool:
        """Whether there is one memory, for one resident at a time, or one group."""
        return len(self.capacities) == 1 and all(c.is_exclusive for c in self.capacities.values())

    def budget(self, place: str) -> float:
        """Return the bytes of a memory that residents may need together; infinity where one has it alone."""
        budget = self.capacities[place].budget_bytes
        return math.inf if budget is None else budget

    def places(self, resident: ResidentId) -> tuple[str, ...]:
        """Return the memories that a resident takes from."""
        return self.profiles[resident].pools or tuple(self.capacities)[:1]

    def shared(self, one: ResidentId, other: ResidentId) -> list[str]:
        """Return the memories that two residents both take from."""
        return [place for place in self.places(one) if place in self.places(other)]

    def may_join(self, one: ResidentId, others: Collection[ResidentId]) -> bool:
        """Tell whether groups let a resident be there together with others."""
        groups, left = set(self.profiles[one].groups), set(self.profiles[one].groups)
        is_bound = False
        for other in others:
            shared, its = self.shared(one, other), self.profiles[other].groups
            is_strict = any(self.capacities[place].is_exclusive for place in shared)
            if shared and (is_strict or (groups and its)):
                is_bound = True
                left &= set(its)
        return bool(left) or not is_bound


@define(eq=False)
class Request:
    """What the world knows of a ticket."""

    ticket: Ticket
    at: float
    deadline: float
    state: Literal["new", "waiting", "granted", "over"] = "new"
    error: RouterError | None = None

    def turn(self, now: float) -> tuple[int, float]:
        """Return a key that sorts requests by whose turn it is."""
        if self.deadline <= now:
            return 0, self.deadline
        return 1 + ("high", "normal", "low").index(self.ticket.priority), self.at


@define(eq=False)
class Present:
    """What the world knows of a resident that is there.

    Attributes:
        ahead: nobody waited when it was started or found.
        must_go: since when somebody wants it to end.
    """

    resident: ResidentId
    needs: dict[str, float]
    adopted: bool
    ahead: bool
    state: Literal["starting", "ready", "stopping", "stuck"] = "starting"
    ready_at: float = math.inf
    idle_since: float = math.inf
    keep_alive: float | None = None
    drain_began: float | None = None
    must_go: float = math.inf


class LedgerWorld(RuleBasedStateMachine):
    """Engines, memory, clients and a clock around one ledger, and the judge of its effects."""

    pool: ClassVar[Pool]
    ledger_type: ClassVar[type[Ledger]] = Ledger

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.ledger_type(self.pool.rules, self.pool.capacities, self.pool.profiles.__getitem__)
        self.now = 0.0
        self.requests: dict[Ticket, Request] = {}
        self.present: dict[ResidentId, Present] = {}
        self.settling: dict[ResidentId, dict[str, float]] = {}
        self.pins: set[ResidentId] = set()
        self.looks: set[ResidentId] = set()  # at engines, before others are stopped for them
        self.failures: dict[ResidentId, tuple[RouterError, float]] = {}
        self.closing_at = math.inf
        self.holders_leave = True

    # What the world knows.

    @property
    def is_exclusive(self) -> bool:
        return self.pool.is_exclusive

    @property
    def closing(self) -> bool:
        return self.closing_at < math.inf

    def pinned_beside(self, resident: ResidentId, place: str) -> list[Present]:
        pinned = (p for p in self.lying_in(place) if p.resident in self.pins)
        return [p for p in pinned if p.resident != resident]

    def lying_in(self, place: str) -> list[Present]:
        return [p for p in self.present.values() if place in p.needs]

    def needs_of(self, resident: ResidentId) -> dict[str, float]:
        """Return what a resident will be given of each of its memories."""
        return {place: self.need_of(resident, place) for place in self.pool.places(resident)}

    def need_of(self, resident: ResidentId, place: str) -> float:
        """Return what a resident will be given; a guess takes no more than the pinned leave, but what is certain."""
        profile, budget = self.pool.profiles[resident], self.pool.budget(place)
        if budget == math.inf:
            return 0
        need = profile.need_in(place)
        if not profile.is_guessed and need is not None:
            return need
        room = budget - sum(p.needs[place] for p in self.pinned_beside(resident, place))
        guess = budget if need is None else need
        return max(profile.least_in(place), min(guess, room)) if room > 0 else guess

    def taken(self, place: str) -> float:
        held = sum(present.needs[place] for present in self.lying_in(place))
        return held + sum(needs.get(place, 0) for needs in self.settling.values())

    def no_room_for(self, resident: ResidentId) -> str:
        """Return why a resident has no room now; nothing where it has."""
        obstacles = {
            "is there already": resident in self.present,
            "its own memory is still to come back": resident in self.settling,
            "beside another group": not self.pool.may_join(resident, self.present),
        }
        whys = [why for why, holds in obstacles.items() if holds]
        whys += filter(None, (self.no_room_in(place, resident) for place in self.pool.places(resident)))
        return next(iter(whys), "")

    def no_room_in(self, place: str, resident: ResidentId) -> str:
        """Return why a memory has no room for a resident now; nothing where it has."""
        capacity = self.pool.capacities[place]
        is_settling = any(place in needs for needs in self.settling.values())
        if capacity.is_exclusive and is_settling:
            return "memory has not settled"
        if self.taken(place) + self.need_of(resident, place) > self.pool.budget(place):
            return "there is no room"
        is_full = capacity.max_resident and len(self.lying_in(place)) >= capacity.max_resident
        return "there are too many" if is_full else ""

    def those(self, *states: str, of: ResidentId | None = None) -> list[Request]:
        """Return the requests in a state, for one resident or for all."""
        requests = self.requests.values()
        return [r for r in requests if r.state in states and of in (None, r.ticket.resident)]

    def wanted(self, resident: ResidentId | None = None) -> list[Request]:
        """Return those that wait, or are being entered."""
        return self.those("new", "waiting", of=resident)

    def in_state(self, *states: str) -> list[Present]:
        return [present for present in self.present.values() if present.state in states]

    def idle(self) -> list[Present]:
        return [p for p in self.in_state("ready") if not self.those("granted", of=p.resident)]

    # What the ledger says must be done, and whether it may.

    def apply(self, event: messages.LedgerEvent) -> list[messages.Effect]:
        waited_before = {request.ticket for request in self.those("waiting")}
        effects = self.take_in(event)
        for effect in effects:
            match effect:
                case messages.Grant(ticket):
                    is_of_batch = isinstance(event, messages.BecameReady) and ticket in waited_before
                    self.granted(self.requests[ticket], is_of_batch=is_of_batch)
                case messages.Refuse(ticket, error):
                    self.refused(self.requests[ticket], error)
                case messages.Revoke(ticket, error):
                    self.revoked(self.requests[ticket], error, event)
                case messages.Start(resident, _, adopt):
                    assert adopt == (event == messages.Adopt(resident))
                    self.started(resident, adopt=adopt)
                case messages.Drain(resident):
                    self.drained(self.present[resident])
                case messages.Resume(resident):
                    assert self.present[resident].drain_began is not None
                    self.present[resident].drain_began = None
                case messages.Stop(resident, _, wanted):
                    self.stopped(self.present[resident], wanted)
                case _:
                    self.noted(effect, event)
        return effects

    def take_in(self, event: messages.LedgerEvent) -> list[messages.Effect]:
        """Let the ledger take in an event as the supervisor does: by the short cut where that decides nothing."""
        match event:
            case messages.Acquire(ticket) if self.ledger.lend(ticket, self.now):
                return [messages.Grant(ticket)]
            case messages.Release(ticket):
                change = self.ledger.give_back(ticket, self.now)
                return [] if change is None else self.ledger.apply(change, self.now)
            case _:
                return self.ledger.apply(event, self.now)

    def noted(self, effect: messages.Effect, event: messages.LedgerEvent) -> None:
        match effect:
            case messages.Settle(resident):
                assert isinstance(event, messages.HasEnded)
                assert event.resident == resident
            case messages.CheckStart(resident):
                assert self.pool.profiles[resident].is_checkable
                assert resident not in self.looks, "looks twice"
                self.looks.add(resident)

    def granted(self, request: Request, *, is_of_batch: bool) -> None:
        assert request.state in ("new", "waiting"), "granted, though it does not wait"
        present = self.present[request.ticket.resident]
        assert present.state == "ready"
        assert present.drain_began is None, "granted by a resident that drains"
        assert not self.closing
        if self.is_exclusive and not is_of_batch:
            others = [o for o in self.those("waiting") if o.ticket.resident != request.ticket.resident]
            overtaken = [o for o in others if o.deadline <= min(self.now, request.deadline)]
            assert not overtaken, "overtakes an overdue ticket"
        request.state, present.idle_since = "granted", math.inf

    def refused(self, request: Request, error: RouterError) -> None:
        assert request.state in ("new", "waiting"), "refused, though it does not wait"
        if isinstance(error, NeverFits):
            resident = request.ticket.resident
            places = self.pool.places(resident)
            assert any(self.can_never_fit(resident, place) for place in places), "it could fit"
        request.state, request.error = "over", error

    def can_never_fit(self, resident: ResidentId, place: str) -> bool:
        pinned, most = self.pinned_beside(resident, place), self.pool.capacities[place].max_resident
        return bool(
            self.need_of(resident, place) + sum(p.needs[place] for p in pinned) > self.pool.budget(place)
            or not self.pool.may_join(resident, {*self.present} & self.pins - {resident})
            or (most and len(pinned) >= most)
        )

    def revoked(self, request: Request, error: RouterError, event: messages.LedgerEvent) -> None:
        assert request.state == "granted", "revoked, though it holds nothing"
        present = self.present.get(request.ticket.resident)
        if isinstance(error, LeaseRevoked):
            assert present is not None
            assert present.drain_began is not None
            fair = max(present.drain_began, present.ready_at + self.pool.rules.max_wait_s)
            # What somebody asked for wins over the fair time of a batch.
            by_rule = min(fair, present.must_go) + self.pool.rules.drain_timeout_s
            assert self.now >= min(by_rule, self.closing_at), "revoked too early"
        else:
            assert isinstance(event, messages.HasEnded | messages.StopFailed | messages.Down)
        request.state, request.error = "over", error
        if present is not None and not self.those("granted", of=present.resident):
            present.idle_since = self.now

    def started(self, resident: ResidentId, *, adopt: bool) -> None:
        assert not (why := self.no_room_for(resident)), f"starts, though {why}"
        assert not self.closing
        wants = self.wanted(resident)
        if wants and not adopt:
            self.breaks_no_promise(resident, wants)
        elif not adopt:
            assert not self.wanted(), "loaded ahead, though somebody waits"
        self.present[resident] = Present(resident, self.needs_of(resident), adopt, adopt or not wants)

    def breaks_no_promise(self, resident: ResidentId, wants: list[Request]) -> None:
        """A ticket that is overdue and first in turn must not wait longer because another resident starts."""
        absent = [r for r in self.wanted() if r.ticket.resident not in {*self.present, *self.looks}]
        if self.is_exclusive:
            mine, all_ = (min(r.turn(self.now) for r in those) for those in (wants, absent))
            assert mine == all_, "is not its turn"
        overdue = [r for r in absent if r.deadline <= self.now and r.ticket.resident != resident]
        for first in overdue:
            if min(request.deadline for request in wants) <= first.deadline:
                continue
            other = first.ticket.resident
            assert self.pool.may_join(resident, [other]), "overtakes an overdue ticket of another group"
            for place in self.pool.shared(resident, other):
                both = self.need_of(resident, place) + self.need_of(other, place)
                assert both <= self.pool.budget(place), "overtakes an overdue ticket"

    def drained(self, present: Present) -> None:
        assert present.state == "ready"
        assert present.drain_began is None
        assert self.those("granted", of=present.resident), "drains nothing"
        forced = self.closing or present.must_go < math.inf
        assert forced or present.resident not in self.pins, "drains what is pinned"
        neighbours = [r for r in self.wanted() if self.pool.shared(present.resident, r.ticket.resident)]
        assert forced or any(r.deadline <= self.now for r in neighbours), "nobody is overdue"
        present.drain_began = self.now

    def stopped(self, present: Present, wanted: ResidentId | None) -> None:
        assert present.state != "stopping", "stopped twice"
        assert not self.those("granted", of=present.resident), "stopped under its leases"
        forced = self.closing or present.must_go < math.inf
        if present.state == "starting" and not forced:
            waiting = self.those("waiting", of=present.resident)
            assert not waiting, "a start is stopped that somebody waits for"
        if present.state == "ready" and not forced:
            assert present.resident not in self.pins, "stops what is pinned"
            if present.drain_began is None and wanted is not None:
                reasons = self.wanted(wanted)
                assert reasons, "stopped for nobody"
                urgent = any(r.deadline <= self.now or r.ticket.priority == "high" for r in reasons)
                assert urgent or self.now >= present.idle_since + (self.pool.rules.hold_s or 0.0), "not held"
        present.state = "stopping"
