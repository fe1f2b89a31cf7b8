"""What the scheduler is worth, in a simulation, and what one of its decisions costs.

The real supervisor and the real ledgers run under trio's virtual clock, with engines and memory that are
simulated, and with clients of these kinds:

    agent       asks for one model, thinks, asks again: closed loop
    alternator  asks for one model, then for the other, and so on: closed loop
    chat        asks now and then, for any model
    burst       asks for one model eight times at once, every few minutes

by these rules: FIFO (strictly who came first, no batches), resident first (whoever asks for what is there is
served, for ever), the same with a deadline, and ours (that, and a hold learned from the clients' pauses).
Seeds below 100 are for tuning; what is reported is measured on others.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import trio
from attrs import define, evolve, field, frozen
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import SimulatedMemory
from trio.testing import MockClock

from engine_router.engines.base import ResidentId
from engine_router.events import EventHub, SwapEnded
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.messages import Ticket
from engine_router.residency.queue import TicketQueue
from engine_router.residency.supervisor import Supervisor

HOUR_S = 3600.0
MAX_WAIT_S = 60.0
SWAPS_S = (8.0, 25.0, 90.0)
REPORT_SEEDS = range(100, 108)
TUNING_SEEDS = range(8)
MOST_A_DECISION_US = 100.0
LEAST_GAIN = 1.5
FOR_EVER_S = 1e9

OURS = Rules(max_wait_s=MAX_WAIT_S, hold_s=None)
POLICIES: dict[str, Rules] = {
    "FIFO": evolve(OURS, max_wait_s=0.0, hold_s=0.0),
    "resident first": evolve(OURS, max_wait_s=FOR_EVER_S, hold_s=0.0),
    "with a deadline": evolve(OURS, hold_s=0.0),
    "ours": OURS,
}


@define
class Served:
    """One request that was served: of which class, how long it waited, how long it took (seconds)."""

    kind: str
    waited_s: float
    served_s: float


@define(eq=False)
class Run:
    """One simulated day in the life of a pool, and what was seen."""

    supervisor: Supervisor
    dice: random.Random
    models: tuple[ResidentId, ...]
    served: list[Served] = field(factory=list)

    async def ask(self, kind: str, model: ResidentId) -> None:
        lease = self.supervisor.request(model)
        try:
            await lease.granted()
            began = trio.current_time()
            await trio.sleep(self.dice.uniform(2.0, 10.0))
            self.served.append(Served(kind, lease.queue_wait_s, trio.current_time() - began))
        finally:
            lease.release()

    async def agent(self, model: ResidentId) -> None:
        while True:
            await self.ask("agent", model)
            await trio.sleep(self.dice.lognormvariate(1.0, 0.5))  # 2.7 s, most below 7 s

    async def alternator(self) -> None:
        for model in cycle(self.models[:2]):
            await self.ask("alternator", model)
            await trio.sleep(self.dice.uniform(1.0, 3.0))

    async def chat(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(self.dice.expovariate(1 / 120.0))
            nursery.start_soon(self.ask, "chat", self.dice.choice(self.models))

    async def burst(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(self.dice.uniform(200.0, 400.0))
            model = self.dice.choice(self.models)
            for _ in range(8):
                nursery.start_soon(self.ask, "burst", model)

    async def everybody(self, mix: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.agent, self.models[0])
            nursery.start_soon(self.agent, self.models[1])
            nursery.start_soon(self.alternator)
            nursery.start_soon(self.chat, nursery)
            if mix == "with bursts":
                nursery.start_soon(self.burst, nursery)


MIXES = {"closed loop": 2, "with bursts": 3}
"""The mixes of clients, and among how many models."""


@frozen
class Outcome:
    """What one run came to."""

    hours: float
    swaps: int
    served: tuple[Served, ...]
    still_waiting_s: tuple[float, ...]

    @property
    def requests_per_hour(self) -> float:
        return len(self.served) / self.hours


class _StrictQueue(TicketQueue):
    """Hands out only who came before everybody who wants something else."""

    def take(self, resident: ResidentId) -> list[Ticket]:
        others = (ticket.arrived_at for ticket in self if ticket.resident != resident)
        first_other = min(others, default=math.inf)
        mine = [t for t in self if t.resident == resident and t.arrived_at <= first_other]
        for ticket in mine:
            self.remove(ticket)
        return mine


def simulate(policy: str, mix: str, swap_s: float, seed: int, hours: float) -> Outcome:
    """Run one mix of clients under one policy."""

    async def main() -> Outcome:
        memory, hub = SimulatedMemory(), EventHub()
        models = tuple(ResidentId(name) for name in "abc"[: MIXES[mix]])
        engines = {
            model.engine: SimulatedEngine(model.engine, memory, start_s=0.9 * swap_s, stop_s=0.1 * swap_s)
            for model in models
        }
        swaps: list[SwapEnded] = []
        hub.listen(lambda event: swaps.append(event) if isinstance(event, SwapEnded) else None)
        supervisor = Supervisor(
            engines=engines,
            gauges={"default": memory},
            pools_of=dict.fromkeys(engines, ("default",)),
            rules=POLICIES[policy],
            settle_timeout_s=5.0,
            hub=hub,
            measurements=Measurements(),
            wall_clock=trio.current_time,
        )
        if policy == "FIFO":
            supervisor.domains["default"].ledger._queue.__class__ = _StrictQueue  # noqa: SLF001
        run = Run(supervisor, random.Random(seed), models)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            with trio.move_on_after(hours * HOUR_S):
                await run.everybody(mix)
            nursery.cancel_scope.cancel()
        left = tuple(
            trio.current_time() - t.arrived_at for t in supervisor.domains["default"].ledger.waiting()
        )
        return Outcome(hours, len(swaps), tuple(run.served), left)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def longest_allowed_s(outcome: Outcome, swap_s: float, models: int) -> float:
    """Return what nobody may wait longer than: the deadline, then one batch and one swap.

    A swap that is under way, its drain included, is not broken off for who comes meanwhile: where it takes
    longer than the deadline, it is what the deadline is. With more than two models, each of the others may be
    overdue before it, and has a batch and a swap of its own.
    """
    round_s = max(request.served_s for request in outcome.served) + swap_s
    return max(MAX_WAIT_S, round_s) + (models - 1) * round_s


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan


def report(seeds: range, hours: float) -> list[str]:
    """Print the table. Returns what must hold and does not."""
    faults: list[str] = []
    for mix, models in MIXES.items():
        for swap_s in SWAPS_S:
            print(f"\n{mix}, {models} models, {swap_s:g} s a swap, {len(seeds)} seeds of {hours:g} h")
            print(f"{'':16} {'requests/h':>10} {'swaps/h':>8}   wait p50/p95/max in s, by class")
            rates: dict[str, float] = {}
            for policy in POLICIES:
                outcomes = [simulate(policy, mix, swap_s, seed, hours) for seed in seeds]
                rates[policy] = statistics.mean(o.requests_per_hour for o in outcomes)
                swaps = statistics.mean(o.swaps / o.hours for o in outcomes)
                print(f"{policy:16} {rates[policy]:10.0f} {swaps:8.0f}   {_waits(outcomes)}")
                if policy == "ours":
                    faults += _overdue(outcomes, mix, swap_s)
            gain = rates["ours"] / rates["FIFO"]
            print(f"ours is {gain:.2f} times FIFO")
            if mix == "closed loop" and swap_s == 25.0 and gain < LEAST_GAIN:
                faults.append(f"{mix}, {swap_s:g} s: ours is only {gain:.2f} times FIFO")
    return faults


def _waits(outcomes: list[Outcome]) -> str:
    kinds = sorted({request.kind for outcome in outcomes for request in outcome.served})
    texts = []
    for kind in kinds:
        waits = [r.waited_s for outcome in outcomes for r in outcome.served if r.kind == kind]
        texts.append(f"{kind} {quantile(waits, 0.5):.0f}/{quantile(waits, 0.95):.0f}/{max(waits):.0f}")
    starving = max((left for outcome in outcomes for left in outcome.still_waiting_s), default=0.0)
    return "  ".join(texts) + (f"  STARVING {starving:.0f} s" if starving > 600 else "")


def _overdue(outcomes: list[Outcome], mix: str, swap_s: float) -> Iterator[str]:
    for outcome in outcomes:
        limit_s = longest_allowed_s(outcome, swap_s, MIXES[mix])
        longest_s = max([r.waited_s for r in outcome.served] + list(outcome.still_waiting_s))
        if longest_s > limit_s + 1e-6:
            yield f"{mix}, {swap_s:g} s: a ticket waited {longest_s:.1f} s, and {limit_s:.1f} s are allowed"


# What a decision costs.


def decision_us(tickets: int, models: int, *, budget: bool) -> dict[str, float]:
    """Measure decisions of one ledger in which so many tickets wait, in microseconds each."""
    residents = [ResidentId("engine", str(number)) for number in range(models)]
    profile = Profile(need_bytes=10, start_s=10.0, stop_s=1.0)
    capacity = Capacity(budget_bytes=45 if budget else None)
    rules = Rules(max_queue=10 * tickets, max_wait_s=FOR_EVER_S)
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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench schedule", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tune", action="store_true", help="use the seeds that are for tuning")
    parser.add_argument("--hours", type=float, default=2.0, help="simulated hours for each seed")
    parser.add_argument("--decisions", action="store_true", help="only what a decision costs")
    options = parser.parse_args(arguments)
    faults = (
        [] if options.decisions else report(TUNING_SEEDS if options.tune else REPORT_SEEDS, options.hours)
    )
    faults += report_decisions()
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return int(bool(faults))
