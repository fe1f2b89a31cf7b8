"""The rules of the ledger, one by one: what goes in, what comes out, and when."""

from __future__ import annotations

import math

import pytest

from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineDied,
    EngineStartFailed,
    EngineStopFailed,
    LeaseRevoked,
    QueueFull,
    RouterClosing,
)
from engine_router.residency.ledger import Ledger, Phase, ResidentState, Rules
from engine_router.residency.messages import (
    Acquire,
    Adopt,
    BecameReady,
    Close,
    Drain,
    Effect,
    Grant,
    HasEnded,
    Refuse,
    Release,
    Resume,
    Revoke,
    Settle,
    Settled,
    Start,
    Stop,
    StopFailed,
    Tick,
    Ticket,
    Unload,
)

A, B, C = ResidentId("a"), ResidentId("b"), ResidentId("c")
RULES = Rules(drain_timeout_s=30, max_wait_s=60, abandon_grace_s=2, failed_start_memory_s=5, max_queue=3)
FAILED = EngineStartFailed("a", "failed")
STUCK = EngineStopFailed("a", "is still there")
DIED = EngineDied("a", "died")


class Book:
    """A ledger, and how to speak to it."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.ledger = Ledger(rules)

    def ask(self, resident: ResidentId, now: float = 0) -> tuple[Ticket, list[Effect]]:
        ticket = Ticket(resident)
        return ticket, self.ledger.apply(Acquire(ticket), now)

    def waiting(self, resident: ResidentId, now: float = 0) -> Ticket:
        ticket, _ = self.ask(resident, now)
        assert ticket in self.ledger.waiting()
        return ticket

    def holding(self, resident: ResidentId, now: float = 0) -> Ticket:
        ticket, effects = self.ask(resident, now)
        assert effects == [Grant(ticket)]
        return ticket

    def with_ready(self, resident: ResidentId, now: float = 0) -> Ticket:
        """Make a resident ready; return the ticket that holds it."""
        ticket, effects = self.ask(resident, now)
        assert effects == [Start(resident, "requested")]
        assert self.ledger.apply(BecameReady(resident), now) == [Grant(ticket)]
        return ticket

    def with_idle(self, resident: ResidentId, now: float = 0) -> None:
        """Make a resident ready that nobody uses."""
        self.ledger.apply(Release(self.with_ready(resident, now)), now)

    def with_stopping(self, resident: ResidentId, wanted: ResidentId) -> Ticket:
        self.with_idle(resident)
        return self.waiting(wanted)

    @property
    def phase(self) -> Phase | None:
        return self.present.phase if self.present else None

    @property
    def present(self) -> ResidentState | None:
        """The only resident there."""
        assert len(self.ledger.states) <= 1
        return next(iter(self.ledger.states), None)


@pytest.fixture
def messages() -> Book:
    return Book()


# Rule 1: at most one resident is present, and none is started before the last one's memory has settled.


def test_a_swap_goes_through_its_steps_one_by_one(messages: Book) -> None:
    first, ledger = messages.with_ready(A), messages.ledger
    second = messages.waiting(B, 1)
    assert ledger.apply(Release(first), 2) == [Stop(A, "b is wanted", B)]
    assert ledger.apply(HasEnded(A, None), 3) == [Settle(A)]
    assert (messages.present, list(ledger.settling)) == (None, [A])
    assert ledger.apply(Settled(A), 4) == [Start(B, "requested")]
    assert ledger.apply(BecameReady(B), 5) == [Grant(second)]


def test_nothing_is_started_beside_a_starting_resident(messages: Book) -> None:
    messages.waiting(A)
    assert messages.ask(B, 1)[1] == []
    assert messages.ledger.apply(Tick(), 1000) == []


def test_nothing_is_started_while_memory_settles(messages: Book) -> None:
    messages.with_stopping(A, B)
    messages.ledger.apply(HasEnded(A, None), 1)
    assert messages.ask(C, 2)[1] == []
    assert messages.ask(A, 2)[1] == []


def test_what_cannot_be_stopped_is_told_to_everybody_and_blocks_every_start(messages: Book) -> None:
    b = messages.with_stopping(A, B)
    c = messages.waiting(C)
    assert messages.ledger.apply(StopFailed(A, STUCK), 9) == [Refuse(b, STUCK), Refuse(c, STUCK)]
    assert messages.phase is Phase.STUCK
    assert messages.present is not None
    assert messages.present.failure is STUCK
    assert messages.ledger.wake_at() == math.inf


def test_the_next_request_tries_a_failed_stop_again(messages: Book) -> None:
    messages.with_stopping(A, B)
    messages.ledger.apply(StopFailed(A, STUCK), 9)
    ticket, effects = messages.ask(C, 10)
    assert effects == [Stop(A, "stopping it again, since it could not be stopped before", C)]
    assert messages.ledger.apply(HasEnded(A, None), 11) == [Settle(A)]
    assert messages.ledger.apply(Settled(A), 12) == [Start(C, "requested")]
    assert messages.ledger.place(ticket) == 0


def test_a_stop_that_fails_under_leases_takes_them_away(messages: Book) -> None:
    ticket = messages.with_ready(A)
    assert messages.ledger.apply(StopFailed(A, STUCK), 1) == [Revoke(ticket, STUCK)]


def test_late_news_of_a_resident_that_is_not_there_changes_nothing(messages: Book) -> None:
    messages.with_ready(A)
    for event in (BecameReady(B), HasEnded(B, None), StopFailed(B, STUCK), BecameReady(A), Unload(B)):
        assert messages.ledger.apply(event, 1) == []
    assert messages.phase is Phase.READY


def test_readiness_that_comes_after_the_stop_was_decided_is_ignored(messages: Book) -> None:
    ticket, _ = messages.ask(A)
    messages.ledger.apply(Release(ticket), 1)
    assert messages.ledger.apply(Tick(), 3) == [Stop(A, "nobody waits for it any more", None)]
    assert messages.ledger.apply(BecameReady(A), 3) == []


# Rule 2: what waits when a resident becomes ready is granted at once, as one batch, before any deadline.


def test_the_batch_is_served_before_the_deadline_is_tested(messages: Book) -> None:
    first, other, second = messages.waiting(A), messages.waiting(B, 1), messages.waiting(A, 2)
    effects = messages.ledger.apply(BecameReady(A), 500)
    assert effects[:2] == [Grant(first), Grant(second)]
    assert effects[2:] == [Drain(A, "b has waited 60 s", B)]
    assert list(messages.ledger.waiting()) == [other]


# Rule 3: while nobody else is overdue, the resident's own requests go first; idle, it yields at once.


def test_the_residents_own_requests_go_first(messages: Book) -> None:
    messages.with_ready(A)
    messages.waiting(B, 1)
    messages.holding(A, 2)
    messages.holding(A, 60.9)


def test_an_idle_resident_stays_until_somebody_else_comes(messages: Book) -> None:
    messages.with_idle(A)
    assert messages.ledger.wake_at() == math.inf
    assert messages.ledger.apply(Tick(), 1_000_000) == []
    assert messages.ask(B, 1_000_000)[1] == [Stop(A, "b is wanted", B)]


def test_the_last_release_lets_it_yield(messages: Book) -> None:
    one, two = messages.with_ready(A), messages.holding(A)
    messages.waiting(B)
    assert messages.ledger.apply(Release(one), 1) == []
    assert messages.ledger.apply(Release(one), 1) == []
    assert messages.ledger.apply(Release(two), 2) == [Stop(A, "b is wanted", B)]


def test_a_resident_that_became_ready_for_nobody_yields_at_once(messages: Book) -> None:
    ticket = messages.waiting(A)
    messages.waiting(B)
    messages.ledger.apply(Release(ticket), 1)
    assert messages.ledger.apply(BecameReady(A), 2) == [Stop(A, "b is wanted", B)]


# Rule 4: admission closes when the oldest other ticket has waited `max_wait_s`; drain, and revoke.


def test_admission_closes_when_another_ticket_is_overdue(messages: Book) -> None:
    messages.with_ready(A)
    messages.waiting(B, 10)
    assert messages.ledger.wake_at() == 70
    assert messages.ledger.apply(Tick(), 70) == [Drain(A, "b has waited 60 s", B)]
    assert messages.ask(A, 71)[1] == []
    assert messages.phase is Phase.DRAINING


def test_a_request_in_the_moment_of_the_deadline_comes_too_late(messages: Book) -> None:
    messages.with_ready(A)
    messages.waiting(B, 10)
    assert messages.ask(A, 70)[1] == [Drain(A, "b has waited 60 s", B)]


def test_drained_it_stops_and_those_who_came_too_late_wait_for_the_next_time(messages: Book) -> None:
    lease = messages.with_ready(A)
    messages.waiting(B, 0)
    late, _ = messages.ask(A, 60)
    assert messages.ledger.apply(Release(lease), 61) == [Stop(A, "b has waited 60 s", B)]
    messages.ledger.apply(HasEnded(A, None), 62)
    assert messages.ledger.apply(Settled(A), 63) == [Start(B, "requested")]
    assert late in messages.ledger.waiting()


def test_leases_may_run_for_the_drain_timeout(messages: Book) -> None:
    messages.with_idle(A)
    lease = messages.holding(A, 100)
    messages.waiting(B, 100)
    messages.ledger.apply(Tick(), 160)
    assert messages.ledger.wake_at() == 160 + 30
    assert messages.ledger.apply(Tick(), 189) == []
    revoke, stop = messages.ledger.apply(Tick(), 190)
    assert isinstance(revoke, Revoke)
    assert (revoke.ticket, type(revoke.error)) == (lease, LeaseRevoked)
    assert stop == Stop(A, "b has waited 60 s", B)
    assert messages.ledger.apply(Release(lease), 191) == []


def test_every_batch_gets_a_fair_time(messages: Book) -> None:
    messages.waiting(A, 0)
    messages.waiting(B, 0)
    messages.ledger.apply(BecameReady(A), 100)  # B is overdue already
    assert messages.phase is Phase.DRAINING
    assert messages.ledger.wake_at() == 100 + 60 + 30


def test_leases_are_revoked_in_the_order_in_which_they_were_granted(messages: Book) -> None:
    leases = [messages.with_ready(A), messages.holding(A), messages.holding(A)]
    messages.waiting(B)
    messages.ledger.apply(Tick(), 60)
    revoked = [effect.ticket for effect in messages.ledger.apply(Tick(), 90) if isinstance(effect, Revoke)]
    assert revoked == leases


def test_a_resident_opens_again_when_nobody_else_waits_any_more(messages: Book) -> None:
    messages.with_ready(A)
    other = messages.waiting(B)
    messages.ledger.apply(Tick(), 60)
    late, _ = messages.ask(A, 61)
    assert messages.ledger.apply(Release(other), 62) == [Resume(A), Grant(late)]
    assert messages.ledger.wake_at() == math.inf


# Rule 5: the next resident is the one whose oldest ticket waits longest.


def test_the_oldest_ticket_chooses_the_next_resident(messages: Book) -> None:
    lease = messages.with_ready(A)
    messages.waiting(C, 1)
    messages.waiting(B, 2)
    messages.waiting(C, 3)
    assert messages.ledger.apply(Release(lease), 4) == [Stop(A, "c is wanted", C)]
    messages.ledger.apply(HasEnded(A, None), 5)
    assert messages.ledger.apply(Settled(A), 6) == [Start(C, "requested")]


def test_a_ticket_knows_its_place(messages: Book) -> None:
    messages.with_ready(A)
    places = [
        messages.ledger.place(messages.waiting(resident, now)) for now, resident in enumerate((B, C, B))
    ]
    assert places == [0, 1, 2]


# Starts that nobody waits for, and starts that fail.


def test_an_abandoned_start_is_given_up_after_its_grace(messages: Book) -> None:
    ticket = messages.waiting(A)
    assert messages.ledger.apply(Release(ticket), 10) == []
    assert messages.ledger.wake_at() == 12
    assert messages.ledger.apply(Tick(), 12) == [Stop(A, "nobody waits for it any more", None)]


def test_a_client_that_comes_back_keeps_the_start(messages: Book) -> None:
    ticket = messages.waiting(A)
    messages.ledger.apply(Release(ticket), 10)
    back, effects = messages.ask(A, 11)
    assert effects == []
    assert messages.ledger.wake_at() > 12
    assert messages.ledger.apply(Tick(), 12) == []
    assert messages.ledger.apply(BecameReady(A), 20) == [Grant(back)]


def test_a_failed_start_is_told_to_all_who_wait_for_it_and_to_nobody_else(messages: Book) -> None:
    one, other, two = messages.waiting(A), messages.waiting(B), messages.waiting(A)
    assert messages.ledger.apply(HasEnded(A, FAILED), 1) == [
        Refuse(one, FAILED),
        Refuse(two, FAILED),
        Settle(A),
    ]
    assert list(messages.ledger.waiting()) == [other]


def test_a_failed_start_is_remembered_for_a_while(messages: Book) -> None:
    messages.waiting(A)
    messages.ledger.apply(HasEnded(A, FAILED), 1)
    messages.ledger.apply(Settled(A), 1)
    ticket, [refusal] = messages.ask(A, 5.9)
    assert isinstance(refusal, Refuse)
    assert (refusal.ticket, type(refusal.error), refusal.error.retry_after_s) == (ticket, type(FAILED), 1.0)
    assert str(refusal.error).startswith(f"{FAILED} (remembered: that was 5 s ago; it is tried again in 0 s")
    assert "remembered" not in str(FAILED)
    assert messages.ask(A, 6)[1] == [Start(A, "requested")]


def test_a_death_takes_the_leases_and_is_not_remembered(messages: Book) -> None:
    ticket = messages.with_ready(A)
    assert messages.ledger.apply(HasEnded(A, DIED), 1) == [Revoke(ticket, DIED), Settle(A)]
    messages.ledger.apply(Settled(A), 1)
    assert messages.ask(A, 1)[1] == [Start(A, "requested")]


def test_an_end_that_nobody_explains_is_a_death_for_the_leases(messages: Book) -> None:
    ticket = messages.with_ready(A)
    revoke, settle = messages.ledger.apply(HasEnded(A, None), 1)
    assert isinstance(revoke, Revoke)
    assert (revoke.ticket, type(revoke.error), settle) == (ticket, EngineDied, Settle(A))


# Admission.


def test_the_queue_is_bounded(messages: Book) -> None:
    messages.with_ready(A)
    for _ in range(3):
        messages.waiting(B)
    ticket, [refusal] = messages.ask(C)
    assert isinstance(refusal, Refuse)
    assert (refusal.ticket, type(refusal.error)) == (ticket, QueueFull)


def test_what_need_not_wait_needs_no_room_in_the_queue(messages: Book) -> None:
    messages.with_ready(A)
    for _ in range(3):
        messages.waiting(B)
    messages.holding(A)
    messages.ledger.apply(Tick(), 60)  # now it drains, and has to wait like all others
    assert isinstance(messages.ask(A, 61)[1][0], Refuse)


def test_a_withdrawn_ticket_makes_room(messages: Book) -> None:
    messages.with_ready(A)
    tickets = [messages.waiting(B) for _ in range(3)]
    messages.ledger.apply(Release(tickets[1]), 1)
    messages.waiting(C, 1)


# What was found running, unload, close.


def test_what_runs_already_is_taken_over_and_kept(messages: Book) -> None:
    assert messages.ledger.apply(Adopt(A), 0) == [Start(A, "found running", adopt=True)]
    assert messages.ledger.wake_at() == math.inf
    assert messages.ledger.apply(BecameReady(A), 1) == []
    messages.holding(A, 2)


def test_only_an_empty_open_memory_takes_something_over(messages: Book) -> None:
    messages.with_ready(A)
    assert messages.ledger.apply(Adopt(B), 1) == []
    closing = Book()
    closing.ledger.apply(Close(1), 0)
    assert closing.ledger.apply(Adopt(B), 0) == []


def test_a_takeover_that_failed_is_followed_by_a_start(messages: Book) -> None:
    messages.ledger.apply(Adopt(A), 0)
    ticket = messages.waiting(A, 1)
    assert messages.ledger.apply(HasEnded(A, DIED), 2) == [Settle(A)]
    assert messages.ledger.apply(Settled(A), 2) == [Start(A, "requested")]
    assert ticket in messages.ledger.waiting()


def test_a_takeover_that_hangs_does_not_block_the_queue(messages: Book) -> None:
    messages.ledger.apply(Adopt(A), 0)
    messages.waiting(B, 10)
    assert messages.ledger.wake_at() == 12
    assert messages.ledger.apply(Tick(), 12) == [Stop(A, "nobody waits for it any more", B)]


def test_unload_stops_the_idle_and_drains_the_used(messages: Book) -> None:
    lease = messages.with_ready(A)
    assert messages.ledger.apply(Unload(A), 5) == [Drain(A, "unload asked for", None)]
    assert messages.ledger.wake_at() == 5 + 30
    assert messages.ledger.apply(Release(lease), 6) == [Stop(A, "unload asked for", None)]
    idle = Book()
    idle.with_idle(A)
    assert idle.ledger.apply(Unload(A), 5) == [Stop(A, "unload asked for", None)]


def test_unload_ends_a_start_and_tries_a_failed_stop_again(messages: Book) -> None:
    messages.waiting(A)
    assert messages.ledger.apply(Unload(A), 1) == [Stop(A, "unload asked for", None)]
    messages.ledger.apply(StopFailed(A, STUCK), 2)
    assert isinstance(messages.ledger.apply(Unload(A), 3)[0], Stop)


def test_unload_shortens_a_drain(messages: Book) -> None:
    messages.waiting(A)
    messages.waiting(B)
    messages.ledger.apply(BecameReady(A), 60)
    assert messages.ledger.wake_at() == 60 + 60 + 30
    messages.ledger.apply(Unload(A), 70)
    assert messages.ledger.wake_at() == 70 + 30


def test_close_refuses_who_waits_and_who_comes(messages: Book) -> None:
    messages.with_ready(A)
    waiting = messages.waiting(B)
    refusal, drain = messages.ledger.apply(Close(20), 5)
    assert isinstance(refusal, Refuse)
    assert (refusal.ticket, type(refusal.error)) == (waiting, RouterClosing)
    assert drain == Drain(A, "shutting down", None)
    assert messages.ledger.is_closing
    [refusal] = messages.ask(A, 6)[1]
    assert isinstance(refusal, Refuse)


def test_close_lets_leases_run_until_its_deadline_and_never_longer_than_they_may(messages: Book) -> None:
    messages.with_ready(A)
    messages.ledger.apply(Close(20), 5)
    assert messages.ledger.wake_at() == 20
    messages.ledger.apply(Close(15), 6)
    assert messages.ledger.wake_at() == 15
    assert [type(effect) for effect in messages.ledger.apply(Tick(), 15)] == [Revoke, Stop]


def test_close_shortens_a_drain(messages: Book) -> None:
    messages.with_ready(A)
    messages.waiting(B)
    messages.ledger.apply(Tick(), 60)
    messages.ledger.apply(Close(65), 61)
    assert messages.ledger.wake_at() == 65


def test_close_starts_nothing_and_ends_a_start(messages: Book) -> None:
    messages.waiting(A)
    assert isinstance(messages.ledger.apply(Close(20), 5)[-1], Stop)
    messages.ledger.apply(HasEnded(A, None), 6)
    assert messages.ledger.apply(Settled(A), 7) == []
    assert messages.ledger.is_empty


def test_a_closing_ledger_tries_a_failed_stop_once_more_and_leaves_the_rest_behind(messages: Book) -> None:
    messages.with_stopping(A, B)
    messages.ledger.apply(StopFailed(A, STUCK), 1)
    assert isinstance(messages.ledger.apply(Close(20), 5)[-1], Stop)
    assert messages.ledger.apply(StopFailed(A, STUCK), 6) == []
    assert messages.ledger.is_empty


def test_its_repr_tells_the_state(messages: Book) -> None:
    assert repr(messages.ledger) == "<Ledger empty, waiting {}, settling None>"
    messages.with_ready(A)
    messages.waiting(B)
    assert repr(messages.ledger) == "<Ledger a ready, waiting {'b': 1}, settling None>"
