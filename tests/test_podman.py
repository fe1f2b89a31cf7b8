"""Containers of a real Podman: one of the tests' own, with an empty image in which this machine's Python runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import trio
from support.podman import NoPodman, Podman, as_toml, small_engine
from support.scripted import supervised, until

from engine_router import open_router
from engine_router.config import ContainerConfig, parse_config
from engine_router.engines.container.container_engine import ContainerEngine
from engine_router.engines.container.ownership import OWNER
from engine_router.engines.process.process_tree import Guardian
from engine_router.errors import EngineStartFailed
from engine_router.upstream.control_client import control_client

LIMIT_S = 200.0
HEAD = '[pools.default]\ngauge = "none"\n'


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with TemporaryDirectory(prefix="er-", ignore_cleanup_errors=True) as folder:
        found = Podman(Path(folder))
        try:
            found.prepare()
            found.start_service()
            yield found
        except NoPodman as error:
            pytest.skip(str(error))
        finally:
            found.close()


@asynccontextmanager
async def an_engine(podman: Podman, *words: str, **settings: Any) -> AsyncIterator[ContainerEngine]:
    """Make an engine; whatever its test does, no container is left when it is over."""
    async with control_client() as client, trio.open_nursery() as nursery:
        guardian = Guardian()
        await nursery.start(guardian.run)
        with trio.fail_after(LIMIT_S):
            config = ContainerConfig(**small_engine(podman.socket, *words, **settings))
            yield ContainerEngine("small", config, client, guardian=guardian)
            await until_none_left(podman)
        nursery.cancel_scope.cancel()


async def names(podman: Podman) -> list[str]:
    return await trio.to_thread.run_sync(podman.containers)


async def until_none_left(podman: Podman) -> None:
    while await names(podman):
        await trio.sleep(0.1)


async def test_a_container_serves_and_goes(podman: Podman) -> None:
    async with an_engine(podman, "say=hello", "stop=0") as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        (name,) = await names(podman)
        assert name.startswith("engine-router-small-")
        assert resident.endpoint is not None
        assert resident.endpoint.pid is not None
        words = psutil.Process(resident.endpoint.pid).cmdline()
        assert "/engine.py" in words
        labels = json.loads(await trio.to_thread.run_sync(podman.run, "inspect", name))[0]["Config"]["Labels"]
        assert json.loads(labels[OWNER])["pid"] == os.getpid()
        await until(lambda: "hello" in engine.log.tail(10))
        await resident.stop()
        assert resident.ended is not None
        assert resident.ended.message == "exited with code 0"
        assert await names(podman) == []
        assert "asked to end" in engine.log.tail(10)


async def test_a_published_port(podman: Podman) -> None:
    published = {
        "network": None,
        "ports": ("{port}:8000",),
        "command": ("/engine.py", "port=8000", "host=0.0.0.0", "stop=0"),
    }
    async with an_engine(podman, **published) as engine, supervised(engine, "m") as resident:
        while not (resident.ready.is_set() or resident.over.is_set()):
            await trio.sleep(0.05)
        if any(word in str(resident.error) for word in ("plugin", "network", "netavark", "cni")):
            pytest.skip(f"no network for containers here: {resident.error}")
        assert resident.endpoint is not None
        assert await engine.check(resident.resident) is None
        await resident.stop()


async def test_a_first_process_that_ignores_the_signal_is_killed(podman: Podman) -> None:
    async with (
        an_engine(podman, "ignore=SIGTERM", grace_s=0.5) as engine,
        supervised(engine, "m") as resident,
    ):
        await resident.ready.wait()
        await resident.stop()
        assert resident.stopped
        assert "[engine-router] still there 0.5 s after SIGTERM: killed" in engine.log.tail(10)


async def test_an_early_exit_is_told_with_its_code_and_last_words(podman: Podman) -> None:
    async with (
        an_engine(podman, r"say=loading\nno such model", "exit=3") as engine,
        supervised(engine, "m") as resident,
    ):
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert resident.error.summary == "exited with code 3 before it was ready"
        assert "no such model" in resident.error.log_tail


async def test_a_death_is_noticed(podman: Podman) -> None:
    async with an_engine(podman) as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        assert resident.endpoint is not None
        assert resident.endpoint.pid is not None
        os.kill(resident.endpoint.pid, signal.SIGKILL)
        await resident.over.wait()
        assert resident.died
        assert resident.ended is not None
        assert (
            resident.ended.message
            == "exited with code 137 (SIGKILL of somebody else's: was there too little memory?)"
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image": "localhost/absent:1"}, 'pull it, or set pull = "missing"'),
        ({"entrypoint": ("/no/such/program",)}, "/no/such/program"),
        ({"more_volumes": ("/no/such/folder:/models:ro",)}, "/no/such/folder"),
    ],
    ids=["image", "program", "mount"],
)
async def test_what_cannot_be_started_is_told(
    settings: dict[str, Any], expected: str, podman: Podman
) -> None:
    async with an_engine(podman, **settings) as engine, supervised(engine, "m") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert expected in str(resident.error)
    assert not Path("/no/such").exists()


async def test_a_stop_during_the_start(podman: Podman) -> None:
    async with an_engine(podman, "wait=1000", grace_s=0.1) as engine, supervised(engine, "m") as resident:
        while not await names(podman):
            await trio.sleep(0.05)
        await resident.stop()
        assert resident.stopped


@pytest.mark.parametrize("step", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
async def test_cancellation_at_any_moment_leaves_nothing(step: float, podman: Podman) -> None:
    async with an_engine(podman) as engine, supervised(engine, "m"):
        await trio.sleep(step)


async def test_a_daemon_that_dies_takes_no_engine_along(podman: Podman) -> None:
    async with an_engine(podman, "stop=0") as engine, supervised(engine, "m") as resident:
        await resident.ready.wait()
        await trio.to_thread.run_sync(podman.kill_service)
        await trio.sleep(0.5)
        assert await engine.check(resident.resident) is None
        await trio.to_thread.run_sync(podman.start_service)
        assert not resident.over.is_set()
        await resident.stop()
        assert resident.stopped


async def test_two_containers_take_turns(podman: Podman, tmp_path: Path) -> None:
    """As often as ENGINE_ROUTER_TEST_SWAPS says: 200 took five minutes."""
    engines = {
        name: small_engine(podman.socket, "stop=0", models=(name,), discover=False) for name in ("a", "b")
    }
    text = HEAD + as_toml({name: {"type": "container", **options} for name, options in engines.items()})
    config = parse_config(f'state_file = "{tmp_path}/state.json"\n{text}')
    swaps = int(os.environ.get("ENGINE_ROUTER_TEST_SWAPS", "6"))
    with trio.fail_after(LIMIT_S * max(1, swaps / 20)):
        async with open_router(config) as router:
            for index in range(swaps):
                async with router.lease("ab"[index % 2]):
                    assert len(await names(podman)) == 1
        assert await names(podman) == []


ROUTER = """
import sys, trio
from engine_router import open_router

async def main():
    async with open_router(sys.argv[1]) as router:
        print("open", flush=True)
        async with router.lease("m"):
            print("ready", flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def a_router(podman: Podman, folder: Path, *words: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a router in a process of its own, which starts a container."""
    path = folder / "engines.toml"
    options = {"type": "container", **small_engine(podman.socket, "ignore=SIGTERM", *words), "models": ("m",)}
    path.write_text(f'state_file = "{folder}/state.json"\n' + HEAD + as_toml({"small": options}))
    with subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
        [sys.executable, "-c", ROUTER, str(path)], stdout=subprocess.PIPE
    ) as router:
        try:
            with trio.fail_after(LIMIT_S):
                yield router
        finally:
            router.kill()


async def line_of(router: subprocess.Popen[bytes]) -> bytes:
    assert router.stdout is not None
    return await trio.to_thread.run_sync(router.stdout.readline)


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, "ready"])
async def test_the_death_of_the_router_ends_its_container(
    moment: float | str, podman: Podman, tmp_path: Path
) -> None:
    async with a_router(podman, tmp_path) as router:
        assert await line_of(router) == b"open\n"
        if isinstance(moment, float):
            await trio.sleep(moment)
        else:
            assert await line_of(router) == b"ready\n"
        guardian = guardian_of(router.pid)
        router.kill()
        await until(lambda: not guardian.is_running() or guardian.status() == psutil.STATUS_ZOMBIE)
        assert await names(podman) == []


@pytest.mark.parametrize("delay", [0.0, 0.2])
async def test_the_death_of_the_router_in_the_middle_of_a_stop(
    delay: float, podman: Podman, tmp_path: Path
) -> None:
    """The first process ignores the signal, and the daemon has been told to wait for nothing."""
    async with a_router(podman, tmp_path) as router:
        assert await line_of(router) == b"open\n"
        assert await line_of(router) == b"ready\n"
        guardian = guardian_of(router.pid)
        router.send_signal(signal.SIGINT)
        await trio.sleep(delay)
        router.kill()
        await until(lambda: not guardian.is_running() or guardian.status() == psutil.STATUS_ZOMBIE)
        assert await names(podman) == []


async def test_the_next_router_removes_what_router_and_guardian_left(podman: Podman, tmp_path: Path) -> None:
    async with a_router(podman, tmp_path) as router:
        assert await line_of(router) == b"open\n"
        assert await line_of(router) == b"ready\n"
        router.send_signal(signal.SIGSTOP)  # it would start another guardian
        guardian_of(router.pid).kill()
        router.kill()
        router.wait()
        assert len(await names(podman)) == 1
        async with an_engine(podman) as engine:
            assert await engine.find() == []
            assert await names(podman) == []


async def test_the_containers_of_a_router_that_lives_are_let_be(podman: Podman, tmp_path: Path) -> None:
    async with a_router(podman, tmp_path) as router:
        assert await line_of(router) == b"open\n"
        assert await line_of(router) == b"ready\n"
        before = await names(podman)
        async with an_engine(podman) as engine:
            await engine.find()
            assert await names(podman) == before != []
            router.kill()
            await until_none_left(podman)


def guardian_of(router: int) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(router).children()
        if any(word.endswith("guardian.py") for word in child.cmdline())
    )
