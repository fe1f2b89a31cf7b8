"""The turns of residents that are waited for: which starts next, which make way for it, and when.

In turn are the tickets that are overdue, the longest first; then those of higher priority; then who came
first. For each of them in turn there is one of four answers: there is room, so it starts; nobody has to go,
but the room of somebody who goes already is not back; somebody has to go, and may; or it has to wait.

Who may be made to go: whoever is idle and is not held, and, for a ticket that is overdue, everybody who is
not pinned. What was found or promised for a ticket is promised: whoever comes later in turn may use only what
is left, so that nobody is overtaken for ever by those who need less.
"""

from __future__ import annotations

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.residency.eviction import UNKNOWN_START_S, Shortage, cheapest, eviction_cost
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Ticket
from engine_router.residency.queue import TicketQueue
from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import Rules


@define(eq=False)
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


class Scheduler:
    """Decides about one pool. Changes nothing but what it has worked out of holds.

    Attributes:
        rules: may be replaced.
    """

    def __init__(self, rules: Rules, queue: TicketQueue, budget: MemoryBudget, idle_gaps: IdleGaps) -> None:
        self.rules = rules
        self._queue = queue
        self._budget = budget
        self._idle_gaps = idle_gaps

    def turns(self, now: float) -> list[Turn]:
        """Return what can be done, in turn (Rule 5): for all that are waited for, as any of them may have room.

        That is cheap for a resident that is blocked: victims are chosen only where there are enough, and
        who was chosen once is not there for the next.
        """
        turns: list[Turn] = []
        budget = self._budget
        staying = [r for r in budget.states.values() if not r.is_leaving]
        promised: list[ResidentState] = []
        starting: list[ResidentState] = []
        for resident in self._queue.in_turn(now):
            present = budget.states.get(resident)
            if present is not None and present.phase is not Phase.STUCK:
                continue  # on its way, or still on its way out
            turn = self._turn(resident, staying, promised, now)
            turns.append(turn)
            if turn.is_open:
                turn.starts = budget.fits_now(resident, starting)
            if not turn.is_blocked or turn.is_overdue:
                promised.append(budget.new(resident))
                starting += promised[-1:] if turn.starts else ()
                staying = [r for r in staying if r not in turn.victims]
                if self._is_all_promised(promised):
                    break
        return turns

    def _is_all_promised(self, promised: list[ResidentState]) -> bool:
        """Tell whether nobody else can have room beside those who are to come, whoever goes."""
        capacity = self._budget.capacity
        if capacity.max_resident and len(promised) >= capacity.max_resident:
            return True
        if capacity.budget_bytes is None:
            return promised[-1].group is None
        return sum(state.need_bytes for state in promised) >= capacity.budget_bytes

    def _turn(
        self, resident: ResidentId, staying: list[ResidentState], promised: list[ResidentState], now: float
    ) -> Turn:
        head = self._queue.head(resident)
        if head is None:
            raise RuntimeError("in turn, and yet nobody waits for it")
        is_overdue = now >= head.deadline
        waited = f"has waited {self._queue.max_wait_s(head.priority):g} s" if is_overdue else "is wanted"
        turn = Turn(resident, is_overdue, f"{resident} {waited}")
        victims = self._victims(head, staying, promised, now)
        turn.is_blocked, turn.victims = victims is None, victims or []
        return turn

    def _victims(
        self, head: Ticket, staying: list[ResidentState], promised: list[ResidentState], now: float
    ) -> list[ResidentState] | None:
        """Return who has to go for the ticket; None where that is not possible now."""
        budget, resident = self._budget, head.resident
        group = budget.profile(resident).group
        if not all(budget.are_compatible(group, other.group) for other in promised):
            return None
        must_go: list[ResidentState] = []
        rest: list[ResidentState] = []
        for other in staying:
            # One that is stuck is in the way of itself.
            if other.resident == resident or not budget.are_compatible(group, other.group):
                must_go.append(other)
                if not self._may_go(other, head, now):
                    return None
            else:
                rest.append(other)
        shortage = self._shortage(resident, [*rest, *promised])
        if shortage is None:
            return must_go
        candidates = [r for r in rest if self._may_go(r, head, now)]
        if not candidates:
            return None
        more = cheapest(candidates, shortage, lambda r: self._eviction_cost(r, now))
        return None if more is None else [*must_go, *more]

    def _shortage(self, resident: ResidentId, beside: list[ResidentState]) -> Shortage | None:
        capacity = self._budget.capacity
        missing_bytes, too_many = 0.0, 0
        if capacity.budget_bytes is not None:
            missing_bytes = self._budget.need(resident) - capacity.budget_bytes
            for other in beside:
                missing_bytes += other.need_bytes
        if capacity.max_resident:
            too_many = max(0, len(beside) + 1 - capacity.max_resident)
        return Shortage(missing_bytes, too_many) if missing_bytes > 0 or too_many else None

    def to_trim(self, now: float) -> list[ResidentState]:
        """Return who goes because the residents need more than was believed when they were started."""
        excess = self._budget.excess_bytes
        if excess <= 0:
            return []
        idle = [r for r in self._budget.states.values() if r.is_idle and not r.pinned]
        enough = Shortage(min(excess, sum(r.need_bytes for r in idle)), 0)
        return cheapest(idle, enough, lambda r: self._eviction_cost(r, now)) or []

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
                swap_s = self.swap_s(idle.resident)
                hold_s = self._idle_gaps.best_hold_s(idle.resident, swap_s, waiting=len(self._queue))
            idle.held_until = max(idle.idle_since + hold_s, idle.ready_at + self.rules.min_resident_s)
        return idle.held_until

    def swap_s(self, resident: ResidentId) -> float:
        """Return what it costs to stop a resident and to start it again, in seconds, as far as is known."""
        profile = self._budget.profile(resident)
        start_s = UNKNOWN_START_S if profile.start_s is None else profile.start_s
        return start_s + (profile.stop_s or 0.0)

    def retry_after_s(self, now: float) -> float:
        """Return in how many seconds the queue may be shorter: when the next in turn is served."""
        resident = self._queue.first_in_turn(now, lambda _: True)
        head = None if resident is None else self._queue.head(resident)
        if resident is None or head is None:
            return 1.0
        is_used = any(r.leases for r in self._budget.states.values())
        wait_s = max(0.0, head.deadline - now) if is_used else 0.0
        return max(1.0, wait_s + self.swap_s(resident))

    def _eviction_cost(self, state: ResidentState, now: float) -> float:
        return eviction_cost(state, self._budget.profile(state.resident).start_s, now)
