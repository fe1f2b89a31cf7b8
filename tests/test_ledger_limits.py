"""The ledger's rules for residents that are always there: a limit of leases, and none while one cannot be reached."""

from __future__ import annotations

import math

import pytest

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import EngineUnreachable
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, Rules
from engine_router.residency.messages import (
    Acquire,
    Adopt,
    BecameReady,
    Effect,
    GivenBack,
    Grant,
    KeepAlive,
    Opened,
    Reconfigured,
    Refuse,
    Release,
    Reset,
    Shut,
    Start,
    Tick,
    Ticket,
)

A, B = ResidentId("a"), ResidentId("b")
RULES = Rules(max_wait_s=60, max_queue=1000, max_queue_per_model=3)
BOUNDLESS = Capacity(is_boundless=True)
GONE = EngineUnreachable("a", "does not accept connections")


class Remotes:
    """A ledger with two residents that are there from the beginning; of A, `most` requests at a time."""

    def __init__(self, most: float = 2, rules: Rules = RULES) -> None:
        self.most = most
        self.ledger = Ledger(rules, {"remotes": BOUNDLESS}, self.profile)
        for resident in (A, B):
            assert self.apply(Adopt(resident)) == [Start(resident, "found running", adopt=True)]
            assert self.apply(BecameReady(resident)) == []

    def profile(self, resident: ResidentId) -> Profile:
        return Profile(is_always_there=True, max_leases=self.most if resident == A else math.inf)

    def apply(self, event: object, now: float = 0) -> list[Effect]:
        return self.ledger.apply(event, now)  # type: ignore[arg-type]

    def ask(self, resident: ResidentId = A, now: float = 0, priority: Priority = "normal") -> Ticket:
        ticket = Ticket(resident, priority)
        assert self.apply(Acquire(ticket), now) in ([], [Grant(ticket)])
        return ticket

    def leases(self, resident: ResidentId = A) -> list[Ticket]:
        state = self.ledger.state(resident)
        assert state is not None
        assert state.phase is Phase.READY
        return list(state.leases)


def test_beyond_the_limit_requests_wait_and_are_served_in_order() -> None:
    remotes = Remotes()
    first, second, third, fourth = (remotes.ask(now=at) for at in range(4))
    assert remotes.leases() == [first, second]
    assert [remotes.ledger.place(ticket) for ticket in (third, fourth)] == [0, 1]
    assert remotes.apply(Release(second), 5) == [Grant(third)]
    assert remotes.apply(Release(first), 6) == [Grant(fourth)]
    assert remotes.apply(Release(third), 7) == []


def test_a_lease_given_back_beside_the_ledger_makes_room_too() -> None:
    remotes = Remotes(most=1)
    first, second = remotes.ask(), remotes.ask()
    event = remotes.ledger.give_back(first, 1)
    assert event == GivenBack(A)
    assert remotes.apply(event, 1) == [Grant(second)]
    assert remotes.ledger.give_back(second, 2) is None


def test_nothing_is_lent_past_the_limit_without_a_plan() -> None:
    remotes = Remotes(most=1)
    assert remotes.ledger.lend(Ticket(A), 0)
    assert not remotes.ledger.lend(Ticket(A), 0)
    assert remotes.ledger.lend(Ticket(B), 0)


def test_who_leaves_the_queue_frees_its_place() -> None:
    remotes = Remotes(most=1)
    first, second, third = remotes.ask(now=0), remotes.ask(now=1), remotes.ask(now=2)
    assert remotes.apply(Release(second), 3) == []
    assert remotes.ledger.place(third) == 0
    assert remotes.apply(Release(first), 4) == [Grant(third)]


def test_priority_goes_first_until_somebody_has_waited_too_long() -> None:
    remotes = Remotes(most=1)
    first = remotes.ask(now=0)
    low = remotes.ask(now=1, priority="low")
    high = remotes.ask(now=30, priority="high")
    assert remotes.apply(Release(first), 31) == [Grant(high)]
    later = remotes.ask(now=55, priority="high")
    assert remotes.apply(Release(high), 61.5) == [Grant(low)]
    assert remotes.apply(Release(low), 62) == [Grant(later)]


def test_a_full_line_concerns_nobody_else() -> None:
    remotes = Remotes(most=1)
    for _ in range(1 + 3):
        remotes.ask()
    one_more = Ticket(A)
    (effect,) = remotes.apply(Acquire(one_more))
    assert isinstance(effect, Refuse)
    assert effect.error.status == 503
    other = Ticket(B)
    assert remotes.apply(Acquire(other)) == [Grant(other)]
    # However long those wait, they are in nobody's way.
    assert remotes.apply(Tick(), 1000) == []
    late = Ticket(B)
    assert remotes.apply(Acquire(late), 1000) == [Grant(late)]


def test_a_higher_limit_is_used_at_once() -> None:
    remotes = Remotes(most=1)
    _, second, third = remotes.ask(), remotes.ask(), remotes.ask()
    remotes.most = 3
    assert remotes.apply(Reconfigured(RULES, {"remotes": BOUNDLESS}), 1) == [Grant(second), Grant(third)]


def test_it_stays_whatever_clients_say() -> None:
    remotes = Remotes()
    assert remotes.apply(KeepAlive(A, 0), 1) == []
    assert remotes.apply(Tick(), 1e9) == []
    assert remotes.leases() == []


@pytest.mark.parametrize("most", [1, math.inf])
def test_what_cannot_be_reached_refuses_and_lets_those_under_way_go_on(most: float) -> None:
    remotes = Remotes(most)
    held = remotes.ask()
    waiting = remotes.ask() if most == 1 else None
    effects = remotes.apply(Shut(A, GONE, until=10), 5)
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [waiting] * (most == 1)
    assert held in remotes.leases()
    refused = Ticket(A)
    (effect,) = remotes.apply(Acquire(refused), 7)
    assert isinstance(effect, Refuse)
    assert effect.error.retry_after_s == 3
    assert not remotes.ledger.lend(Ticket(A), 7)
    assert remotes.ledger.failures()[A].error is GONE
    assert remotes.ledger.lend(Ticket(B), 7)


def test_while_it_is_looked_at_again_requests_wait_for_the_outcome() -> None:
    remotes = Remotes()
    remotes.apply(Shut(A, GONE, until=10), 5)
    early, late = remotes.ask(now=10), remotes.ask(now=11)
    assert remotes.apply(Opened(A), 12) == [Grant(early), Grant(late)]
    assert remotes.ledger.failures() == {}
    remotes.apply(Release(early), 13)
    remotes.apply(Shut(A, GONE, until=20), 15)
    third = remotes.ask(now=20)
    (effect,) = remotes.apply(Shut(A, GONE, until=40), 21)
    assert isinstance(effect, Refuse)
    assert (effect.ticket, effect.error.retry_after_s) == (third, 19)
    assert remotes.ledger.failures()[A].count == 2


def test_after_a_reset_requests_wait_for_the_next_look() -> None:
    remotes = Remotes()
    remotes.apply(Shut(A, GONE, until=100), 5)
    remotes.apply(Reset(A), 6)
    ticket = remotes.ask(now=7)
    assert remotes.apply(Opened(A), 8) == [Grant(ticket)]


def test_how_long_leases_take_is_learned() -> None:
    remotes = Remotes(most=1)
    first = remotes.ask(now=0)
    remotes.apply(Release(first), 10)
    second = remotes.ask(now=10)
    remotes.apply(Release(second), 30)
    state = remotes.ledger.state(A)
    assert state is not None
    assert state.lease_s == pytest.approx(12)
