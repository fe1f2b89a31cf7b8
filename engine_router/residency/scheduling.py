"""The turns of residents that are waited for: which starts next, which make way for it, and when.

In turn are the tickets that are overdue, the longest first; then those of higher priority; then who came
first. For each of them in turn there is one of four answers: there is room, so it starts; nobody has to go,
but the room of somebody who goes already is not back; somebody has to go, and may; or it has to wait.

Who may be made to go: whoever is idle and is not held, and, for a ticket that is overdue, everybody who is
not pinned. What was found or promised for a ticket is promised: whoever comes later in turn may use only what
is left, so that nobody is overtaken for ever by those who need less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.residency import causes, messages
from engine_router.residency.eviction import Lack, Shortage, cheapest
from engine_router.residency.head_index import Head, HeadIndex, Kind
from engine_router.residency.memory_budget import NO_GROUP, MemoryBudget
from engine_router.residency.messages import LedgerEvent, Ticket
from engine_router.residency.queue import FIRST_PLACE, Place, TicketQueue
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import Profile, Rules
from engine_router.residency.swap_costs import SwapCosts

# Seconds of idleness before which nobody goes because other programs take the memory: a follow-up may be on its way.
PRESSED_IDLE_S: Final = 2.0


@define(eq=False, repr=False)
class Turn:
    """The turn of one resident that is waited for: what can be done for it now.

    Attributes:
        resident: which.
        is_overdue: whether a ticket for it has waited as long as it may.
        cause: why others have to go for it.
        victims: who they are. With somebody's leases among them admission closes; the rest stop at once.
        starts: there is room now.
        is_blocked: nothing can be done: somebody in the way is in use, or held.
    """

    resident: ResidentId
    is_overdue: bool
    cause: str
    victims: list[ResidentState] = field(factory=list)
    starts: bool = False
    is_blocked: bool = False

    @property
    def is_open(self) -> bool:
        """Whether nobody has to be made to go, any more."""
        return not (self.is_blocked or self.victims)


@define(eq=False, repr=False)
class _Promises:
    """The promises made while turns are decided, one after the other.

    Attributes:
        staying: who is present and is not made to go.
        promised: who is to come.
        starting: those of them that start now.
    """

    staying: list[ResidentState]
    promised: list[ResidentState] = field(factory=list)
    starting: list[ResidentState] = field(factory=list)

    def add(self, newcomer: ResidentState, turn: Turn) -> None:
        """Promise room to a newcomer, by its turn."""
        self.promised.append(newcomer)
        if turn.starts:
            self.starting.append(newcomer)
        self.staying = [r for r in self.staying if r not in turn.victims]


@define(eq=False, repr=False)
class _Room:
    """The room for a ticket.

    Attributes:
        must_go: who cannot be beside it.
        rest: who can.
        beside: those, and who is promised room.
        may_go: tells who of the rest may be made to go.
    """

    must_go: list[ResidentState]
    rest: list[ResidentState]
    beside: list[ResidentState]
    may_go: Callable[[ResidentState], bool]
    _candidates: list[ResidentState] | None = None

    @property
    def candidates(self) -> list[ResidentState]:
        """Those of the rest that may be made to go. Worked out once, and only where the room is short."""
        if self._candidates is None:
            self._candidates = [r for r in self.rest if self.may_go(r)]
        return self._candidates


class Scheduler:
    """Decides about one pool. Changes nothing but what it has worked out of holds.

    Attributes:
        rules: may be replaced.
    """

    def __init__(self, rules: Rules, queue: TicketQueue, budget: MemoryBudget, costs: SwapCosts) -> None:
        self.rules = rules
        self._queue = queue
        self._budget = budget
        self._costs = costs
        queue.patience_s = lambda resident, now: costs.patience_s(resident, self.rules, now)
        self._pressed: dict[str, int] = {}  # bytes to make free in each pool; 0: nothing more, so far
        self._index = HeadIndex()
        self._known: tuple[object, ...] = ()

    def turns(self, now: float) -> list[Turn]:
        """Return what can be done now, in turn (Rule 5): for whoever of those that are waited for may have room.

        Who has to wait is not looked at: of those of one kind, where there is none for who needs least.
        """
        promises = self._no_promises()
        return self._decide(self._with_room(promises, now), promises, now)

    def all_turns(self, now: float) -> list[Turn]:
        """Return the turns of all that are waited for, those that have to wait among them."""
        return self._decide(self._queue.in_turn(now), self._no_promises(), now)

    def learn(self, event: LedgerEvent) -> None:
        """Note whose profile may be another after an event, and where other programs take the memory."""
        match event:
            case (
                messages.HasEnded(resident=resident)
                | messages.Settled(resident)
                | messages.Weighed(resident=resident)
            ):
                self._queue.changed.add(resident)
                self._costs.forget()
            case messages.Reconfigured():
                self._costs.forget()
                self._queue.changed.update(self._queue.counts())
            case messages.Pressed(pool, missing_bytes):
                self._pressed[pool] = missing_bytes
            case messages.Relieved(pool):
                self._pressed.pop(pool, None)
            case _:
                pass

    def _no_promises(self) -> _Promises:
        return _Promises([r for r in self._budget.states.values() if not r.is_leaving])

    def _decide(self, residents: Iterator[ResidentId], promises: _Promises, now: float) -> list[Turn]:
        turns: list[Turn] = []
        budget = self._budget
        for resident in residents:
            if not self._may_come(resident):
                continue
            turn = self._turn(resident, promises, now)
            turns.append(turn)
            if turn.is_open:
                turn.starts = budget.fits_now(resident, promises.starting)
            if not turn.is_blocked or turn.is_overdue:
                promises.add(budget.new(resident), turn)
                if budget.is_promised(promises.promised):
                    break
        return turns

    def _may_come(self, resident: ResidentId) -> bool:
        """Tell whether a resident is not on its way already, nor still on its way out."""
        present = self._budget.states.get(resident)
        return present is None or present.phase is Phase.STUCK

    def _with_room(self, promises: _Promises, now: float) -> Iterator[ResidentId]:
        """Yield, in turn, who is overdue, and who else can have room beside what was promised until then."""
        yield from self._queue.overdue(now)
        self._bring_up_to_date()
        place = FIRST_PLACE
        while (head := self._next_with_room(place, promises, now)) is not None:
            yield head.resident
            place = head.place

    def _bring_up_to_date(self) -> None:
        """Enter into the index what has changed: tickets, profiles, or what the pinned leave to a guess."""
        queue, budget = self._queue, self._budget
        pinned = [need for r in budget.states.values() if r.pinned for need in r.needs.items()]
        if (known := (budget.limits, pinned)) != self._known:
            self._known = known
            queue.changed.update(queue.counts())
        for resident in queue.changed:
            if (ticket := queue.head(resident)) is None:
                self._index.drop(resident)
                continue
            profile = budget.profile(resident)
            needs = budget.needs(resident, profile)
            shares = tuple(needs.values()) if len(needs) > 1 else ()
            kind = Kind(tuple(needs), shares, profile.groups, ticket.priority == "high")
            self._index.put(kind, Head(queue.place(resident), sum(needs.values()), resident))
        queue.changed.clear()

    def _next_with_room(self, place: Place, promises: _Promises, now: float) -> Head | None:
        """Return the first in turn after a place that is not overdue and can have room."""

        def may_come(resident: ResidentId) -> bool:
            ticket = self._queue.head(resident)
            return ticket is not None and now < ticket.deadline and self._may_come(resident)

        found: Head | None = None
        for first, kind in self._index.first_of_each(place, may_come):
            if found is not None and found < first:
                break
            has_room = self._has_room(first, kind, promises, now)
            head = self._index.first_with_room(kind, place, may_come, has_room)
            if head is not None and (found is None or head < found):
                found = head
        return found

    def _has_room(self, first: Head, kind: Kind, promises: _Promises, now: float) -> Callable[[float], bool]:
        """Return what tells whether there can be room for so many bytes, for those of the kind of a head."""
        ticket = self._queue.head(first.resident)
        profile = self._budget.profile(first.resident)
        rooms = [] if ticket is None else self._rooms(ticket, profile, promises, now)

        def has_room(need_bytes: float) -> bool:
            for room in rooms:
                shares = kind.shares or (need_bytes,)
                shortage = self._budget.shortage(zip(kind.pools, shares, strict=True), room.beside)
                if shortage is None or shortage.is_covered_by(room.candidates):
                    return True
            return False

        return has_room

    def _turn(self, resident: ResidentId, promises: _Promises, now: float) -> Turn:
        head = self._queue.head(resident)
        if head is None:
            raise RuntimeError("in turn, and yet nobody waits for it")
        is_overdue = now >= head.deadline
        overdue_after_s = head.deadline - head.arrived_at if is_overdue else None
        turn = Turn(resident, is_overdue, causes.wanted(resident, overdue_after_s))
        victims = self._victims(head, promises, now)
        turn.is_blocked, turn.victims = victims is None, victims or []
        return turn

    def _victims(self, head: Ticket, promises: _Promises, now: float) -> list[ResidentState] | None:
        """Return who has to go for the ticket, at the least cost; None where that is not possible now."""
        profile = self._budget.profile(head.resident)
        needs = self._budget.needs(head.resident, profile)
        choices: list[list[ResidentState]] = []
        for room in self._rooms(head, profile, promises, now):
            shortage = self._budget.shortage(needs.items(), room.beside)
            if shortage is None:
                choices.append(room.must_go)
                continue
            more = cheapest(room.candidates, shortage, lambda r: self._costs.eviction_cost(r, now))
            if more is not None:
                choices.append([*room.must_go, *more])
        if len(choices) < 2:
            return choices[0] if choices else None
        return min(choices, key=lambda victims: self._cost_of_all(victims, now))

    def _rooms(self, head: Ticket, profile: Profile, promises: _Promises, now: float) -> list[_Room]:
        """Return what room a ticket can have beside what is promised: one for each way in which its groups make some."""
        found: dict[tuple[ResidentState, ...], _Room] = {}
        for group in profile.groups or NO_GROUP:
            if (room := self._room(group, head, profile, promises, now)) is not None:
                found.setdefault(tuple(room.must_go), room)
        return list(found.values())

    def _room(
        self, group: str | None, head: Ticket, profile: Profile, promises: _Promises, now: float
    ) -> _Room | None:
        """Return the room that a ticket can have as one of a group; None where somebody is in the way for good."""
        budget, resident = self._budget, head.resident
        if not all(budget.may_share(group, profile, other) for other in promises.promised):
            return None
        must_go: list[ResidentState] = []
        rest: list[ResidentState] = []
        for other in promises.staying:
            # One that is stuck is in the way of itself.
            if other.resident == resident or not budget.may_share(group, profile, other):
                must_go.append(other)
                if not self._may_go(other, head, now):
                    return None
            else:
                rest.append(other)
        return _Room(must_go, rest, [*rest, *promises.promised], lambda r: self._may_go(r, head, now))

    def to_trim(self, now: float) -> list[ResidentState]:
        """Return who goes because the residents need more than was believed when they were started."""
        excess = {
            pool: excess for pool in self._budget.limits if (excess := self._budget.excess_in(pool)) > 0
        }
        if not excess:
            return []
        idle = [r for r in self._budget.states.values() if r.is_idle and not r.pinned]
        lacks = (
            Lack(pool, min(size_bytes, sum(r.needs.get(pool, 0) for r in idle)), 0)
            for pool, size_bytes in excess.items()
        )
        return cheapest(idle, Shortage(tuple(lacks)), lambda r: self._costs.eviction_cost(r, now)) or []

    def to_relieve(self, now: float) -> list[ResidentState]:
        """Return the idle residents that go because other programs take the memory; each demand is met once.

        Nobody goes while another is on its way: what that brings is seen at the next look.
        """
        gone: dict[ResidentId, ResidentState] = {}
        for pool, missing_bytes in self._pressed.items():
            self._pressed[pool] = 0
            if missing_bytes <= 0 or self._is_on_the_move(pool):
                continue
            idle = [
                r
                for r in self._budget.states.values()
                if pool in r.needs
                and r.is_idle
                and not (r.pinned or r.is_always_there)
                and now - r.idle_since >= PRESSED_IDLE_S
            ]
            lack = Lack(pool, min(missing_bytes, sum(r.needs[pool] for r in idle)), 1)  # one at least
            for victim in (
                cheapest(idle, Shortage((lack,)), lambda r: self._costs.eviction_cost(r, now)) or ()
            ):
                gone[victim.resident] = victim
        return list(gone.values())

    def _is_on_the_move(self, pool: str) -> bool:
        """Tell whether somebody leaves a memory, or has left and its bytes are not back."""
        leaving = any(pool in r.needs for r in self._budget.states.values() if r.phase is Phase.STOPPING)
        return leaving or any(pool in needs for needs in self._budget.settling.values())

    def is_pressed(self, resident: ResidentId) -> bool:
        """Tell whether other programs take the memory of a resident."""
        if not self._pressed:
            return False
        return any(pool in self._pressed for pool in self._budget.pools_of(self._budget.profile(resident)))

    def _may_go(self, victim: ResidentState, head: Ticket, now: float) -> bool:
        """Tell whether somebody may be made to go for the sake of a ticket."""
        if victim.phase is Phase.DRAINING or victim.phase is Phase.STUCK:
            return True
        if victim.pinned:
            return False
        if victim.phase is Phase.STARTING:
            return not self._queue.count(victim.resident)
        if now >= head.deadline:  # Rule 4
            return True
        if victim.leases:  # Rule 3, as are holds
            return False
        return head.priority == "high" or now >= self.held_until(victim)

    def held_until(self, idle: ResidentState) -> float:
        """Return until when an idle resident is kept, for all but the overdue and the urgent."""
        if idle.held_until is None:
            hold_s = self.rules.hold_s
            if hold_s is None:
                hold_s = self._costs.hold_s(idle.resident, self._queue.length)
            idle.held_until = max(idle.idle_since + hold_s, idle.ready_at + self.rules.min_resident_s)
        return idle.held_until

    def retry_after_s(self, now: float) -> float:
        """Return in how many seconds the queue may be shorter: when the next in turn is served."""
        resident = self._queue.first_in_turn(now, lambda _: True)
        head = None if resident is None else self._queue.head(resident)
        if resident is None or head is None:
            return 1.0
        is_used = any(r.leases for r in self._budget.states.values())
        wait_s = max(0.0, head.deadline - now) if is_used else 0.0
        return max(1.0, wait_s + self._costs.first_answer_s(resident))

    def _cost_of_all(self, victims: list[ResidentState], now: float) -> tuple[float, int]:
        """Return what it costs to lose some; of what goes anyway, the fewer the better."""
        return sum(self._costs.eviction_cost(victim, now) for victim in victims), len(victims)
