"""What the scheduler is worth, in a simulation, and what one of its decisions costs.

The real supervisor and the real ledgers run under trio's virtual clock, with engines and memory that are
simulated, and with clients of these kinds:

    agent       asks for one model, thinks, asks again: closed loop
    alternator  asks for one model, then for the other, and so on: closed loop
    chat        asks now and then, for any model
    burst       asks for one model eight times at once, every few minutes

Where conversations have 30,000 tokens, those of agents and alternators grow by some hundred a turn, and are
compacted now and then. A model that was stopped has forgotten them, but for what --kept says, and reads them again,
1000 tokens a second, one after the other.

The rules are: FIFO (strictly who came first, no batches), resident first (whoever asks for what is there is
served, for ever), the same with a deadline, and ours (that, and a hold learned from the clients' pauses).
Seeds below 100 are for tuning; what is reported is measured on others.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Iterator

import trio
from attrs import evolve, frozen
from support.simulated_memory import SimulatedMemory
from trio.testing import MockClock

from benchmarks.decision_cost import report_decisions
from benchmarks.simulated_clients import MIXES, ReadingEngine, Run, Served
from engine_router.engines.base import ResidentId
from engine_router.events import EventHub, RequestEnded, ResidentReady, SwapEnded
from engine_router.residency.ledger import Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.messages import Ticket
from engine_router.residency.queue import TicketQueue
from engine_router.residency.supervisor import Supervisor

HOUR_S = 3600.0
MAX_WAIT_S = 60.0
SWAPS_S = (8.0, 25.0, 90.0)
REPORT_SEEDS = range(100, 108)
TUNING_SEEDS = range(8)
LEAST_GAIN = 1.5
FOR_EVER_S = 1e9

OURS = Rules(max_wait_s=MAX_WAIT_S, hold_s=None)
POLICIES: dict[str, Rules] = {
    "FIFO": evolve(OURS, max_wait_s=0.0, hold_s=0.0, drain_timeout_s=FOR_EVER_S),
    "resident first": evolve(OURS, max_wait_s=FOR_EVER_S, hold_s=0.0),
    "with a deadline": evolve(OURS, hold_s=0.0),
    "ours": OURS,
}


@frozen
class Outcome:
    """What one run came to."""

    hours: float
    swaps: int
    cut_off: int
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


def simulate(policy: str, mix: str, swap_s: float, seed: int, hours: float, kept: float = 0.0) -> Outcome:
    """Run one mix of clients under one policy."""

    async def main() -> Outcome:
        memory, hub = SimulatedMemory(), EventHub()
        engines = {
            name: ReadingEngine(name, memory, start_s=0.9 * swap_s, stop_s=0.1 * swap_s, kept=kept)
            for name in "abc"[: MIXES[mix].models]
        }
        swaps: list[SwapEnded] = []
        hub.listen(lambda event: swaps.append(event) if isinstance(event, SwapEnded) else None)
        measurements = Measurements()
        hub.listen(measurements.speeds.note, RequestEnded)
        hub.listen(measurements.held_context.note, RequestEnded, ResidentReady)
        supervisor = Supervisor(
            engines=engines,
            gauges={"default": memory},
            pools_of=dict.fromkeys(engines, ("default",)),
            rules=POLICIES[policy],
            settle_timeout_s=5.0,
            hub=hub,
            measurements=measurements,
            wall_clock=trio.current_time,
        )
        if policy == "FIFO":
            supervisor.domains["default"].ledger._queue.__class__ = _StrictQueue  # noqa: SLF001
        run = Run(supervisor, hub, engines, random.Random(seed), MIXES[mix])
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            with trio.move_on_after(hours * HOUR_S):
                await run.everybody()
            nursery.cancel_scope.cancel()
        left = tuple(
            trio.current_time() - t.arrived_at for t in supervisor.domains["default"].ledger.waiting()
        )
        return Outcome(hours, len(swaps), run.cut_off, tuple(run.served), left)

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


def report(seeds: range, hours: float, kept: float) -> list[str]:
    """Print the table. Returns what must hold and does not."""
    faults: list[str] = []
    for mix, clients in MIXES.items():
        for swap_s in SWAPS_S:
            print(f"\n{mix}, {clients.models} models, {swap_s:g} s a swap, {len(seeds)} seeds of {hours:g} h")
            print(f"{'':16} {'requests/h':>10} {'swaps/h':>8}   wait p50/p95/max in s, by class")
            rates: dict[str, float] = {}
            for policy in POLICIES:
                outcomes = [simulate(policy, mix, swap_s, seed, hours, kept) for seed in seeds]
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
    if starving > 600:
        texts.append(f"STARVING {starving:.0f} s")
    if cut_off := sum(outcome.cut_off for outcome in outcomes):
        texts.append(f"{cut_off} CUT OFF")
    return "  ".join(texts)


def _overdue(outcomes: list[Outcome], mix: str, swap_s: float) -> Iterator[str]:
    for outcome in outcomes:
        limit_s = longest_allowed_s(outcome, swap_s, MIXES[mix].models)
        longest_s = max([r.waited_s for r in outcome.served] + list(outcome.still_waiting_s))
        if longest_s > limit_s + 1e-6:
            yield f"{mix}, {swap_s:g} s: a ticket waited {longest_s:.1f} s, and {limit_s:.1f} s are allowed"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench schedule", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tune", action="store_true", help="use the seeds that are for tuning")
    parser.add_argument("--hours", type=float, default=2.0, help="simulated hours for each seed")
    parser.add_argument("--kept", type=float, default=0.0, help="part of a conversation that comes back")
    parser.add_argument("--decisions", action="store_true", help="only what a decision costs")
    options = parser.parse_args(arguments)
    faults = (
        []
        if options.decisions
        else report(TUNING_SEEDS if options.tune else REPORT_SEEDS, options.hours, options.kept)
    )
    faults += report_decisions()
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return int(bool(faults))
