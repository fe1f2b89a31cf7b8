"""The circuit breaker of a remote, under the virtual clock: when requests are refused, for how long, and what goes on."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from engine_router.config import REMOTES, RemoteConfig
from engine_router.engines.base import ResidentId
from engine_router.engines.remote.always_on import AlwaysOnEngine
from engine_router.engines.remote.circuit import COOL_DOWN_S, LONGEST_COOL_DOWN_S, PAUSE_S
from engine_router.errors import RouterError
from engine_router.events import Event, EventHub, RouterNotice
from engine_router.memory import make_gauge
from engine_router.residency.lease import Lease
from engine_router.residency.measurements import Measurements
from engine_router.residency.rules import Capacity, ResidencySettings, Rules, Traits
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.control_client import ControlClient

CLOUD = ResidentId("cloud")


@attrs.define
class Far:
    """A host elsewhere.

    Attributes:
        is_up: it accepts connections.
        hangs: it neither accepts nor refuses any.
        dialled: when it was connected to, by the clock of trio.
    """

    is_up: bool = True
    hangs: bool = False
    dialled: list[float] = attrs.field(factory=list)

    async def dial(self, _base_url: str, _ca_file: str | None) -> Far:
        self.dialled.append(trio.current_time())
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if not self.is_up:
            raise ConnectionRefusedError(111, "refused")
        return self

    def close(self) -> None:
        """End the connection."""


@attrs.define
class World:
    supervisor: Supervisor
    far: Far
    events: list[Event]

    def ask(self) -> Lease:
        return self.supervisor.request(CLOUD)

    async def fail(self) -> None:
        """Be a request that cannot connect."""
        lease = self.ask()
        await lease.granted()
        lease.release()
        self.supervisor.doubt(CLOUD)
        await trio.testing.wait_all_tasks_blocked()

    async def until_open(self) -> None:
        await trio.sleep(PAUSE_S)
        await trio.testing.wait_all_tasks_blocked()

    async def refusal(self) -> RouterError:
        lease = self.ask()
        with pytest.raises(RouterError) as caught:
            await lease.granted()
        lease.release()
        return caught.value

    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, RouterNotice)]


@asynccontextmanager
async def world(monkeypatch: pytest.MonkeyPatch, *, most: float = math.inf) -> AsyncIterator[World]:
    far = Far()
    monkeypatch.setattr("engine_router.upstream.connect.dial", far.dial)
    monkeypatch.setattr("random.random", lambda: 0.0)
    config = RemoteConfig(base_url="https://far.example/v1", connect_timeout_s=15)
    hub, events = EventHub(), list[Event]()
    hub.listen(events.append)
    supervisor = Supervisor(
        engines={"cloud": AlwaysOnEngine("cloud", config, ControlClient())},
        gauges={REMOTES: make_gauge("none")},
        pools_of={"cloud": (REMOTES,)},
        rules=Rules(max_wait_s=60),
        settle_timeout_s=1,
        hub=hub,
        measurements=Measurements(),
        settings=ResidencySettings(
            capacities={REMOTES: Capacity(is_boundless=True)},
            traits=lambda _: Traits(is_always_there=True, max_leases=most),
            always_there=(CLOUD,),
        ),
        wall_clock=trio.current_time,
    )
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await trio.testing.wait_all_tasks_blocked()
            yield World(supervisor, far, events)
            nursery.cancel_scope.cancel()


async def test_one_failure_is_looked_into_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        assert it.far.dialled == []
        await it.fail()
        assert len(it.far.dialled) == 1
        assert await it.ask().granted()
        assert it.notices() == []


async def test_it_opens_after_three_and_says_for_how_long(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        under_way = it.ask()
        await under_way.granted()
        it.far.is_up = False
        await it.fail()
        assert await it.ask().granted()  # not yet
        await trio.sleep(PAUSE_S + 1)
        error = await it.refusal()
        assert (error.status, error.retry_after_s) == (503, pytest.approx(COOL_DOWN_S - 1))
        assert "cannot be reached" in str(error)
        assert "https://far.example/v1" in str(error)
        assert len(it.far.dialled) == 2
        assert under_way.error is None
        (notice,) = it.notices()
        assert "refused until it can be reached" in notice


async def test_the_look_afterwards_decides_for_those_who_wait(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        it.far.is_up = False
        await it.fail()
        await it.until_open()
        await it.refusal()
        it.far.hangs = True
        await trio.sleep(COOL_DOWN_S)
        waiting = [it.ask(), it.ask()]  # half-open: no request is sent to find out
        await trio.sleep(10)
        assert [lease.endpoint for lease in waiting] == [None, None]
        with pytest.raises(RouterError, match="does not accept connections within 15 s"):
            await waiting[0].granted()
        assert waiting[1].error is not None
        it.far.hangs, it.far.is_up = False, True
        await trio.sleep(2 * COOL_DOWN_S + 0.1)
        assert await it.ask().granted()
        assert it.notices()[-1] == "engine 'cloud' can be reached again"
        assert len(it.notices()) == 2


async def test_cool_downs_grow_to_a_minute(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        it.far.is_up = False
        await it.fail()
        await trio.sleep(1000)
        pauses = [later - earlier for earlier, later in zip(it.far.dialled, it.far.dialled[1:], strict=False)]
        assert pauses[0] == pytest.approx(PAUSE_S)
        assert pauses[1:6] == pytest.approx([5, 10, 20, 40, LONGEST_COOL_DOWN_S])
        assert max(pauses) == pytest.approx(LONGEST_COOL_DOWN_S)


async def test_a_cool_down_is_longer_by_chance(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        monkeypatch.setattr("random.random", lambda: 1.0)
        it.far.is_up = False
        await it.fail()
        await it.until_open()
        assert (await it.refusal()).retry_after_s == pytest.approx(1.25 * COOL_DOWN_S)


async def test_a_reset_has_it_looked_at_now(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch) as it:
        it.far.is_up = False
        await it.fail()
        await it.until_open()
        await it.refusal()
        it.far.is_up = True
        it.supervisor.reset(CLOUD)
        began = trio.current_time()
        assert await it.ask().granted()
        assert trio.current_time() == began


async def test_who_waits_for_a_place_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(monkeypatch, most=1) as it:
        held, waiting = it.ask(), it.ask()
        await held.granted()
        it.far.is_up = False
        it.supervisor.doubt(CLOUD)
        with pytest.raises(RouterError) as caught:
            await waiting.granted()
        assert caught.value.status == 503
        assert held.error is None
