"""While engines are asked what they have running, the router serves already: it decides nothing, and says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from support.scripted import Answer, ScriptedOllama, as_json
from support.scripted.server import Call, Handler
from support.simulated_engine import SimulatedEngine
from support.supervised_world import A, B, World, running
from trio.testing import MockClock

from engine_router import Router, open_router
from engine_router.cli.status import _swaps
from engine_router.config import Config, parse_config
from engine_router.errors import RouterClosing
from engine_router.events import RouterNotice
from engine_router.proxy.wait_status import progress_of
from engine_router.reload import ConfigSource
from engine_router.residency.read_model import ReadModel
from engine_router.web.status import status

SLOW_S = 3.0
OTHER = 'state_file = "/dev/null/state"\npools.default.gauge = "none"\nengines.p = { type = "process", argv = ["x", "{port}"], models = ["m"] }'


def b_runs(engines: dict[str, SimulatedEngine]) -> None:
    engines["b"].run_already()
    engines["b"].find_s = SLOW_S


@asynccontextmanager
async def adopting() -> AsyncIterator[World]:
    """A supervisor that does not know yet that `b` runs."""
    async with running(prepare=b_runs, await_adoption=False) as world:
        await world.settle_down()
        assert world.supervisor.is_adopting
        yield world


async def test_a_request_waits_for_what_runs_and_gets_it(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        await world.use(B, 0.0)
        assert trio.current_time() == SLOW_S
        assert world.story() == ["adopt b", "ready b"]


async def test_nothing_is_started_beside_what_is_not_known_yet(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        await world.use(A)
        assert world.story() == ["adopt b", "ready b", "stop b", "end b", "start a", "ready a"]


async def test_an_unload_waits_too(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        await world.supervisor.until_unloaded(B)
        assert world.story() == ["adopt b", "ready b", "stop b", "end b"]


async def test_who_leaves_meanwhile_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        with trio.move_on_after(SLOW_S / 2):
            await world.use(A)
        await world.supervisor.until_adopted()
        await trio.sleep(100)
        world.assert_quiet()
        assert world.story() == ["adopt b", "ready b"]


async def test_a_router_that_is_closed_meanwhile_starts_nothing(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        waiting = world.supervisor.request(A)
        await world.supervisor.close(5)
        assert trio.current_time() < SLOW_S
        assert world.story() == []
        with pytest.raises(RouterClosing):
            await waiting.granted()
        assert world.engine(B).is_running(B)


async def test_a_waiting_client_is_told(autojump_clock: MockClock) -> None:
    async with adopting() as world:
        read_model = ReadModel(world.supervisor, world.state)
        lease = world.supervisor.request(A)
        await trio.sleep(2)
        assert progress_of(read_model, lease) == "asking the engines what they have in memory (2 s)"
        await trio.sleep(2)
        assert "asking" not in progress_of(read_model, lease)
        lease.release()


# The router.


def config_of(daemon: ScriptedOllama) -> Config:
    engine = f'[engines.e]\ntype = "ollama"\nbase_url = "{daemon.base_url}"\nmodels = ["m"]'
    return parse_config(f'state_file = "/dev/null/state"\npools.default.gauge = "none"\n{engine}')


class SilentOllama(ScriptedOllama):
    """A daemon that does not say what it has in memory until it is let go on."""

    def __init__(self, goes_on: trio.Event) -> None:
        super().__init__("m")
        self._goes_on = goes_on

    def routes(self) -> Mapping[str, Handler]:
        return {**super().routes(), "GET /api/ps": self.late}

    async def late(self, _call: Call) -> Answer:
        await self._goes_on.wait()
        return as_json({"models": []})


@asynccontextmanager
async def beside_a_daemon(goes_on: trio.Event) -> AsyncIterator[Router]:
    """A router that waits for what its daemon has in memory."""
    daemon = SilentOllama(goes_on)
    with trio.fail_after(200):
        async with daemon.running():
            source = ConfigSource("engines.toml", lambda: parse_config(OTHER))
            async with open_router(config_of(daemon), source=source, await_adoption=False) as router:
                yield router


async def test_the_status_says_that_it_is_not_known_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    goes_on = trio.Event()
    async with beside_a_daemon(goes_on) as router:
        shown = status(router)
        assert shown["adopting"] is True
        assert shown["engines"]["e"]["state"] == "unknown"
        _swaps(shown)
        assert "asking the engines what they have in memory" in capsys.readouterr().out
        goes_on.set()
        await router.supervisor.until_adopted()
        shown = status(router)
        assert shown["adopting"] is False
        assert shown["engines"]["e"]["state"] == "off"


async def test_a_router_that_ends_does_not_wait_for_a_silent_engine() -> None:
    async with beside_a_daemon(trio.Event()) as router:
        assert router.supervisor.is_adopting
    said = [event.message for event in router.hub.recent if isinstance(event, RouterNotice)]
    assert not any("did not say" in message for message in said)


async def test_another_configuration_waits_until_it_is_known_what_the_one_before_has() -> None:
    goes_on = trio.Event()
    async with beside_a_daemon(goes_on) as router, trio.open_nursery() as nursery:
        nursery.start_soon(router.reload)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [*router.config.engines] == ["e"]
        goes_on.set()
    assert [*router.config.engines] == ["p"]


async def test_a_library_router_has_adopted_when_its_block_begins() -> None:
    daemon = ScriptedOllama("m")
    with trio.fail_after(200):
        async with daemon.running(), open_router(config_of(daemon)) as router:
            assert not router.supervisor.is_adopting
