"""A supervisor over two memories, with simulated engines that lie in one of them or across both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.events import Event, EventHub
from engine_router.residency.ledger import Capacity, Phase, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.read_model import ReadModel
from engine_router.residency.rules import ResidencySettings, Traits
from engine_router.residency.supervisor import Supervisor
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import GIB, SimulatedMemory
from support.spread_memory import SpreadMemory
from support.supervised_world import refusal_of

RULES = Rules(drain_timeout_s=30.0, max_wait_s=60.0, hold_s=0.0)
ZERO, ONE, BIG, SMALL = ResidentId("zero"), ResidentId("one"), ResidentId("big"), ResidentId("small")

# What each takes of each pool, in GiB.
SHARES: Mapping[str, Mapping[str, int]] = {
    "zero": {"gpu0": 14},
    "one": {"gpu1": 14},
    "small": {"gpu1": 3},
    "big": {"gpu0": 20, "gpu1": 18},
}


BUDGET = Capacity(budget_bytes=23 * GIB)


@attrs.define(eq=False)
class World:
    """A supervisor at work, and what can be seen of it."""

    supervisor: Supervisor
    read: ReadModel
    memories: dict[str, SimulatedMemory]
    engines: dict[str, SimulatedEngine]
    state: Measurements
    events: list[Event]
    nursery: trio.Nursery
    waits: dict[str, list[float]] = attrs.field(factory=dict)

    async def use(self, resident: ResidentId, seconds: float = 1.0, priority: Priority = "normal") -> None:
        asked_at = trio.current_time()
        lease = self.supervisor.request(resident, priority=priority)
        try:
            await lease.granted()
            self.waits.setdefault(str(resident), []).append(trio.current_time() - asked_at)
            await trio.sleep(seconds)
        finally:
            lease.release()

    async def keep_using(self, resident: ResidentId, seconds: float) -> None:
        """Be two clients that take turns without a pause."""
        for _ in range(2):
            self.nursery.start_soon(self._again, resident, seconds)
            await trio.sleep(seconds / 2)

    async def _again(self, resident: ResidentId, seconds: float) -> None:
        while True:
            await self.use(resident, seconds)

    async def refusal(self, resident: ResidentId) -> RouterError:
        return await refusal_of(self.supervisor, resident)

    def present(self, pool: str) -> dict[str, Phase | None]:
        return {str(status.resident): status.phase for status in self.read.pool(pool).residents}

    def story(self, name: str) -> list[str]:
        """Return what was done with one engine."""
        return [action.what for action in self.engines[name].actions]

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def declared(name: str) -> Traits:
    needs = {pool: share * GIB for pool, share in SHARES[name].items()}
    return Traits(
        pools=tuple(needs),
        declared_bytes=sum(needs.values()),
        declared_needs=needs if len(needs) > 1 else {},
    )


@asynccontextmanager
async def running(
    *,
    capacities: Mapping[str, Capacity] | None = None,
    rules: Rules = RULES,
    traits: Callable[[str], Traits] = declared,
    preload: tuple[ResidentId, ...] = (),
    prepare: Callable[[dict[str, SimulatedEngine]], object] = lambda _: None,
) -> AsyncIterator[World]:
    """Run a supervisor, and see in the end that nothing was done to its engines that must not be done.

    Args:
        prepare: called with the engines before it runs.
    """
    memories = {name: SimulatedMemory(24 * GIB, shared=True) for name in ("gpu0", "gpu1")}
    engines = {}
    for name, shares in SHARES.items():
        parts = {memories[pool]: share * GIB for pool, share in shares.items()}
        memory = SpreadMemory(parts=parts)
        engines[name] = SimulatedEngine(name, memory, size_bytes=sum(parts.values()))
    prepare(engines)
    hub, events, state = EventHub(), list[Event](), Measurements()
    hub.listen(events.append)
    supervisor = Supervisor(
        engines=engines,
        gauges=memories,
        pools_of={name: tuple(shares) for name, shares in SHARES.items()},
        rules=rules,
        settle_timeout_s=20.0,
        hub=hub,
        measurements=state,
        settings=ResidencySettings(
            capacities=capacities or dict.fromkeys(SHARES["big"], BUDGET),
            traits=lambda resident: traits(resident.engine),
            preload=preload,
        ),
        wall_clock=trio.current_time,
    )
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            read = ReadModel(supervisor, state)
            yield World(supervisor, read, memories, engines, state, events, nursery)
            nursery.cancel_scope.cancel()
    assert [fault for memory in memories.values() for fault in memory.faults] == []


EXCLUSIVE = {"gpu0": Capacity(), "gpu1": Capacity()}
EITHER = pytest.mark.parametrize("capacities", [None, EXCLUSIVE], ids=["budget", "exclusive"])
"""Both ways in which the memories are shared."""
