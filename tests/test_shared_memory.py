"""What killed engines leave in /dev/shm: real processes, real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support.ports import free_port
from support.scripted import supervised

from engine_router.config import ProcessConfig
from engine_router.engines.ports import is_taken
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.upstream.control_client import control_client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")

PROGRAM = str(Path(__file__).parent / "programs" / "small_engine.py")
SHM = Path("/dev/shm")
HOLDER = "import sys, time; file = open(sys.argv[1], 'rb'); print(flush=True); time.sleep(600)"


@pytest.fixture
def name() -> Iterator[str]:
    """Return a prefix for names in /dev/shm; what is left of them is removed."""
    prefix = f"engine-router-test-{uuid.uuid4().hex}"
    yield prefix
    for path in SHM.glob(f"{prefix}*"):
        path.unlink()


@contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def an_engine(*options: str, **settings: Any) -> AsyncIterator[ProcessEngine]:
    argv = (sys.executable, "-I", "-S", PROGRAM, *options)
    config = ProcessConfig(argv=argv, **{"grace_s": 30.0, "stop_timeout_s": 60.0, **settings})
    with trio.fail_after(200):
        async with control_client() as client:
            yield ProcessEngine("small", config, client)


async def lived(engine: ProcessEngine, end: str) -> list[str]:
    """Let an engine live until its end; return what the router said of its shared memory."""
    async with supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        assert life.endpoint.pid is not None
        if end == "stop":
            await life.stop()
            assert life.stopped
        else:
            os.killpg(life.endpoint.pid, signal.SIGKILL)
            await life.over.wait()
            assert life.died
    return [line for line in engine.log.tail(99) if "/dev/shm: " in line]


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("how", ["", "hold:"])
async def test_what_an_engine_leaves_is_removed_after_its_death(name: str, how: str, end: str) -> None:
    async with an_engine("port={port}", f"shm={how}{name}a,{name}b") as engine:
        (said,) = await lived(engine, end)
    assert list(SHM.glob(f"{name}*")) == []
    assert "removed what it left in /dev/shm: " in said
    assert f"{name}a (1.0 MB)" in said
    assert f"{name}b (1.0 MB)" in said


async def test_a_child_that_left_the_group_is_no_exception(name: str) -> None:
    async with an_engine("port={port}", "lose=session", f"shm={name}") as engine:
        await lived(engine, "kill")
    assert list(SHM.glob(f"{name}*")) == []


async def test_what_somebody_else_uses_is_only_told(name: str) -> None:
    async with an_engine("port={port}", f"shm={name}") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        with started(sys.executable, "-I", "-S", "-c", HOLDER, str(SHM / name)) as holder:
            assert holder.stdout is not None
            await trio.to_thread.run_sync(holder.stdout.readline)
            await life.stop()
            assert (SHM / name).exists()
            told = f"left behind in /dev/shm: {name} (1.0 MB): process {holder.pid} uses it"
            assert any(told in line for line in engine.log.tail(9))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_what_belongs_to_somebody_else_is_only_told(name: str) -> None:
    async with an_engine("port={port}", f"shm={name}") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        os.chown(SHM / name, 12345, -1)
        await life.stop()
        assert (SHM / name).exists()
        assert any(f"{name} (1.0 MB): it belongs to user 12345" in line for line in engine.log.tail(9))


@pytest.mark.parametrize("how", ["", "read:"])
async def test_only_what_an_engine_writes_to_is_removed(name: str, how: str) -> None:
    async with an_engine("port={port}") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        if how == "read:":
            (SHM / name).write_bytes(bytes(1 << 20))  # weights, say
        async with httpx.AsyncClient(timeout=200, trust_env=False) as client:
            await client.get(f"{life.endpoint.base_url}/shm/{how}{name}")
        await life.stop()
        assert life.stopped
    assert (SHM / name).exists() is (how == "read:")
    assert any(name in line for line in engine.log.tail(99)) is (how == "")


@pytest.mark.parametrize("where", ["argv", "env"])
async def test_what_the_configuration_names_stays(name: str, where: str) -> None:
    text = f"--log-file={SHM / name}"
    options, env = ((text,), {}) if where == "argv" else ((), {"OPTIONS": text})
    async with an_engine("port={port}", f"shm={name}", *options, env=env) as engine:
        assert await lived(engine, "stop") == []
    assert (SHM / name).exists()


async def test_what_was_there_before_the_engine_stays(name: str) -> None:
    (SHM / name).write_bytes(b"")
    await trio.sleep(0.2)  # files are dated by a clock that goes in steps
    # A file is opened for writing, and not written to, by the shell that becomes the engine.
    argv = (
        "/bin/sh",
        "-c",
        'exec 7<>"/dev/shm/$0"; exec "$@"',
        name,
        sys.executable,
        "-I",
        "-S",
        PROGRAM,
        "port={port}",
    )
    async with an_engine() as other:
        config = ProcessConfig(argv=argv, grace_s=30.0, stop_timeout_s=60.0)
        engine = ProcessEngine("small", config, other._client)
        assert await lived(engine, "stop") == []
    assert (SHM / name).exists()


async def test_an_engine_that_was_found_running_leaves_nothing_either(name: str) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    async with an_engine(f"port={port}", f"shm={name}", base_url=base_url) as engine:
        with started(*engine.config.argv):
            while not await is_taken(base_url):
                await trio.sleep(0.005)
            async with supervised(engine, "x", adopt=True) as life:
                await life.ready.wait()
                await life.stop()
                assert life.stopped
    assert list(SHM.glob(f"{name}*")) == []
