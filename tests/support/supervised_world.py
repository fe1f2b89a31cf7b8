"""A supervisor over simulated engines in one memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
import trio.testing

from engine_router.engines.base import Endpoint, ResidentId
from engine_router.errors import (
    RouterError,
)
from engine_router.events import (
    Event,
    EventHub,
    RouterNotice,
    SwapEnded,
)
from engine_router.residency.ledger import Phase, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.supervisor import Supervisor
from support.simulated_engine import EngineAction, SimulatedEngine
from support.simulated_memory import SimulatedMemory

A, B, C = ResidentId("a"), ResidentId("b"), ResidentId("c")

RULES = Rules(drain_timeout_s=30.0, max_wait_s=60.0, abandon_grace_s=2.0, failed_start_memory_s=5.0)

LONGEST_TEST_S = 100_000.0


async def refusal_of(supervisor: Supervisor, resident: ResidentId) -> RouterError:
    """Be a client of a supervisor that is refused. Return why."""
    lease = supervisor.request(resident)
    try:
        with pytest.raises(RouterError) as caught:
            await lease.granted()
    finally:
        lease.release()
    return caught.value


@attrs.define(eq=False)
class World:
    """A supervisor at work, and what can be seen of it."""

    supervisor: Supervisor
    memory: SimulatedMemory
    engines: dict[str, SimulatedEngine]
    state: Measurements
    events: list[Event]
    shared_actions: list[EngineAction]
    nursery: trio.Nursery
    served: list[str] = attrs.field(factory=list)

    def engine(self, resident: ResidentId) -> SimulatedEngine:
        return self.engines[resident.engine]

    def present(self, pool: str = "default") -> tuple[ResidentId, Phase] | None:
        present = [(r.resident, r.phase) for r in self.supervisor.domains[pool].ledger.states]
        assert len(present) <= 1
        return present[0] if present else None

    def story(self) -> list[str]:
        return [str(action) for action in self.shared_actions]

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if type(event) is kind]

    def swaps(self) -> list[SwapEnded]:
        return [event for event in self.events if isinstance(event, SwapEnded)]

    def notices(self) -> str:
        return "\n".join(event.message for event in self.events if isinstance(event, RouterNotice))

    async def use(self, resident: ResidentId, seconds: float = 1.0, name: str = "") -> Endpoint:
        """Be a client: wait for a resident, use it for a while, give it back."""
        lease = self.supervisor.request(resident)
        try:
            endpoint = await lease.granted()
            self.served.append(name or str(resident))
            await trio.sleep(seconds)
        finally:
            lease.release()
        return endpoint

    async def use_until_revoked(self, resident: ResidentId) -> RouterError:
        """Be a client that would never leave. Return why it had to."""
        lease = self.supervisor.request(resident)
        try:
            with suppress(RouterError), trio.CancelScope() as scope:
                await lease.granted()
                lease.on_revoke(scope.cancel)
                await trio.sleep_forever()
            assert lease.error is not None
            return lease.error
        finally:
            lease.release()

    async def refusal(self, resident: ResidentId) -> RouterError:
        """Be a client that is refused. Return why."""
        return await refusal_of(self.supervisor, resident)

    async def settle_down(self) -> None:
        """Let everything that happens at this very moment happen."""
        await trio.testing.wait_all_tasks_blocked()

    def assert_quiet(self) -> None:
        """Nobody waits for anything, and nobody holds anything."""
        for pool in self.supervisor.domains.values():
            assert pool.leases == {}
            assert list(pool.ledger.waiting()) == []
            assert not any(state.leases for state in pool.ledger.states)


@asynccontextmanager
async def running(
    *,
    engines: Sequence[str] = "abc",
    rules: Rules = RULES,
    memory: SimulatedMemory | None = None,
    prepare: Callable[[dict[str, SimulatedEngine]], object] = lambda _: None,
    state: Measurements | None = None,
    own_pools: bool = False,
    settle_timeout_s: float = 60.0,
    await_adoption: bool = True,
) -> AsyncIterator[World]:
    """Run a supervisor, and see in the end that nothing was done to its engines that must not be done."""
    memory = memory or SimulatedMemory()
    memories = {name: SimulatedMemory() if own_pools else memory for name in engines}
    shared_actions: list[EngineAction] = []
    simulated = {
        name: SimulatedEngine(name, memories[name], shared_actions=shared_actions) for name in engines
    }
    prepare(simulated)
    hub, state = EventHub(), state or Measurements()
    events: list[Event] = []
    hub.listen(events.append)
    supervisor = Supervisor(
        engines=simulated,
        gauges=dict(memories) if own_pools else {"default": memory},
        pools_of={name: (name if own_pools else "default",) for name in engines},
        rules=rules,
        settle_timeout_s=settle_timeout_s,
        hub=hub,
        measurements=state,
        wall_clock=trio.current_time,
    )
    with trio.fail_after(LONGEST_TEST_S):
        async with trio.open_nursery() as nursery:
            if await_adoption:
                await nursery.start(supervisor.run)
            else:
                nursery.start_soon(supervisor.run)
            yield World(supervisor, memory, simulated, state, events, shared_actions, nursery)
            nursery.cancel_scope.cancel()
    assert [fault for each in memories.values() for fault in each.faults] == []


async def together(*clients: Callable[[], Awaitable[object]]) -> None:
    """Run clients at the same time, which enter their requests in this order."""
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
