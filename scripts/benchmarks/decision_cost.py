"""What one decision of a ledger costs, with many tickets and many models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from engine_router.engines.base import ResidentId
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, Rules
from engine_router.residency.messages import Ticket

MOST_A_DECISION_US: Final = 100.0
_FOR_EVER_S: Final = 1e9


def decision_us(tickets: int, models: int, *, budget: bool) -> dict[str, float]:
    """Measure decisions of one ledger in which so many tickets wait, in microseconds each."""
    residents = [ResidentId("engine", str(number)) for number in range(models)]
    profile = Profile(need_bytes=10, start_s=10.0, stop_s=1.0)
    capacity = Capacity(budget_bytes=45 if budget else None)
    rules = Rules(max_queue=10 * tickets, max_wait_s=_FOR_EVER_S)
    ledger = Ledger(rules, {"default": capacity}, lambda _: profile)
    for resident in residents[:4] if budget else residents[:1]:
        ledger.apply(messages.Acquire(Ticket(resident)), 0.0)
        ledger.apply(messages.BecameReady(resident), 0.0)
    ready = [r.resident for r in ledger.states if r.phase is Phase.READY]
    absent = [resident for resident in residents if resident not in ready]
    now = 0.0
    for number in range(tickets):
        now += 0.001
        ledger.apply(messages.Acquire(Ticket(absent[number % len(absent)])), now)

    def each(do: Callable[[int], object], count: int = 2000) -> float:
        began = time.perf_counter()
        for number in range(count):
            do(number)
        return (time.perf_counter() - began) / count * 1e6

    held, queued = (
        [Ticket(ready[n % len(ready)]) for n in range(2000)],
        [Ticket(absent[n % len(absent)]) for n in range(2000)],
    )
    return {
        "grant": each(lambda n: ledger.apply(messages.Acquire(held[n]), now)),
        "release": each(lambda n: ledger.apply(messages.Release(held[n]), now)),
        "enqueue": each(lambda n: ledger.apply(messages.Acquire(queued[n]), now)),
        "withdraw": each(lambda n: ledger.apply(messages.Release(queued[n]), now)),
        "plan": each(lambda _: ledger.apply(messages.Tick(), now)),
    }


def report_decisions() -> list[str]:
    """Print what decisions cost. Returns those that cost too much."""
    faults: list[str] = []
    print("\nOne decision, in microseconds, with 200 models")
    for budget in (False, True):
        print(f"{'budget' if budget else 'exclusive':10} {'tickets':>8}", end="")
        for count in (50, 500, 5000, 50_000):
            costs = decision_us(count, 200, budget=budget)
            if count == 50:
                print("".join(f"{name:>10}" for name in costs))
            print(f"{'':10} {count:8}" + "".join(f"{cost:10.1f}" for cost in costs.values()))
            faults += [
                f"{name} with {count} tickets costs {cost:.0f} us"
                for name, cost in costs.items()
                if count <= 5000 and cost >= MOST_A_DECISION_US
            ]
    return faults
