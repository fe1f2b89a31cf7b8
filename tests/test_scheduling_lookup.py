"""Whose turn it is, looked up: as decided by a look at all that are waited for, and by few looks at profiles."""

from __future__ import annotations

import functools
import math
import random

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from support.call_count import calls_in
from test_scheduling import A, budget

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied, EngineStartFailed, EngineStopFailed
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, Rules
from engine_router.residency.messages import Effect, Ticket
from engine_router.residency.scheduling import Scheduler, Turn

FAILED = EngineStartFailed("a", "failed")
DIED = EngineDied("a", "died")
UNSTOPPABLE = EngineStopFailed("a", "still there")


class LooksAtAll(Scheduler):
    def turns(self, now: float) -> list[Turn]:
        return self.all_turns(now)


@define(eq=False)
class Side:
    """One of two ledgers to which the same happens, each with its own tickets."""

    ledger: Ledger
    tickets: list[Ticket] = field(factory=list)

    def apply(self, event: messages.LedgerEvent, now: float) -> list[str]:
        return [self.told(effect) for effect in self.ledger.apply(event, now)]

    def told(self, effect: Effect) -> str:
        if isinstance(effect, (messages.Grant, messages.Refuse, messages.Revoke)):
            return f"{type(effect).__name__} {self.tickets.index(effect.ticket)}"
        return repr(effect)

    def seen(self) -> tuple[object, ...]:
        states = [
            (s.resident, s.phase, s.held_until, s.expires_at, s.drain_deadline) for s in self.ledger.states
        ]
        waiting = [self.tickets.index(ticket) for ticket in self.ledger.waiting()]
        return states, waiting, self.ledger.wake_at()


@define(eq=False)
class Pair:
    """Two ledgers, of which one looks at all that are waited for; and chance, which drives them."""

    dice: random.Random
    profiles: dict[ResidentId, Profile]
    sides: tuple[Side, Side]
    now: float = 0.0
    living: list[int] = field(factory=list)

    def step(self) -> None:
        self.now += self.dice.choice((0, 0, 0, 0, 0.5, 2))
        dice, (one, _) = self.dice, self.sides
        states, settling = list(one.ledger.states), list(one.ledger.settling)
        match dice.choice(("acquire", "acquire", "acquire", "release", "engine", "engine", "engine", "odd")):
            case "acquire":
                self.acquire(
                    dice.choice(list(self.profiles)), dice.choice(("high", "normal", "normal", "low"))
                )
            case "release" if self.living:
                number = self.living.pop(dice.randrange(len(self.living)))
                self.compare(*(messages.Release(side.tickets[number]) for side in self.sides))
            case "engine" if states or settling:
                resident = dice.choice([*(s.resident for s in states), *settling])
                self.both(self.engine_event(resident))
            case "odd":
                waiting = list(one.ledger.waiting_counts())
                self.both(self.odd_event(dice.choice([*waiting, *waiting, *self.profiles])))
            case _:
                self.both(messages.Tick())

    def acquire(self, resident: ResidentId, priority: messages.Priority) -> None:
        self.living.append(len(self.sides[0].tickets))
        for side in self.sides:
            side.tickets.append(Ticket(resident, priority))
        self.compare(*(messages.Acquire(side.tickets[-1]) for side in self.sides))

    def engine_event(self, resident: ResidentId) -> messages.LedgerEvent:
        state, dice = self.sides[0].ledger.state(resident), self.dice
        if state is None:
            return messages.Settled(resident)
        match state.phase:
            case Phase.STARTING:
                return (
                    messages.HasEnded(resident, FAILED)
                    if dice.random() < 0.05
                    else messages.BecameReady(resident)
                )
            case Phase.STOPPING if dice.random() < 0.2:
                return messages.StopFailed(resident, UNSTOPPABLE)
            case Phase.STOPPING:
                return messages.HasEnded(resident, None)
            case _ if dice.random() < 0.03:
                return messages.HasEnded(resident, DIED)
            case _:
                return messages.Tick()

    def odd_event(self, resident: ResidentId) -> messages.LedgerEvent:
        dice, ledger = self.dice, self.sides[0].ledger
        need_bytes, groups = dice.randrange(1, 12), dice.choice(((), (), ("x",), ("y", "x")))
        kind = dice.choice(("pin", "weigh", "weigh", "weigh", "change", "other"))
        if kind == "pin":
            return messages.Pin(resident, dice.random() < 0.3)
        if kind == "weigh":
            known = self.profiles[resident]
            self.profiles[resident] = evolve(known, need_bytes=need_bytes, is_estimated=False)
            pool = dice.choice(known.pools or (None,))
            return messages.Weighed(resident, need_bytes, pool)
        if kind == "change":
            self.profiles[resident] = evolve(self.profiles[resident], groups=groups)
            capacities = {
                name: Capacity(
                    budget_bytes=known.budget_bytes and dice.randrange(12, 40),
                    max_resident=dice.choice((0, 0, 3)),
                )
                for name, known in ledger.budget.capacities.items()
            }
            return messages.Reconfigured(rules(dice), capacities)
        return dice.choice(
            (
                messages.Unload(resident),
                messages.Reset(resident),
                messages.Down(resident, DIED),
                messages.Short(resident, need_bytes),
                messages.Adopt(resident),
            )
        )

    def both(self, event: messages.LedgerEvent) -> None:
        self.compare(event, event)

    def compare(self, *events: messages.LedgerEvent) -> None:
        one, other = (side.apply(event, self.now) for side, event in zip(self.sides, events, strict=True))
        assert one == other
        assert self.sides[0].seen() == self.sides[1].seen()


def rules(dice: random.Random) -> Rules:
    return Rules(
        drain_timeout_s=3,
        max_wait_s=dice.choice((5, 60, 1000)),
        max_queue=dice.choice((12, 1000, 1000)),
        hold_s=dice.choice((0, 2, None)),
    )


def a_pair(dice: random.Random, reference: type[Scheduler] = LooksAtAll) -> Pair:
    groups = dice.choice(
        (((),), ((), (), ("x",), ("y",)), (("x",), ("y",)), (("x", "y"), ("y", "z"), ("z",)))
    )
    names = dice.choice((("one",), ("one", "two"), ("one", "two", "three")))
    profiles = {
        ResidentId(f"m{number}"): Profile(
            need_bytes=dice.choice((None, 1, 2, 2, 3, 5, 8, 13, 21)),
            is_estimated=dice.random() < 0.2,
            least_bytes=1,
            groups=dice.choice(groups),
            start_s=dice.choice((None, 1.0, 9.0)),
            pinned=dice.random() < 0.05,
            pools=tuple(dice.sample(names, dice.choice((1, 1, 2, 3)[: len(names) + 1]))),
        )
        for number in range(dice.randrange(2, 30))
    }
    capacities = {
        name: Capacity(budget_bytes=dice.choice((None, 12, 24, 40)), max_resident=dice.choice((0, 0, 2, 4)))
        for name in names
    }
    first_rules = rules(dice)
    sides = tuple(Side(Ledger(first_rules, capacities, profiles.__getitem__)) for _ in range(2))
    sides[1].ledger._planner.scheduler = reference(
        first_rules, sides[1].ledger._queue, sides[1].ledger.budget, sides[1].ledger._pool.costs
    )
    return Pair(dice, profiles, (sides[0], sides[1]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whoever_is_looked_up_is_whom_a_look_at_all_finds(seed: int) -> None:
    pair = a_pair(random.Random(seed))
    for _ in range(120):
        pair.step()


def test_who_could_not_be_stopped_is_in_its_own_way_only() -> None:
    pool = budget(100, a=60, b=60)
    pool.idle(A)
    pool.tell(messages.Unload(A))
    pool.tell(messages.StopFailed(A, UNSTOPPABLE))
    _, effects = pool.ask(A)
    assert [effect.resident for effect in effects if isinstance(effect, messages.Stop)] == [A]


@pytest.mark.parametrize("budget_bytes", [None, 45_000])
@pytest.mark.parametrize("max_wait_s", [math.inf, 60])
def test_a_plan_looks_at_few_of_those_who_wait(budget_bytes: int | None, max_wait_s: float) -> None:
    looks: list[ResidentId] = []

    def profile(resident: ResidentId) -> Profile:
        looks.append(resident)
        return Profile(need_bytes=10_000 + int(resident.model or 0))

    residents = [ResidentId("engine", str(number)) for number in range(200)]
    ledger = Ledger(
        Rules(max_queue=5000, max_wait_s=max_wait_s),
        {"default": Capacity(budget_bytes=budget_bytes)},
        profile,
    )
    for resident in residents[:4] if budget_bytes else residents[:1]:
        ledger.apply(messages.Acquire(Ticket(resident)), 0)
        ledger.apply(messages.BecameReady(resident), 0)
    tickets = [Ticket(residents[number % 196 + 4]) for number in range(1000)]
    for number, ticket in enumerate(tickets):
        ledger.apply(messages.Acquire(ticket), 1 + number / 1000)
    for event in (messages.Tick(), messages.Release(tickets[-1]), messages.Release(tickets[0])):
        looks.clear()
        ledger.apply(event, 100)
        assert len(looks) < 100  # a plan that changes something is looked over again


@pytest.mark.parametrize(
    ("budget_bytes", "most"),
    [
        (None, {"enqueue": 45, "plan": 125, "withdraw": 25}),
        (45, {"enqueue": 49, "plan": 220, "withdraw": 25}),
    ],
    ids=["exclusive", "budget"],
)
def test_a_decision_makes_few_calls(budget_bytes: int | None, most: dict[str, int]) -> None:
    """With one memory, it makes no more than those of a ledger that knew only one."""
    residents = [ResidentId("engine", str(number)) for number in range(200)]
    profile = Profile(need_bytes=10)
    ledger = Ledger(Rules(), {"default": Capacity(budget_bytes=budget_bytes)}, lambda _: profile)
    for resident in residents[:4] if budget_bytes else residents[:1]:
        ledger.apply(messages.Acquire(Ticket(resident)), 0)
        ledger.apply(messages.BecameReady(resident), 0)
    for number in range(400):
        ledger.apply(messages.Acquire(Ticket(residents[number % 196 + 4])), 1 + number / 1000)
    late = Ticket(residents[10])
    events = {"enqueue": messages.Acquire(late), "plan": messages.Tick(), "withdraw": messages.Release(late)}
    made = {name: calls_in(functools.partial(ledger.apply, event, 10)) for name, event in events.items()}
    assert all(made[name] <= most[name] for name in events), made
