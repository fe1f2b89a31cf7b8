"""A supervisor over simulated engines that share one memory, by a budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from engine_router.config import TenantConfig
from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError
from engine_router.events import Event, EventHub, RouterNotice
from engine_router.residency.ledger import Capacity, Phase, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.rules import ResidencySettings, Traits
from engine_router.residency.supervisor import Supervisor
from engine_router.residency.tenants import Ask, ask_nobody
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import GIB, SimulatedMemory
from support.supervised_world import refusal_of

A, B, C = ResidentId("a"), ResidentId("b"), ResidentId("c")
RULES = Rules(max_wait_s=60.0, abandon_grace_s=2.0)


@attrs.define(eq=False)
class World:
    """A supervisor at work, and what can be seen of it."""

    supervisor: Supervisor
    memory: SimulatedMemory
    engines: dict[str, SimulatedEngine]
    events: list[Event]
    state: Measurements
    most_held: list[int] = attrs.field(factory=lambda: [0])

    def present(self) -> dict[str, Phase]:
        return {str(r.resident): r.phase for r in self.supervisor.domains["default"].ledger.states}

    def expires_at(self, resident: ResidentId) -> float | None:
        return self.supervisor.domain(resident).ledger.expires_at(resident, trio.current_time())

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, RouterNotice)]

    async def use(self, resident: ResidentId, seconds: float = 1.0, **options: object) -> None:
        lease = self.supervisor.request(resident, **options)  # type: ignore[arg-type]
        try:
            await lease.granted()
            await trio.sleep(seconds)
        finally:
            lease.release()

    async def refusal(self, resident: ResidentId) -> RouterError:
        return await refusal_of(self.supervisor, resident)


@asynccontextmanager
async def running(
    *,
    budget_gib: int | None = 100,
    rules: Rules = RULES,
    preload: tuple[ResidentId, ...] = (),
    health_interval_s: float = 0.0,
    prepare: Callable[[dict[str, SimulatedEngine]], object] = lambda _: None,
    memory: SimulatedMemory | None = None,
    capacity: Capacity | None = None,
    tenants: Sequence[TenantConfig] = (),
    ask: Ask = ask_nobody,
    **traits: Traits,
) -> AsyncIterator[World]:
    memory = memory or SimulatedMemory(shared=True)
    engines = {name: SimulatedEngine(name, memory) for name in "abc"}
    prepare(engines)
    hub, events, state = EventHub(), list[Event](), Measurements()
    hub.listen(events.append)
    budget_bytes = None if budget_gib is None else budget_gib * GIB
    layout = ResidencySettings(
        capacities={"default": capacity or Capacity(budget_bytes=budget_bytes)},
        traits=lambda r: traits.get(r.engine) or Traits(declared_bytes=engines[r.engine].size_bytes),
        preload=preload,
        tenants={"default": tenants},
    )
    supervisor = Supervisor(
        engines=engines,
        gauges={"default": memory},
        pools_of=dict.fromkeys("abc", ("default",)),
        rules=rules,
        settle_timeout_s=20.0,
        hub=hub,
        measurements=state,
        settings=layout,
        health_interval_s=health_interval_s,
        wall_clock=trio.current_time,
    )
    supervisor.ask_tenants(ask)
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield World(supervisor, memory, engines, events, state)
            nursery.cancel_scope.cancel()
    assert memory.faults == []
