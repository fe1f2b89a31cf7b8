"""The read model: what a supervisor knows, as frozen values, under a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import SimulatedMemory
from trio.testing import MockClock, wait_all_tasks_blocked

from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied
from engine_router.events import EventHub, RequestEnded
from engine_router.residency.measurements import Measurements
from engine_router.residency.read_model import ReadModel
from engine_router.residency.resident_state import Phase
from engine_router.residency.rules import Rules
from engine_router.residency.supervisor import Supervisor

A, B = ResidentId("a"), ResidentId("b")


@attrs.frozen
class World:
    """A supervisor of one exclusive pool, its read model, and its engines."""

    supervisor: Supervisor
    read_model: ReadModel
    engines: dict[str, SimulatedEngine]
    measurements: Measurements

    async def use(self, resident: ResidentId) -> None:
        lease = self.supervisor.request(resident)
        await lease.granted()
        lease.release()
        await wait_all_tasks_blocked()

    def reads(self, resident: ResidentId, *, tokens: int, per_s: float) -> None:
        """Have a request to a resident end whose prompt it read at a speed."""
        name = resident.engine
        ended = RequestEnded(
            at=trio.current_time(),
            model=name,
            engine=name,
            resident=name,
            path="/v1/chat/completions",
            status=200,
            duration_s=tokens / per_s,
            first_token_s=tokens / per_s,
            tokens_in=tokens,
        )
        self.measurements.speeds.note(ended)
        self.measurements.held_context.note(ended)


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    memory, measurements = SimulatedMemory(), Measurements()
    engines = {name: SimulatedEngine(name, memory) for name in "ab"}
    supervisor = Supervisor(
        engines=engines,
        gauges={"default": memory},
        pools_of=dict.fromkeys("ab", ("default",)),
        rules=Rules(),
        settle_timeout_s=20.0,
        hub=EventHub(),
        measurements=measurements,
    )
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield World(supervisor, ReadModel(supervisor, measurements), engines, measurements)
            nursery.cancel_scope.cancel()


async def test_what_was_read_stays_as_it_was(autojump_clock: MockClock) -> None:
    async with running() as world:
        before, absent = world.read_model.pool("default"), world.read_model.resident(A)
        await world.use(A)
        (status,) = world.read_model.present()
        assert status == world.read_model.resident(A) == world.read_model.pool("default").residents[0]
        assert (status.phase, status.is_usable, status.leases) == (Phase.READY, True, ())
        assert status.endpoint is not None
        assert (absent.phase, absent.is_usable, absent.base_url) == (None, False, None)
        assert before.residents == ()
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            status.phase = Phase.STUCK  # type: ignore[misc]


async def test_a_request_that_waits_for_a_busy_resident(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(B)
        await world.use(A)
        using, waiting = world.supervisor.request(A), world.supervisor.request(B)
        await using.granted()
        await wait_all_tasks_blocked()
        pool = world.read_model.pool("default")
        assert (pool.mode, dict(pool.waiting), pool.swaps) == ("exclusive", {B: 1}, ())
        assert pool.residents[0].leases == (using.ticket,)
        assert world.read_model.queue("default") == [waiting.ticket]
        (turn,) = world.read_model.turns("default")
        assert (turn.resident, turn.is_blocked, turn.victims) == (B, True, ())
        outlook = world.read_model.outlooks(pool)[B]
        assert (outlook.swap, outlook.present, outlook.turn) == (None, None, turn)
        assert outlook.estimate_s == world.read_model.profile(B).start_s
        world.reads(B, tokens=30_000, per_s=1000)  # and again after its start
        told_s = world.read_model.outlooks(pool)[B].estimate_s
        assert told_s == pytest.approx(outlook.estimate_s + 30)
        assert world.read_model.availability(B).wait_s >= told_s
        wait = world.read_model.wait(waiting)
        assert (wait.swap, wait.place, wait.ready) == (None, 0, (A,))
        using.release()
        waiting.release()


async def test_a_swap_under_way(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(B)
        await world.use(A)
        world.engines["b"].start_s = 10.0
        lease = world.supervisor.request(B)
        while world.read_model.resident(B).phase is not Phase.STARTING:
            await trio.sleep(0.1)
        pool = world.read_model.pool("default")
        (swap,) = pool.swaps
        assert (swap.source, swap.target, swap.phase) == ("a", B, "start")
        assert world.read_model.wait(lease).swap == swap
        outlook = world.read_model.outlooks(pool)[B]
        assert outlook.swap == swap
        assert outlook.estimate_s == pytest.approx(world.read_model.profile(B).start_s)
        lease.release()


async def test_a_failure_is_known_until_it_works_again(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        world.engines["a"].kill(A)
        await wait_all_tasks_blocked()
        failure = world.read_model.resident(A).failure
        assert failure is not None
        assert isinstance(failure.error, EngineDied)
        assert failure.count == 1
        assert list(world.read_model.pool("default").failures) == [A]
        await world.use(A)
        assert world.read_model.resident(A).failure is None


async def test_the_end_of_the_router(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        assert not world.read_model.is_over
        await world.supervisor.close(0.0)
        assert world.read_model.is_over
