"""What residents hold of conversations: learned from the lengths of prompts, and what the ledger makes of it."""

from __future__ import annotations

import pytest

from engine_router.engines.base import ResidentId
from engine_router.events import RequestEnded, ResidentReady
from engine_router.residency import messages
from engine_router.residency.held_context import MOST_CONVERSATIONS, HeldContext
from engine_router.residency.ledger import Capacity, Ledger, Profile, Rules
from engine_router.residency.messages import Start, Stop, Ticket
from engine_router.residency.speeds import NOTHING_TO_READ, Reading, Speeds

A, B, C = (ResidentId(name) for name in "abc")
RULES = Rules(drain_timeout_s=30, max_wait_s=60, hold_s=None)


def ended(tokens: int, cached: int | None = 0, *, at: float = 0.0, wrote: int = 0) -> RequestEnded:
    """A request of which the engine read a thousand tokens a second."""
    return RequestEnded(
        at=at,
        model="m",
        engine="a",
        resident="a",
        path="/v1/chat/completions",
        status=200,
        duration_s=60.0,
        queue_wait_s=10.0,
        first_token_s=10.0 + (tokens - (cached or 0)) / 1000,
        tokens_in=tokens,
        tokens_cached=cached,
        tokens_out=wrote,
    )


def started(at: float = 0.0) -> ResidentReady:
    return ResidentReady(at=at, pool="default", resident="a", start_s=1.0, adopted=False)


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        pytest.param([ended(30_000)], 30, id="one"),
        pytest.param([ended(30_000, wrote=500), ended(31_000, 30_500)], 31, id="one that goes on"),
        pytest.param([ended(30_000), ended(10_000)], 40, id="two"),
        pytest.param([ended(30_000), ended(10_000), ended(10_500, 10_000)], 40.5, id="the shorter goes on"),
        pytest.param([ended(40_000), ended(20_000, 4_000)], 20, id="one that was compacted"),
        pytest.param([ended(30_000), started(), ended(30_400)], 30.4, id="one that is read again"),
        pytest.param([ended(30_000), started()], 30, id="one that will be read again"),
        pytest.param([ended(30_000), ended(9_000, at=1000.0)], 9, id="one whose client has left"),
        pytest.param([ended(30_000), ended(50)], 30, id="and a question of a few words"),
    ],
)
def test_what_is_held_is_told_by_the_lengths_of_prompts(
    events: list[RequestEnded | ResidentReady], seconds: float
) -> None:
    assert _after(*events).of(A).all_s == pytest.approx(seconds, rel=0.03)


def test_what_is_at_hand_again_after_a_start_need_not_be_read() -> None:
    events = [event for _ in range(12) for event in (started(), ended(30_000, 24_000))]
    assert _after(ended(30_000), *events).of(A).all_s == pytest.approx(6, rel=0.2)


def test_conversations_that_are_counted_are_few_enough() -> None:
    held = _after(*(ended(1_000 + 500 * number) for number in range(3 * MOST_CONVERSATIONS)))
    reading = held.of(A)
    assert reading.all_s / reading.one_s == pytest.approx(MOST_CONVERSATIONS)
    assert held.of(B) == NOTHING_TO_READ


def test_nothing_is_guessed_where_no_lengths_or_no_speed_are_told() -> None:
    speeds = Speeds()
    held = HeldContext(speeds)
    held.note(ended(30_000))
    assert held.of(A) == NOTHING_TO_READ
    speeds.note(ended(30_000))
    assert held.of(A) == Reading(30, 30)


def _after(*events: RequestEnded | ResidentReady) -> HeldContext:
    speeds = Speeds()
    held = HeldContext(speeds)
    for event in events:
        held.note(event)
        speeds.note(event)
    return held


def _a_ledger(rules: Rules, **reading_s: float) -> Ledger:
    """A memory for two residents, with so many seconds of reading for each."""
    return Ledger(
        rules,
        {"default": Capacity(budget_bytes=20)},
        lambda _: Profile(need_bytes=10, start_s=20.0, stop_s=5.0),
        lambda resident: Reading(reading_s.get(resident.engine, 0.0), reading_s.get(resident.engine, 0.0)),
    )


def _serve(ledger: Ledger, resident: ResidentId, now: float, took_s: float) -> None:
    """Start a resident for a request that takes so long."""
    ticket = Ticket(resident)
    assert Start(resident, "requested") in ledger.apply(messages.Acquire(ticket), now)
    ledger.apply(messages.BecameReady(resident), now)
    ledger.apply(messages.Release(ticket), now + took_s)


@pytest.mark.parametrize(("reader", "goes"), [("a", B), ("b", A)])
def test_the_one_that_goes_is_the_one_whose_conversations_are_read_sooner(
    reader: str, goes: ResidentId
) -> None:
    ledger = _a_ledger(RULES, **{reader: 40.0})
    _serve(ledger, A, 0, 10)
    _serve(ledger, B, 0, 10)
    effects = ledger.apply(messages.Acquire(Ticket(C)), 10)
    assert effects == [Stop(goes, "c is wanted", C)]


@pytest.mark.parametrize(
    ("reading_s", "took_s", "hold_s", "priority", "overdue_after_s"),
    [
        pytest.param(0, 45, None, "normal", 60, id="no conversation"),
        pytest.param(
            40, 45, None, "normal", 70 + 10, id="a swap with 40 s of reading, and what exceeds a drain"
        ),
        pytest.param(40, 10, None, "normal", 60, id="none of which was seen in an answer"),
        pytest.param(500, 500, None, "normal", 90 + 30, id="no more than max_wait_s of it"),
        pytest.param(40, 45, 0.0, "normal", 60, id="a hold that is configured"),
        pytest.param(40, 45, None, "high", 15, id="a request of high priority"),
    ],
)
def test_others_wait_longer_where_a_swap_costs_much_reading(
    reading_s: float, took_s: float, hold_s: float | None, priority: str, overdue_after_s: float
) -> None:
    ledger = _a_ledger(Rules(drain_timeout_s=30, max_wait_s=60, hold_s=hold_s), a=reading_s)
    _serve(ledger, A, 0, took_s)
    _serve(ledger, B, 0, 1)
    for resident in (A, B):
        ledger.apply(messages.Acquire(Ticket(resident)), 1000)
    waiting = Ticket(C, priority)  # type: ignore[arg-type]
    ledger.apply(messages.Acquire(waiting), 1000)
    assert waiting.deadline - 1000 == overdue_after_s


@pytest.mark.parametrize(
    ("max_wait_s", "took_s", "overdue_after_s"),
    [
        pytest.param(60, 45, 60, id="a swap that is in time"),
        pytest.param(25, 45, 25 + 5, id="one that just is, and a use"),
        pytest.param(24, 45, 25 + 45, id="one that is not, and the longest answer"),
        pytest.param(24, 500, 25 + 24 + 30, id="no more of it than a batch may take"),
        pytest.param(24, 2, 25 + 2, id="a short answer"),
    ],
)
def test_others_wait_for_a_batch_where_a_swap_alone_takes_too_long(
    max_wait_s: float, took_s: float, overdue_after_s: float
) -> None:
    ledger = _a_ledger(Rules(drain_timeout_s=30, max_wait_s=max_wait_s, hold_s=None))
    _serve(ledger, A, 0, took_s)
    _serve(ledger, B, 0, 1)
    for resident in (A, B):
        ledger.apply(messages.Acquire(Ticket(resident)), 1000)
    waiting = Ticket(C)
    ledger.apply(messages.Acquire(waiting), 1000)
    assert waiting.deadline - 1000 == overdue_after_s


def test_whoever_is_told_to_come_again_is_told_of_the_reading() -> None:
    rules = Rules(max_queue=1, max_wait_s=60)
    refused = {}
    for reading_s in (0.0, 40.0):
        ledger = _a_ledger(rules, a=reading_s)
        ledger.apply(messages.Acquire(Ticket(A)), 0)
        [refusal] = ledger.apply(messages.Acquire(Ticket(A)), 0)
        assert isinstance(refusal, messages.Refuse)
        refused[reading_s] = refusal.error.retry_after_s
    assert refused == {0.0: 25, 40.0: 65}


def test_what_outlives_a_stop_is_not_read_again() -> None:
    ledger = Ledger(
        RULES,
        {"default": Capacity()},
        lambda resident: Profile(start_s=20.0, stop_s=5.0, keeps_context=resident == A),
        lambda _: Reading(80.0, 40.0),
    )
    assert [ledger.costs.reading(resident).all_s for resident in (A, B)] == [0.0, 80.0]
    assert [ledger.costs.first_answer_s(resident) for resident in (A, B)] == [25.0, 65.0]
