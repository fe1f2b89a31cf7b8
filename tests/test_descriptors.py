"""A router without a file descriptor left: nothing ends, and no model is to blame."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator

import psutil
import pytest
import trio

from engine_router.config import ProcessConfig
from engine_router.engines.base import Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian, start_tree
from engine_router.engines.readiness import CANNOT_ASK, Check, look
from engine_router.engines.started.resources import lacks_resources
from engine_router.errors import EngineDied, EngineStartFailed, EngineUnreachable, OutOfResources
from engine_router.upstream.client import Upstream
from engine_router.upstream.control_client import control_client
from engine_router.upstream.http1 import UpstreamRequest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of a process")
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(3600)"]


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take every descriptor that may still be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # a zombie
        return []


def is_guarded(guardian: Guardian) -> bool:
    return guardian._line is not None


async def test_an_engine_is_started_from_the_reserve() -> None:
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            guardian = Guardian()
            await nursery.start(guardian.run)
            with no_descriptor_left():
                process, tree = await start_tree(SLEEPER, env={}, cwd=None, watcher=guardian)
            await tree.kill()
            await process.wait()
            tree.mark_dead()
            nursery.cancel_scope.cancel()
    assert process.stdout is not None
    await process.stdout.aclose()


async def test_a_guardian_that_cannot_be_started_again_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            guardian = Guardian()
            await nursery.start(guardian.run)
            guardian.reserve.close()
            (program,) = [p for p in psutil.Process().children() if guardian._run in words_of(p)]
            with no_descriptor_left():
                os.kill(program.pid, signal.SIGKILL)
                while "cannot be started" not in caplog.text:
                    await trio.sleep(0.01)
                assert not is_guarded(guardian)
            while not is_guarded(guardian):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_start_without_descriptors_is_tried_again_and_is_nobody_s_fault() -> None:
    config = ProcessConfig(argv=(*SLEEPER, "{port}"), start_timeout_s=0.5)
    async with control_client() as client:
        engine = ProcessEngine("e", config, client)

        async def live() -> Ended:
            return await engine.run_resident(ResidentId("e"), Supervision(_not_expected))

        with (
            trio.fail_after(200),
            no_descriptor_left(),
            pytest.raises(OutOfResources, match="ulimit -n") as caught,
        ):
            await live()
        assert caught.value.retryable
        with trio.fail_after(200), pytest.raises(EngineStartFailed, match="was not ready"):
            await live()  # it can be started, now that there are some


async def test_an_engine_that_cannot_be_asked_is_not_ill() -> None:
    async with control_client() as client:
        with trio.fail_after(200), no_descriptor_left():
            seen = await look(client, "http://127.0.0.1:9/health", Check("status == 200"), headers={})
    assert seen == CANNOT_ASK


def test_what_lacks_is_told_from_what_is_wrong() -> None:
    assert lacks_resources(OSError(24, "Too many open files"))
    assert not lacks_resources(FileNotFoundError(2, "No such file"))
    assert not OutOfResources("e", "x").is_engines_fault
    assert EngineDied("e", "x").is_engines_fault


def _not_expected(endpoint: Endpoint) -> None:
    pytest.fail(f"ready at {endpoint}")


async def test_a_request_without_a_descriptor_for_its_engine_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as engine:
        url = f"http://127.0.0.1:{engine.getsockname()[1]}"
        request = UpstreamRequest(
            engine="a", base_url=url, method="POST", target="/", headers=(), body=b"{}", connect_timeout_s=5
        )
        upstream = Upstream()
        with trio.fail_after(200):
            with no_descriptor_left():
                assert upstream.send_at_once(request) is None
                with pytest.raises(EngineUnreachable, match=r"the router has no open file left \(ulimit -n"):
                    await upstream.send(request)
            exchange = await upstream.send(request)
            exchange.close()
