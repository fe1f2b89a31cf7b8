"""The ledger against a model of the world: whatever happens, in whatever order, its invariants hold.

Parts of the ledger that were broken on purpose show that the machine would notice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from support.broken_ledger import assert_caught
from support.ledger_machine import LedgerMachine
from support.ledger_world import Pool

from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.residency import messages
from engine_router.residency.eviction import Shortage
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, ResidentState, Rules
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.messages import Ticket
from engine_router.residency.planning import Planner
from engine_router.residency.queue import Place, TicketQueue
from engine_router.residency.scheduling import Scheduler, Turn, _Promises, _Room

# Whole seconds, so that many things happen at the same moment.
EXCLUSIVE = Pool(
    Rules(drain_timeout_s=3, max_wait_s=5, abandon_grace_s=2, failed_start_memory_s=4, max_queue=6),
    {ResidentId(name): Profile() for name in "abc"},
)
IDLE_S = 12
PROFILES = {
    ResidentId(name): Profile(
        need_bytes=need,
        groups=() if group is None else (group,),
        start_s=start,
        idle_timeout_s=IDLE_S,
        is_checkable=name in "acf",
    )
    for name, need, group, start in [
        ("a", 4, None, 10), ("b", 4, None, 2), ("c", 6, None, 30),
        ("d", 3, "x", 5), ("e", 3, "y", 5), ("f", 2, "x", None), ("g", 1, None, 1), ("huge", 11, None, 1), ("new", None, None, None),
    ]
}  # fmt: skip
PROFILES[ResidentId("guess")] = Profile(
    need_bytes=14, is_estimated=True, least_bytes=3, idle_timeout_s=IDLE_S
)
BUDGET = Pool(
    Rules(
        drain_timeout_s=3, max_wait_s=8, abandon_grace_s=2, failed_start_memory_s=4, max_queue=12, hold_s=2
    ),
    PROFILES,
    {"default": Capacity(budget_bytes=10, max_resident=3)},
    hopeless=frozenset({ResidentId("huge")}),
)


def lying_in(*pools: str, **known: Any) -> Profile:
    return Profile(pools=pools, idle_timeout_s=IDLE_S, **known)


# Two memories: residents in either, and some across both, whose shares differ.
PAIR = Pool(
    attrs.evolve(BUDGET.rules, max_queue=14),
    {
        ResidentId("a"): lying_in("one", need_bytes=4, is_checkable=True),
        ResidentId("b"): lying_in("one", need_bytes=6, groups=("x",)),
        ResidentId("c"): lying_in("one", need_bytes=3),
        ResidentId("d"): lying_in("two", need_bytes=5, groups=("y",)),
        ResidentId("e"): lying_in("two", need_bytes=2),
        ResidentId("guess"): lying_in("two", need_bytes=12, is_estimated=True, least_bytes=2),
        ResidentId("wide"): lying_in("one", "two", need_bytes=9, start_s=20),
        ResidentId("wider"): lying_in("two", "one", needs={"one": 9, "two": 3}, need_bytes=12, groups=("x",)),
        ResidentId("checked"): lying_in(
            "one", "two", needs={"one": 2, "two": 7}, need_bytes=9, is_checkable=True
        ),
        ResidentId("vague"): lying_in("one", "two", need_bytes=14, is_estimated=True, least_bytes=4),
        ResidentId("huge"): lying_in("one", "two", needs={"one": 1, "two": 9}, need_bytes=10),
    },
    {"one": Capacity(budget_bytes=10), "two": Capacity(budget_bytes=8, max_resident=2)},
    hopeless=frozenset({ResidentId("huge")}),
)
# Three memories, of which each two share a resident, as philosophers share forks; two take one resident at a time.
RING = Pool(
    EXCLUSIVE.rules,
    {
        ResidentId("ab"): lying_in("a", "b"),
        ResidentId("bc"): lying_in("b", "c", need_bytes=8),
        ResidentId("ca"): lying_in("c", "a", need_bytes=6),
        ResidentId("abc"): lying_in("a", "b", "c", need_bytes=9),
        ResidentId("a"): lying_in("a", groups=("x",)),
        ResidentId("twin"): lying_in("a", groups=("x",)),
        ResidentId("b"): lying_in("b", is_checkable=True),
        ResidentId("c"): lying_in("c", need_bytes=3),
    },
    {"a": Capacity(), "b": Capacity(), "c": Capacity(budget_bytes=6)},
)
# Residents of several groups, each two of which have one in common, but not all three; some in a second memory, too.
SETS = Pool(
    attrs.evolve(EXCLUSIVE.rules, max_queue=10),
    {
        ResidentId("xy"): lying_in("one", groups=("x", "y"), start_s=3),
        ResidentId("yz"): lying_in("one", groups=("y", "z"), is_checkable=True),
        ResidentId("zx"): lying_in("one", groups=("z", "x"), start_s=20, evict_cost=5),
        ResidentId("x"): lying_in("one", groups=("x",)),
        ResidentId("alone"): lying_in("one"),
        ResidentId("both"): lying_in("one", "two", groups=("y", "v"), needs={"one": 1, "two": 4}),
        ResidentId("vw"): lying_in("two", need_bytes=3, groups=("v", "w")),
        ResidentId("w"): lying_in("two", need_bytes=3, groups=("w",)),
        ResidentId("free"): lying_in("two", need_bytes=2),
    },
    {"one": Capacity(), "two": Capacity(budget_bytes=8, max_resident=3)},
)
THOROUGH = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class ExclusiveMachine(LedgerMachine):
    """One resident at a time."""

    pool = EXCLUSIVE


class BudgetMachine(LedgerMachine):
    """Several residents at once, of different needs, some in groups."""

    pool = BUDGET


class PairMachine(LedgerMachine):
    """Two memories with budgets, and residents across both."""

    pool = PAIR


class RingMachine(LedgerMachine):
    """Three memories, each of which shares residents with both others."""

    pool = RING


class SetsMachine(LedgerMachine):
    """Two memories, of which one belongs to whatever set of residents has a group in common."""

    pool = SETS


for machine_type in (ExclusiveMachine, BudgetMachine, PairMachine, RingMachine, SetsMachine):
    machine_type.TestCase.settings = THOROUGH
TestExclusive = ExclusiveMachine.TestCase
TestBudget = BudgetMachine.TestCase
TestPair = PairMachine.TestCase
TestRing = RingMachine.TestCase
TestSets = SetsMachine.TestCase


# Parts that were broken on purpose: first those that an exclusive pool shows.


class KnowsNoFairness(Planner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        return [] if any(victim.leases for victim in turn.victims) else super()._take_turn(turn, now)


class NeverTakesBack(Ledger):
    def give_back(self, ticket: Ticket, now: float) -> messages.LedgerEvent | None:
        is_leased = any(ticket in state.leases for state in self.states)
        return None if is_leased else super().give_back(ticket, now)


class KeepsWithdrawnTickets(Ledger):
    def _release(self, ticket: Ticket, now: float) -> list[messages.Effect]:
        return []


class IgnoresThatTheFirstLeaves(TicketQueue):
    def remove(self, ticket: Ticket) -> bool:
        super().remove(ticket)
        return False


class GrantsWhileDraining(Planner):
    def _go_on_draining(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        return [*self.grant(state, now), *super()._go_on_draining(state, in_the_way_of, now)]


class DrainsForEver(Planner):
    def _go_on_draining(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        state.drain_deadline = math.inf
        return super()._go_on_draining(state, in_the_way_of, now)


class RevokesTooEarly(Planner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        effects = super()._take_turn(turn, now)
        for victim in turn.victims:
            victim.drain_deadline = min(victim.drain_deadline, now + 1)
        return effects


class StartsBeforeMemorySettled(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        effects = super()._ended(resident, error, now)
        self.budget.settling.clear()
        return effects


class StartsBesideWhatIsStuck(Ledger):
    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[messages.Effect]:
        self.budget.states.pop(resident, None)
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


class ChecksDeadlinesBeforeTheBatch(Ledger):
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


class SwapsUnderLeases(Planner):
    def _go_on_serving(self, state: ResidentState, now: float) -> list[messages.Effect]:
        effects = super()._go_on_serving(state, now)
        if state.leases and self._queue:
            effects += self._stop(state, "impatience", None)
        return effects


class GrantsTwice(Planner):
    def grant(self, state: ResidentState, now: float) -> list[messages.Effect]:
        tickets = [ticket for ticket in self._queue if ticket.resident == state.resident]
        for ticket in tickets:
            state.lend(ticket, now)
        return [messages.Grant(ticket) for ticket in tickets]


class ServesTheYoungestFirst(TicketQueue):
    def overdue(self, now: float) -> Iterator[ResidentId]:
        return reversed(list(super().overdue(now)))

    def place(self, resident: ResidentId) -> Place:
        (rank, arrived_at), number = super().place(resident)
        return (-rank, -arrived_at), -number


class NeverGivesUpAStart(Planner):
    def _go_on_starting(
        self, state: ResidentState, in_the_way_of: Turn | None, now: float
    ) -> list[messages.Effect]:
        return []


class GivesUpWantedStarts(Planner):
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


class KeepsTheIdleOne(Planner):
    def _take_turn(self, turn: Turn, now: float) -> list[messages.Effect]:
        return [] if any(victim.is_idle for victim in turn.victims) else super()._take_turn(turn, now)


class AdmitsWhileClosing(Ledger):
    def _close(self, deadline: float) -> list[messages.Effect]:
        effects = super()._close(deadline)
        self._pool.closing_at = math.inf
        return effects


class StarvesTheLow(TicketQueue):
    def head(self, resident: ResidentId) -> Ticket | None:
        found = super().head(resident)
        return None if found is None else msgspec.structs.replace(found, deadline=math.inf)

    def overdue(self, now: float) -> Iterator[ResidentId]:
        return iter(())


# Those that a pool with a budget shows.


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


class ForgetsWhatSettles(Ledger):
    def _ended(self, resident: ResidentId, error: RouterError | None, now: float) -> list[messages.Effect]:
        effects = super()._ended(resident, error, now)
        if resident in self.budget.settling:
            self.budget.settling[resident] = dict.fromkeys(self.budget.settling[resident], 0)
        return effects


class ForgetsTheBudget(MemoryBudget):
    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        return resident not in self.settling and len(self.states) < BUDGET.capacities["default"].max_resident


class ForgetsGroups(MemoryBudget):
    def may_share(self, group: str | None, newcomer: Profile, other: ResidentState) -> bool:
        return True


class ForgetsTheNumber(MemoryBudget):
    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        real = self.capacities
        self.capacities = {name: attrs.evolve(real[name], max_resident=0) for name in real}
        try:
            return super().fits_now(resident, starting)
        finally:
            self.capacities = real


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
        return super().all_turns(now)[:1]


# Those that several memories show.


class FitsIntoOneOfThem(MemoryBudget):
    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        others = [*self.states.values(), *starting]
        profile = self.profile(resident)
        return resident not in self.settling and any(
            self._fits_into(pool, resident, profile, others) for pool in self.pools_of(profile)
        )


class FitsIntoOneOfTheRing(FitsIntoOneOfThem):
    pass


class CountsTheWholeInEach(MemoryBudget):
    def describe(self, state: ResidentState) -> None:
        super().describe(state)
        state.needs = dict.fromkeys(state.needs, state.need_bytes)


class SettlesAllAtOnce(MemoryBudget):
    def settled(self, resident: ResidentId, pool: str | None) -> None:
        super().settled(resident, None)


class LooksIntoTheFirstOnly(MemoryBudget):
    def shortage(self, needs: Iterable[tuple[str, float]], beside: list[ResidentState]) -> Shortage | None:
        return super().shortage(list(needs)[:1], beside)


class TakesWhatWasPromised(MemoryBudget):
    """Holds one memory while it waits for the other."""

    def may_share(self, group: str | None, newcomer: Profile, other: ResidentState) -> bool:
        return len(other.needs) > 1 or super().may_share(group, newcomer, other)


class PromisesNothingAcross(Scheduler):
    def _decide(self, residents: Iterator[ResidentId], promises: _Promises, now: float) -> list[Turn]:
        turns: list[Turn] = []
        for resident in residents:
            fresh = self._no_promises()
            turns += super()._decide(iter([resident]), fresh, now)
        return turns


class RefusesTheUnconcerned(Ledger):
    def _stop_failed(self, resident: ResidentId, error: RouterError) -> list[messages.Effect]:
        effects = super()._stop_failed(resident, error)
        waiting = [ticket for other in self._queue.counts() for ticket in self._queue.take(other)]
        return [*effects, *(messages.Refuse(ticket, error) for ticket in waiting)]


# Those that residents of several groups show.


class JoinsPairByPair(MemoryBudget):
    def may_join(self, newcomer: Profile, others: Iterable[ResidentState]) -> bool:
        return all(super(JoinsPairByPair, self).may_join(newcomer, [other]) for other in others)


class KnowsTheFirstGroupOnly(MemoryBudget):
    def may_join(self, newcomer: Profile, others: Iterable[ResidentState]) -> bool:
        return super().may_join(attrs.evolve(newcomer, groups=newcomer.groups[:1]), others)


class MakesRoomByTheFirstGroup(Scheduler):
    def _rooms(self, head: Ticket, profile: Profile, promises: _Promises, now: float) -> list[_Room]:
        return super()._rooms(head, attrs.evolve(profile, groups=profile.groups[:1]), promises, now)


BROKEN: list[tuple[type[LedgerMachine], type]] = [
    *(
        (ExclusiveMachine, part)
        for part in (
            KnowsNoFairness,
            NeverTakesBack,
            KeepsWithdrawnTickets,
            IgnoresThatTheFirstLeaves,
            GrantsWhileDraining,
            DrainsForEver,
            RevokesTooEarly,
            StartsBeforeMemorySettled,
            StartsBesideWhatIsStuck,
            ForgetsWhomItRefused,
            KeepsWaitersOfFailedStarts,
            KeepsLeasesOfTheDead,
            ChecksDeadlinesBeforeTheBatch,
            BelievesLateNews,
            SwapsUnderLeases,
            GrantsTwice,
            ServesTheYoungestFirst,
            NeverGivesUpAStart,
            GivesUpWantedStarts,
            ForgetsFailures,
            SleepsTooLong,
            KeepsTheIdleOne,
            AdmitsWhileClosing,
            StarvesTheLow,
        )
    ),
    *(
        (BudgetMachine, part)
        for part in (
            EvictsTheLeased,
            ForgetsKeepAlives,
            NeverExpires,
            ForgetsWhatSettles,
            ForgetsTheBudget,
            ForgetsGroups,
            ForgetsTheNumber,
            ForgetsPins,
            ForgetsHolds,
            NeverTrims,
            LooksAtTheFirstOnly,
        )
    ),
    *(
        (PairMachine, part)
        for part in (
            FitsIntoOneOfThem,
            CountsTheWholeInEach,
            SettlesAllAtOnce,
            LooksIntoTheFirstOnly,
            PromisesNothingAcross,
            RefusesTheUnconcerned,
        )
    ),
    *((RingMachine, part) for part in (FitsIntoOneOfTheRing, TakesWhatWasPromised)),
    *((SetsMachine, part) for part in (JoinsPairByPair, KnowsTheFirstGroupOnly, MakesRoomByTheFirstGroup)),
]


@pytest.mark.parametrize(("machine", "part"), BROKEN, ids=[part.__name__ for _, part in BROKEN])
def test_a_broken_part_is_caught(machine: type[LedgerMachine], part: type) -> None:
    assert_caught(machine, part)
