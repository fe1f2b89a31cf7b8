"""Priorities, holds, budgets, groups, pins, keep-alives and what is loaded ahead: the ledger's rules, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied, EngineStartFailed, EngineStopFailed, NeverFits, QueueFull
from engine_router.residency import messages
from engine_router.residency.eviction import Lack, Shortage, cheapest
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, ResidentState, Rules
from engine_router.residency.messages import Grant, Refuse, Start, Stop, Ticket
from engine_router.residency.queue import TicketQueue

A, B, C, D = (ResidentId(name) for name in "abcd")
GB = 10**9
RULES = Rules(drain_timeout_s=30, max_wait_s=60, abandon_grace_s=2, failed_start_memory_s=5, max_queue=100)
FAILED = EngineStartFailed("a", "failed")
DIED = EngineDied("a", "died")


@attrs.define(eq=False)
class Book:
    """A ledger, and how to speak to it."""

    ledger: Ledger
    profiles: dict[ResidentId, Profile]
    now: float = 0

    def tell(self, event: messages.LedgerEvent, now: float | None = None) -> list[messages.Effect]:
        self.now = self.now if now is None else now
        return self.ledger.apply(event, self.now)

    def ask(
        self, resident: ResidentId, now: float | None = None, **options: object
    ) -> tuple[Ticket, list[messages.Effect]]:
        ticket = Ticket(resident, **options)  # type: ignore[arg-type]
        return ticket, self.tell(messages.Acquire(ticket), now)

    def serve(self, resident: ResidentId, now: float | None = None, **options: object) -> Ticket:
        """Make a resident ready for a ticket that holds it."""
        ticket, effects = self.ask(resident, now, **options)
        assert Start(resident, "requested") in effects
        assert Grant(ticket) in self.tell(messages.BecameReady(resident))
        return ticket

    def idle(self, resident: ResidentId, now: float | None = None, **options: object) -> None:
        """Make a resident ready, and used and left just now."""
        self.tell(messages.Release(self.serve(resident, now, **options)))

    def gone(self, resident: ResidentId, now: float | None = None) -> list[messages.Effect]:
        """Let a resident that stops be gone, and its memory back."""
        effects = self.tell(messages.HasEnded(resident, None), now)
        return [*effects, *self.tell(messages.Settled(resident))]

    def present(self) -> dict[ResidentId, Phase]:
        return {state.resident: state.phase for state in self.ledger.states}


def a_book(*, rules: Rules = RULES, capacity: Capacity | None = None, **profiles: Profile) -> Book:
    known = {ResidentId(name): profile for name, profile in profiles.items()}
    return Book(Ledger(rules, {"default": capacity or Capacity()}, lambda r: known.get(r, Profile())), known)


def budget(total: int, *, rules: Rules = RULES, capacity: Capacity | None = None, **needs: int) -> Book:
    """Make a pool of so many GB, with residents that need so many."""
    profiles = {name: Profile(need_bytes=need * GB) for name, need in needs.items()}
    capacity = attrs.evolve(capacity or Capacity(), budget_bytes=total * GB)
    return a_book(rules=rules, capacity=capacity, **profiles)


# Priorities.


def test_who_matters_more_is_next() -> None:
    pool = a_book()
    lease = pool.serve(A)
    pool.ask(B, 1, priority="low")
    pool.ask(C, 2)
    pool.ask(D, 3, priority="high")
    assert pool.tell(messages.Release(lease), 4) == [Stop(A, "d is wanted", D)]
    assert pool.gone(A)[-1] == Start(D, "requested")


def test_the_overdue_are_next_whatever_matters() -> None:
    pool = a_book()
    lease = pool.serve(A)
    pool.ask(B, 0, priority="low")
    pool.ask(C, 50)
    [drain] = pool.tell(messages.Tick(), 60)
    assert drain == messages.Drain(A, "b has waited 60 s", B)
    pool.ask(D, 60, priority="high")
    assert pool.tell(messages.Release(lease)) == [Stop(A, "b has waited 60 s", B)]
    assert pool.gone(A)[-1] == Start(B, "requested")


def test_a_high_priority_is_overdue_after_a_quarter_of_the_time() -> None:
    pool = a_book()
    pool.serve(A)
    pool.ask(B, 10, priority="high")
    assert pool.ledger.wake_at() == 25
    assert pool.tell(messages.Tick(), 25) == [messages.Drain(A, "b has waited 15 s", B)]


# Admission.


def test_one_model_may_not_fill_the_queue_of_all() -> None:
    pool = a_book(rules=attrs.evolve(RULES, max_queue_per_model=2))
    pool.serve(A)
    pool.ask(B)
    pool.ask(B)
    _, [refusal] = pool.ask(B)
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, QueueFull)
    assert pool.ask(C)[1] == []


def test_a_refusal_says_when_to_come_back() -> None:
    profile = Profile(start_s=25, stop_s=3)
    pool = a_book(rules=attrs.evolve(RULES, max_queue=1), a=profile, b=profile)
    pool.serve(A)
    pool.ask(B, 10)
    _, [refusal] = pool.ask(C, 30)
    assert isinstance(refusal, Refuse)
    # B may close admission at 70, which is in 40 s, and then comes by a swap.
    assert refusal.error.retry_after_s == 40 + 28


# Holds.


def test_an_idle_resident_is_held_for_a_client_that_comes_back() -> None:
    pool = a_book(rules=attrs.evolve(RULES, hold_s=4))
    lease = pool.serve(A)
    pool.ask(B, 10)
    assert pool.tell(messages.Release(lease), 20) == []
    assert pool.ledger.wake_at() == 24
    ticket, effects = pool.ask(A, 23)
    assert effects == [Grant(ticket)]
    assert pool.tell(messages.Release(ticket), 30) == []
    assert pool.tell(messages.Tick(), 34) == [Stop(A, "b is wanted", B)]


def test_a_hold_ends_where_somebody_is_overdue_or_urgent() -> None:
    pool = a_book(rules=attrs.evolve(RULES, hold_s=1000))
    lease = pool.serve(A)
    pool.ask(B, 10)
    pool.tell(messages.Release(lease), 20)
    assert pool.ledger.wake_at() == 70
    assert pool.tell(messages.Tick(), 70) == [Stop(A, "b has waited 60 s", B)]
    other = a_book(rules=attrs.evolve(RULES, hold_s=1000))
    other.idle(A)
    assert other.ask(B, 1, priority="high")[1] == [Stop(A, "b is wanted", B)]


def test_a_resident_stays_for_a_while_once_it_is_ready() -> None:
    pool = a_book(rules=attrs.evolve(RULES, min_resident_s=30))
    pool.idle(A, 0)
    assert pool.ask(B, 5)[1] == []
    assert pool.ledger.wake_at() == 30
    assert pool.tell(messages.Tick(), 30) == [Stop(A, "b is wanted", B)]


def test_a_hold_is_learned_from_pauses_that_are_shorter_than_a_swap() -> None:
    pool = a_book(rules=attrs.evolve(RULES, hold_s=None), a=Profile(start_s=25.0))
    pool.idle(A, 0)
    for now in (3, 6, 9, 12):
        ticket, effects = pool.ask(A, now)
        assert effects == [Grant(ticket)]
        pool.tell(messages.Release(ticket))
    assert pool.ask(B, 12)[1] == []
    assert pool.ledger.wake_at() == pytest.approx(12 + 3 * 1.1)


def rhythm(pauses: Sequence[float], use_s: float = 0.0) -> IdleGaps:
    times = IdleGaps()
    state = ResidentState(A, phase=Phase.READY, ready_at=-1)
    for pause in pauses:
        state.busy_since, state.uses = 0, 1
        times.answered(state, use_s, use_s)
        times.arrived(A, use_s + pause)
    return times


def test_no_hold_is_learned_where_clients_stay_away_for_long() -> None:
    times = rhythm([80] * 10)
    assert times.best_hold_s(A, per_s=1 / 25) == 0
    assert times.best_hold_s(A, per_s=1 / 100) == pytest.approx(88)
    assert times.best_hold_s(B, per_s=1 / 100) == 0


def test_no_hold_is_learned_where_many_wait() -> None:
    times = rhythm([3] * 10, use_s=6)
    assert times.best_hold_s(A, per_s=3 / 31) == pytest.approx(3.3)
    assert times.best_hold_s(A, per_s=4 / 31) == 0  # a swap serves four in 31 s, the hold one in 9 s
    assert times.best_hold_s(A, per_s=2 / 14) == 0


@given(
    st.lists(st.floats(0.01, 200), min_size=3, max_size=16),
    st.floats(0, 20),
    st.floats(0.001, 2),
)
def test_a_learned_hold_is_the_one_that_gains_most(pauses: list[float], use_s: float, per_s: float) -> None:
    def gained(hold_s: float) -> float:
        return sum((1 - per_s * use_s if p <= hold_s else 0) - per_s * min(p, hold_s) for p in pauses)

    best = rhythm(pauses, use_s).best_hold_s(A, per_s) / 1.1
    assert gained(best * (1 + 1e-9)) >= max(0, *(gained(pause) for pause in pauses)) - 1e-6


# Budgets.


def test_residents_share_what_they_fit_into() -> None:
    pool = budget(100, a=40, b=30, c=30, d=1)
    for resident in (A, B, C):
        pool.idle(resident)
    assert pool.present() == dict.fromkeys((A, B, C), Phase.READY)
    assert isinstance(pool.ask(D)[1][0], Stop)


def test_two_may_start_at_the_same_time() -> None:
    pool = budget(100, a=40, b=60)
    assert pool.ask(A)[1] == [Start(A, "requested")]
    assert pool.ask(B)[1] == [Start(B, "requested")]


def test_who_has_room_starts_however_many_are_blocked_ahead() -> None:
    names = [f"blocked-{number}" for number in range(40)]
    pool = budget(100, a=90, d=10, **dict.fromkeys(names, 20))
    pool.serve(A)
    for name in names:
        assert pool.ask(ResidentId(name))[1] == []
    assert pool.ask(D)[1] == [Start(D, "requested")]


def test_who_can_have_room_gets_it_however_many_are_blocked_ahead() -> None:
    names = [f"blocked-{number}" for number in range(40)]
    pool = budget(100, a=60, b=40, c=40, **dict.fromkeys(names, 50))
    pool.serve(A)
    pool.idle(B)
    for name in names:
        assert pool.ask(ResidentId(name))[1] == []
    assert pool.ask(C, 1)[1] == [Stop(B, "c is wanted", C)]


def test_what_is_promised_to_one_is_no_room_for_the_next() -> None:
    pool = budget(100, a=60, b=60, c=40, d=40)
    pool.idle(A)
    pool.idle(D)
    assert pool.ask(B, 1)[1] == [Stop(A, "b is wanted", B)]
    assert pool.ask(C, 2)[1] == [Stop(D, "c is wanted", C)]  # for B takes all that A leaves


def test_who_fits_beside_what_leaves_starts_in_the_step_in_which_it_is_made_to_leave() -> None:
    pool = budget(10, a=6, b=4, c=3, d=1)
    pool.profiles[A] = Profile(need_bytes=6 * GB, start_s=30)
    pool.profiles[D] = Profile(need_bytes=GB, start_s=1)
    pool.tell(messages.Adopt(A))
    pool.tell(messages.Adopt(D))
    pool.ask(B, 0, priority="high")
    assert pool.tell(messages.Tick(), 2) == [Stop(D, "nobody waits for it any more", B)]
    pool.ask(C, 2, priority="high")
    # Once A leaves, B is promised its room, and C fits beside both of those that leave.
    assert pool.tell(messages.BecameReady(A)) == [Stop(A, "c is wanted", C), Start(C, "requested")]


def test_a_guess_starts_in_the_step_in_which_a_pinned_one_leaves_it_less() -> None:
    pool = budget(10, a=4)
    pool.profiles[B] = Profile(need_bytes=14 * GB, is_estimated=True, least_bytes=3 * GB)
    pool.tell(messages.Adopt(A))
    pool.tell(messages.Pin(A, pinned=True))
    pool.ask(A)
    pool.tell(messages.HasEnded(A, None))
    pool.ask(B)
    assert pool.tell(messages.Settled(A)) == [Start(A, "requested"), Start(B, "requested")]


def test_nothing_starts_before_the_room_is_really_there() -> None:
    pool = budget(100, a=60, b=60, c=40)
    pool.idle(A)
    assert pool.ask(B, 1)[1] == [Stop(A, "b is wanted", B)]
    assert pool.tell(messages.HasEnded(A, None)) == [messages.Settle(A)]
    assert pool.ask(C)[1] == [Start(C, "requested")]  # fits beside what is still to come back, and beside B
    assert pool.tell(messages.Settled(A)) == [Start(B, "requested")]


def test_who_waits_for_room_is_not_overtaken_by_who_needs_less() -> None:
    pool = budget(100, a=60, b=60, c=50)
    lease = pool.serve(A)
    pool.ask(B, 0)
    pool.tell(messages.Tick(), 60)
    assert pool.present() == {A: Phase.DRAINING}
    pool.tell(messages.Release(lease))
    pool.ask(C, 61)
    assert pool.gone(A)[-1] == Start(B, "requested")
    assert list(pool.present()) == [B]


def test_what_nobody_knows_gets_everything_for_itself() -> None:
    pool = budget(100, a=10)
    pool.idle(A)
    assert pool.ask(B)[1] == [Stop(A, "b is wanted", B)]
    assert pool.gone(A)[-1] == Start(B, "requested")
    pool.tell(messages.BecameReady(B))
    assert pool.ask(A)[1] == []
    assert pool.tell(messages.Weighed(B, 20 * GB)) == [Start(A, "requested")]  # now it is known


def test_only_whose_room_is_needed_makes_way() -> None:
    pool = budget(100, a=50, b=40, c=45)
    pool.serve(A, 0)
    pool.idle(B, 1)
    assert pool.ask(C, 2)[1] == [Stop(B, "c is wanted", C)]
    assert pool.present() == {A: Phase.READY, B: Phase.STOPPING}


def test_the_one_that_was_idle_longest_makes_way() -> None:
    pool = budget(100, a=40, b=40, c=40)
    pool.idle(A, 0)
    pool.idle(B, 50)
    assert pool.ask(C, 60)[1] == [Stop(A, "c is wanted", C)]


def test_what_is_cheap_to_load_again_makes_way() -> None:
    pool = budget(100, a=40, b=40, c=40)
    pool.profiles[A] = Profile(need_bytes=40 * GB, start_s=90)
    pool.profiles[B] = Profile(need_bytes=40 * GB, start_s=5)
    pool.idle(A, 0)
    pool.idle(B, 30)
    assert pool.ask(C, 31)[1] == [Stop(B, "c is wanted", C)]


def test_an_overdue_ticket_closes_only_whom_it_needs() -> None:
    pool = budget(100, a=50, b=50, c=30)
    one, two = pool.serve(A), pool.serve(B)
    other = pool.ask(B)[0]
    pool.ask(C, 10)
    [drain] = pool.tell(messages.Tick(), 70)
    assert drain == messages.Drain(A, "c has waited 60 s", C)  # one lease instead of two
    assert pool.tell(messages.Release(one)) == [Stop(A, "c has waited 60 s", C)]
    assert pool.gone(A)[-1] == Start(C, "requested")
    assert pool.present() == {B: Phase.READY, C: Phase.STARTING}
    del two, other


def test_no_more_residents_than_may_be() -> None:
    pool = budget(100, capacity=Capacity(max_resident=2), a=1, b=1, c=1)
    pool.idle(A, 0)
    pool.idle(B, 1)
    assert pool.ask(C, 2)[1] == [Stop(A, "c is wanted", C)]


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    pool = budget(100, a=120)
    ticket, [refusal] = pool.ask(A)
    assert isinstance(refusal, Refuse)
    error = refusal.error
    assert isinstance(error, NeverFits)
    assert (refusal.ticket, error.status, error.retryable) == (ticket, 507, False)
    assert "120.0 GB" in str(error)
    assert "100.0 GB" in str(error)
    assert (error.need_bytes, error.budget_bytes) == (120 * GB, 100 * GB)


def guessed(need: int, least: int) -> Profile:
    return Profile(need_bytes=need * GB, is_estimated=True, least_bytes=least * GB)


def test_an_estimate_never_refuses() -> None:
    pool = a_book(capacity=Capacity(budget_bytes=100 * GB), a=guessed(260, 50), b=Profile(need_bytes=30 * GB))
    assert pool.ask(A)[1] == [Start(A, "requested")]
    assert pool.ledger.state(A).need_bytes == 100 * GB  # type: ignore[union-attr]


def test_the_weights_alone_may_refuse() -> None:
    pool = a_book(capacity=Capacity(budget_bytes=100 * GB), a=guessed(260, 120))
    [refusal] = pool.ask(A)[1]
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, NeverFits)
    assert "120.0 GB for its weights alone" in str(refusal.error)
    assert refusal.error.need_bytes == 120 * GB


@pytest.mark.parametrize("profile", [guessed(260, 50), Profile()])
def test_a_guess_takes_what_the_pinned_leave(profile: Profile) -> None:
    pool = a_book(capacity=Capacity(budget_bytes=100 * GB), a=profile, b=Profile(need_bytes=30 * GB))
    pool.tell(messages.Pin(B, pinned=True))
    pool.idle(B)
    assert pool.ask(A)[1] == [Start(A, "requested")]
    assert pool.ledger.state(A).need_bytes == 70 * GB  # type: ignore[union-attr]


def test_a_guess_is_refused_where_the_pinned_leave_too_little() -> None:
    pool = a_book(capacity=Capacity(budget_bytes=100 * GB), a=guessed(260, 50), b=Profile(need_bytes=60 * GB))
    pool.tell(messages.Pin(B, pinned=True))
    pool.idle(B)
    assert isinstance(pool.ask(A)[1][0], Refuse)


def test_residents_that_turn_out_larger_make_the_idle_go() -> None:
    pool = budget(100, a=40, b=40)
    pool.idle(A)
    pool.serve(B)
    assert pool.tell(messages.Weighed(B, 70 * GB)) == [
        Stop(A, "more memory is needed than was believed", None)
    ]


def test_a_start_that_finds_too_little_makes_the_idle_go() -> None:
    pool = budget(100, a=40, b=40)
    pool.idle(A)
    pool.ask(B)
    assert pool.tell(messages.Short(B, 25 * GB))[0] == Stop(
        A, "more memory is needed than was believed", None
    )


def test_what_is_stuck_keeps_its_room_and_no_more() -> None:
    pool = budget(100, a=60, b=60, c=40)
    pool.idle(A)
    waiting, _ = pool.ask(B)
    stuck = EngineStopFailed("a", "is still there")
    assert pool.tell(messages.StopFailed(A, stuck)) == [Refuse(waiting, stuck)]
    assert pool.ask(C)[1] == [Start(C, "requested")]
    assert pool.present() == {A: Phase.STUCK, C: Phase.STARTING}


def test_what_is_stuck_can_be_declared_gone_by_hand() -> None:
    pool = budget(100, a=60, b=60)
    pool.idle(A)
    pool.ask(B)
    pool.tell(messages.StopFailed(A, EngineStopFailed("a", "is still there")))
    assert pool.present() == {A: Phase.STUCK}
    pool.tell(messages.Reset(A))
    assert pool.present() == {}
    assert pool.ask(B)[1] == [Start(B, "requested")]


def test_a_reset_ends_nothing_that_is_not_stuck() -> None:
    pool = budget(100, a=60)
    pool.serve(A)
    assert pool.tell(messages.Reset(A)) == []
    assert pool.present() == {A: Phase.READY}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=11),
    st.integers(0, 300),
    st.integers(0, 4),
)
def test_the_victims_are_enough_and_none_is_needless(
    sizes: list[tuple[int, int]], missing: int, count: int
) -> None:
    candidates = [
        ResidentState(ResidentId(str(number)), needs={"gpu": size}) for number, (size, _) in enumerate(sizes)
    ]
    prices = dict(zip(candidates, (price for _, price in sizes), strict=True))
    shortage = Shortage((Lack("gpu", missing, count),))
    chosen = cheapest(candidates, shortage, prices.__getitem__)
    if chosen is None:
        assert not shortage.is_covered_by(candidates)
        return
    assert shortage.is_covered_by(chosen)
    for victim in chosen:
        rest = [other for other in chosen if other is not victim]
        assert prices[victim] == 0 or not shortage.is_covered_by(rest)
    if len(candidates) <= 8:
        subsets = (s for n in range(len(candidates) + 1) for s in itertools.combinations(candidates, n))
        best = min(sum(map(prices.__getitem__, s)) for s in subsets if shortage.is_covered_by(s))
        assert sum(map(prices.__getitem__, chosen)) == best


# Groups.


def test_members_of_a_group_stay_together_even_where_one_has_the_memory() -> None:
    small = Profile(groups=("small",))
    pool = a_book(a=small, b=small)
    pool.idle(A)
    pool.idle(B)
    assert pool.present() == {A: Phase.READY, B: Phase.READY}
    effects = pool.ask(C)[1]
    assert [type(effect) for effect in effects] == [Stop, Stop]
    assert not any(isinstance(effect, Start) for effect in pool.gone(A))
    assert pool.gone(B)[-1] == Start(C, "requested")


def test_another_groups_members_are_stopped_whatever_fits() -> None:
    pool = budget(100, a=10, b=10, c=10, d=10)
    pool.profiles[A] = Profile(need_bytes=10 * GB, groups=("work",))
    pool.profiles[B] = Profile(need_bytes=10 * GB, groups=("play",))
    pool.idle(A)
    pool.idle(C)
    assert pool.ask(B)[1] == [Stop(A, "b is wanted", B)]
    assert pool.gone(A)[-1] == Start(B, "requested")
    assert pool.present() == {C: Phase.READY, B: Phase.STARTING}  # who is in no group disturbs nobody


# Pins.


def test_the_pinned_stay() -> None:
    pool = budget(100, a=50, b=50, c=40)
    pool.profiles[A] = Profile(need_bytes=50 * GB, pinned=True, idle_timeout_s=10)
    pool.idle(A, 0)
    pool.idle(B, 1)
    assert pool.ask(C, 2)[1] == [Stop(B, "c is wanted", C)]
    assert pool.tell(messages.Tick(), 1_000_000) == []


def test_a_pin_makes_impossible_what_needs_its_room() -> None:
    pool = budget(100, a=50, b=60)
    lease = pool.serve(A)
    waiting, _ = pool.ask(B)
    [refusal] = pool.tell(messages.Pin(A, pinned=True))
    assert isinstance(refusal, Refuse)
    assert refusal.ticket is waiting
    assert isinstance(refusal.error, NeverFits)
    assert "50.0 GB belong to 'a'" in str(refusal.error)
    pool.tell(messages.Release(lease))
    assert isinstance(pool.ask(B)[1][0], Refuse)
    pool.tell(messages.Pin(A, pinned=False))
    assert pool.ask(B)[1] == [Stop(A, "b is wanted", B)]


def test_who_waits_for_one_on_its_way_out_is_refused_where_a_pinned_one_took_its_room() -> None:
    pool = budget(100, a=40, d=30)
    pool.idle(D)
    waiting, _ = pool.ask(A)
    pool.tell(messages.Unload(A))
    pool.tell(messages.Pin(D, pinned=True))
    assert pool.tell(messages.Weighed(D, 90 * GB)) == []
    refusal, _ = pool.tell(messages.HasEnded(A, None))[::-1]
    assert isinstance(refusal, Refuse)
    assert refusal.ticket is waiting
    assert isinstance(refusal.error, NeverFits)


def test_beside_a_pinned_one_nobody_else_has_the_memory_alone() -> None:
    pool = a_book(a=Profile(pinned=True))
    pool.idle(A)
    [refusal] = pool.ask(B)[1]
    assert isinstance(refusal, Refuse)
    assert "cannot be loaded beside 'a', which is pinned" in str(refusal.error)


def test_what_is_pinned_is_started_again_when_it_died() -> None:
    pool = a_book(a=Profile(pinned=True))
    pool.idle(A, 0)
    pool.tell(messages.HasEnded(A, DIED), 1)
    assert pool.tell(messages.Settled(A)) == [Start(A, "nobody waits, and it is meant to be there")]
    pool.tell(messages.BecameReady(A), 2)
    pool.tell(messages.HasEnded(A, DIED), 3)  # soon again
    assert pool.tell(messages.Settled(A)) == []
    assert pool.ledger.wake_at() == 3 + 5
    assert pool.tell(messages.Tick(), 8) == [Start(A, "nobody waits, and it is meant to be there")]


# Idle timeouts and keep-alives.


def test_an_idle_resident_is_stopped_after_its_time() -> None:
    pool = a_book(a=Profile(idle_timeout_s=300))
    lease = pool.serve(A)
    assert pool.ledger.expires_at(A, 10) == 310
    pool.tell(messages.Release(lease), 20)
    assert pool.ledger.wake_at() == pool.ledger.expires_at(A, 100) == 320
    assert pool.tell(messages.Tick(), 320) == [Stop(A, "idle for 300 s", None)]
    assert pool.ledger.expires_at(A, 320) is None


@pytest.mark.parametrize("seconds", [-1, math.inf])
def test_a_ticket_may_keep_its_resident_for_ever(seconds: float) -> None:
    pool = a_book(a=Profile(idle_timeout_s=300))
    pool.idle(A, keep_alive_s=seconds)
    assert pool.ledger.wake_at() == pool.ledger.expires_at(A, 0) == math.inf


def test_a_ticket_may_have_its_resident_stopped_when_it_is_idle() -> None:
    pool = a_book()
    one, two = pool.serve(A, keep_alive_s=0), pool.ask(A)[0]
    assert pool.tell(messages.Release(one), 1) == []
    assert pool.tell(messages.Release(two), 2) == [Stop(A, "idle for 0 s", None)]


def test_the_last_ticket_that_has_a_wish_decides() -> None:
    pool = a_book(a=Profile(idle_timeout_s=300))
    one, two, three = pool.serve(A, keep_alive_s=10), pool.ask(A, keep_alive_s=20)[0], pool.ask(A)[0]
    for ticket in (two, one, three):
        pool.tell(messages.Release(ticket), 5)
    assert pool.ledger.expires_at(A, 5) == 15


def test_a_wish_may_come_without_a_request() -> None:
    pool = a_book()
    pool.idle(A)
    assert pool.tell(messages.KeepAlive(A, 30), 10) == []
    assert pool.ledger.wake_at() == 30
    assert pool.tell(messages.KeepAlive(A, 0), 11) == [Stop(A, "idle for 11 s", None)]
    assert pool.tell(messages.KeepAlive(B, 0)) == []


# What is loaded ahead.


def test_as_much_is_loaded_ahead_as_fits_one_after_the_other() -> None:
    pool = budget(100, a=40, b=80, c=30, d=20)
    [start] = pool.tell(messages.Preload((A, B, C, D)))
    assert start == Start(A, "nobody waits, and it is meant to be there")
    assert pool.tell(messages.BecameReady(A))[0] == msgspec.structs.replace(start, resident=C)
    assert pool.tell(messages.BecameReady(C))[0] == msgspec.structs.replace(start, resident=D)
    assert pool.tell(messages.BecameReady(D)) == []


def test_what_is_loaded_ahead_starts_when_the_last_who_waits_for_a_look_has_gone() -> None:
    needs = {
        name: Profile(need_bytes=need * GB, is_checkable=True)
        for name, need in (("a", 6), ("b", 5), ("c", 3))
    }
    pool = a_book(capacity=Capacity(budget_bytes=10 * GB), **needs)
    pool.serve(A)
    ticket, effects = pool.ask(B)
    assert effects == [messages.CheckStart(B)]
    assert pool.tell(messages.Preload((C,))) == []
    assert [
        effect.resident for effect in pool.tell(messages.Release(ticket)) if isinstance(effect, Start)
    ] == [C]


@pytest.mark.parametrize("objects", [False, True])
def test_what_is_found_running_while_it_is_looked_at_is_what_its_clients_wait_for(objects: bool) -> None:
    pool = a_book(a=Profile(is_checkable=True))
    pool.serve(B)
    ticket, effects = pool.ask(A)
    assert effects == [messages.CheckStart(A)]
    pool.tell(messages.HasEnded(B, None))
    pool.tell(messages.Settled(B))
    assert pool.tell(messages.Adopt(A)) == [Start(A, "found running", adopt=True)]
    assert pool.tell(messages.Checked(A, FAILED if objects else None)) == []
    assert pool.tell(messages.BecameReady(A)) == [Grant(ticket)]


def test_whoever_asks_goes_before_what_is_loaded_ahead() -> None:
    pool = a_book()
    pool.tell(messages.Preload((A,)))
    pool.ask(B, 1)
    assert pool.ledger.wake_at() == 3
    assert pool.tell(messages.Tick(), 3) == [Stop(A, "nobody waits for it any more", B)]


def test_the_default_model_comes_back_when_the_others_are_idle() -> None:
    pool = a_book(capacity=Capacity(default_model=A, return_after_s=60))
    cause = "nobody waits, and it is meant to be there"
    assert pool.tell(messages.Tick()) == [Start(A, cause)]
    pool.tell(messages.BecameReady(A))
    pool.ask(B, 10)
    pool.gone(A)
    pool.tell(messages.BecameReady(B), 20)
    lease = next(iter(next(iter(pool.ledger.states)).leases))
    pool.tell(messages.Release(lease), 30)
    assert pool.ledger.wake_at() == 90
    assert pool.tell(messages.Tick(), 90) == [Stop(B, "idle for 60 s", A)]
    assert pool.gone(B)[-1] == Start(A, cause)


# Failures.


def test_each_failure_in_a_row_is_remembered_twice_as_long() -> None:
    pool = a_book()
    now = 0.0
    for wait_s in (5, 10, 20, 40, 80, 160, 300, 300):
        pool.ask(A, now)
        pool.tell(messages.HasEnded(A, FAILED))
        pool.tell(messages.Settled(A))
        assert isinstance(pool.ask(A, now + wait_s - 0.1)[1][0], Refuse)
        now += wait_s
    failure = pool.ledger.failures()[A]
    assert (failure.error, failure.count) == (FAILED, 8)


def test_a_failure_can_be_forgotten_by_hand() -> None:
    pool = a_book()
    pool.ask(A)
    pool.tell(messages.HasEnded(A, FAILED))
    pool.tell(messages.Settled(A))
    pool.tell(messages.Reset(A))
    assert pool.ledger.failures() == {}
    assert pool.ask(A)[1] == [Start(A, "requested")]


def test_who_serves_for_a_while_before_it_dies_has_not_failed_again() -> None:
    pool = a_book()
    for now in (0, 100, 200):
        lease = pool.serve(A, now)
        pool.tell(messages.HasEnded(A, DIED), now + 70)
        pool.tell(messages.Settled(A))
        pool.tell(messages.Release(lease))
    assert pool.ledger.failures()[A].count == 1


def test_who_is_down_goes_at_once_and_comes_back_for_who_waits() -> None:
    pool = a_book()
    lease = pool.serve(A)
    assert pool.tell(messages.Down(A, DIED), 1) == [
        messages.Drain(A, "it does not answer any more", None),
        messages.Revoke(lease, DIED),
        Stop(A, "it does not answer any more", None),
    ]
    assert pool.ask(A, 2)[1] == []
    assert pool.gone(A, 3)[-1] == Start(A, "requested")


# The queue, against a list.


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "arrive", "leave", "take"]),
            st.sampled_from([A, B, C, D]),
            st.sampled_from(["high", "normal", "low"]),
            st.integers(0, 9),
        ),
        max_size=60,
    )
)
def test_the_queue_keeps_its_orders(steps: list[tuple[str, ResidentId, messages.Priority, int]]) -> None:
    queue, tickets, now = TicketQueue(8.0), list[Ticket](), 0.0
    ranks = {"high": 0, "normal": 1, "low": 2}
    for step, resident, priority, number in steps:
        now += number % 3
        if step == "arrive":
            tickets.append(Ticket(resident, priority))
            queue.add(tickets[-1], now)
        elif step == "leave" and tickets:
            left = tickets[number % len(tickets)]
            line = [t for t in tickets if (t.resident, t.priority) == (left.resident, left.priority)]
            assert queue.remove(left) is (left is line[0])
            assert not queue.remove(left)
            tickets.remove(left)
        elif step == "take":
            expected = [ticket for ticket in tickets if ticket.resident == resident]
            assert queue.take(resident) == expected or len({t.arrived_at for t in expected}) < len(expected)
            tickets = [ticket for ticket in tickets if ticket.resident != resident]
        assert len(queue) == len(tickets)
        assert set(queue) == set(tickets)
        assert queue.first_deadline() == min((t.deadline for t in tickets), default=math.inf)
        order = [(r, queue.head(r)) for r in queue.in_turn(now)]
        assert {r for r, _ in order} == {t.resident for t in tickets}
        assert len(order) == len({r for r, _ in order})
        overdue = [head.deadline for _, head in order if head is not None and head.deadline <= now]
        assert overdue == sorted(overdue)
        rest = [r for r, head in order if head is not None and head.deadline > now]
        keys = [min((ranks[t.priority], t.arrived_at) for t in tickets if t.resident == r) for r in rest]
        assert keys == sorted(keys)


def test_who_is_overdue_starts_at_once_though_nobody_is_there() -> None:
    """What was promised to another is free for it then: that is a time to look, even if nothing else happens."""
    pool = budget(10, a=8, b=5, c=4, d=5)
    for resident in (B, D):
        pool.serve(resident)
        pool.tell(messages.HasEnded(resident, None))
    pool.ask(C, 0, priority="low")  # there is no room for anybody
    pool.ask(A, 1)
    assert pool.tell(messages.Settled(D), 2) == []  # which A is to have, once the rest is back
    deadline = pool.ledger.wake_at()
    assert deadline == RULES.max_wait_s
    assert pool.tell(messages.Tick(), deadline) == [Start(C, "requested")]
