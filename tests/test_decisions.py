"""Decisions in words: who starts, who goes for whom, and why."""

from __future__ import annotations

import attrs
from test_scheduling import GB, RULES, A, B, Book, C, D, a_book

from engine_router.residency import messages
from engine_router.residency.decisions import explained
from engine_router.residency.ledger import Capacity, Profile, Rules
from engine_router.residency.messages import Effect

GIB = 2**30
NEEDS = {"a": 10, "b": 12, "c": 10, "d": 3}


def said(pool: Book, effects: list[Effect]) -> list[str]:
    return [text for _, text in explained(effects, pool.ledger.budget, pool.now)]


def a_budget(total: int, rules: Rules = RULES, **profiles: Profile) -> Book:
    known = {name: Profile(need_bytes=need * GIB) for name, need in NEEDS.items()}
    return a_book(rules=rules, capacity=Capacity(budget_bytes=total * GIB), **{**known, **profiles})


def test_what_starts_says_what_it_needs_and_what_is_free() -> None:
    pool = a_budget(32)
    assert said(pool, pool.ask(A)[1]) == ["a starts: requested; 10.0 GiB needed, 32.0 GiB free"]
    assert said(pool, pool.ask(B)[1]) == ["b starts: requested; 12.0 GiB needed, 22.0 GiB free"]


def test_what_goes_says_for_whom_and_since_when_it_is_idle() -> None:
    pool = a_budget(20, attrs.evolve(RULES, hold_s=5.0))
    pool.idle(A)
    pool.ask(B, 3)
    assert said(pool, pool.tell(messages.Tick(), 12)) == [
        "b is wanted: a stops, idle 12 s, held no longer; 12.0 GiB needed, 10.0 GiB free"
    ]
    assert said(pool, pool.gone(A)) == ["b starts: requested; 12.0 GiB needed, 20.0 GiB free"]


def test_what_stays_says_why() -> None:
    slow = Profile(need_bytes=10 * GIB, start_s=95)
    pool = a_budget(
        30, a=Profile(need_bytes=10 * GIB, start_s=9), c=slow, d=Profile(need_bytes=3 * GIB, pinned=True)
    )
    for resident in (A, C, D):
        pool.idle(resident)
    assert said(pool, pool.ask(B, 60)[1]) == [
        "b is wanted: a stops, idle 60 s; c stays, 95 s to load again; d stays, pinned; 12.0 GiB needed, 7.0 GiB free"
    ]


def test_what_is_in_use_closes_and_is_cut_off_at_the_deadline() -> None:
    pool = a_book(b=Profile(need_bytes=2 * GIB, is_estimated=True))
    pool.serve(A)
    pool.ask(B)
    assert said(pool, pool.tell(messages.Tick(), 60)) == [
        "b has waited 60 s: a closes, 1 request may finish within 30 s; about 2.0 GiB needed"
    ]
    assert said(pool, pool.tell(messages.Tick(), 90)) == [
        "b has waited 60 s: a stops, 1 request cut off; about 2.0 GiB needed"
    ]


def test_what_goes_for_nobody_says_why() -> None:
    pool = a_book(a=Profile(idle_timeout_s=300))
    pool.idle(A)
    assert said(pool, pool.tell(messages.Tick(), 300)) == ["idle for 300 s: a stops, idle 5 min"]
    pool.gone(A)
    pool.idle(A)
    pool.now += 7
    assert said(pool, pool.tell(messages.Unload(A))) == ["unload asked for: a stops, idle 7 s"]


def test_a_drain_that_nobody_needs_any_more_is_taken_back() -> None:
    pool = a_book()
    pool.serve(A)
    ticket, _ = pool.ask(B)
    pool.tell(messages.Tick(), 60)
    assert said(pool, pool.tell(messages.Release(ticket))) == ["a stays: its room is not needed any more"]


def test_many_that_stay_are_counted() -> None:
    others = {f"m{number}": Profile(need_bytes=1 * GB, pinned=True) for number in range(9)}
    pool = a_book(
        capacity=Capacity(budget_bytes=20 * GB),
        a=Profile(need_bytes=10 * GB),
        b=Profile(need_bytes=10 * GB),
        **others,
    )
    for name in others:
        pool.idle(messages.ResidentId(name))
    pool.idle(A)
    (text,) = said(pool, pool.ask(B, 5)[1])
    assert text.count(" stays, pinned") == 3
    assert "6 more stay" in text


def test_leases_given_and_taken_are_no_decision() -> None:
    pool = a_book()
    pool.serve(A)
    ticket, effects = pool.ask(A)
    assert said(pool, effects) == []
    assert said(pool, pool.tell(messages.Release(ticket))) == []
