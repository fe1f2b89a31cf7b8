"""The end of an engine whose server is not among its processes, as with a container; and what its output tells."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from support.ports import free_port
from support.scripted import supervised, until
from trio.testing import MockClock

from engine_router.config import ProcessConfig
from engine_router.config.kinds import Argv
from engine_router.engines.base import LogRing
from engine_router.engines.ports import is_taken, owner_of
from engine_router.engines.process import guardian as guardian_program
from engine_router.engines.process import running_process
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian
from engine_router.engines.started.output import LINES_IN_ERRORS, EngineOutput, last_words
from engine_router.errors import EngineStopFailed
from engine_router.guards.limits import LINES_PER_S
from engine_router.upstream.control_client import control_client

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and shells")

# Like `docker run`: what it starts is nobody's child and knows no marker; the client only waits for it.
CLIENT = """
import os, subprocess, sys, time
folder, port = sys.argv[1], sys.argv[2]
server = subprocess.Popen([sys.executable, "-I", "-S", os.environ["ENGINE"], "ignore=SIGTERM", "port=" + port],
                          env={}, start_new_session=True, stdout=subprocess.DEVNULL)
with open(folder + "/pid", "w") as file:
    file.write(str(server.pid))
server.wait()
"""
ENGINE = str(Path(__file__).parent / "programs" / "small_engine.py")


@asynccontextmanager
async def a_client(
    folder: Path, guardian: Guardian | None = None, **settings: Any
) -> AsyncIterator[ProcessEngine]:
    port = free_port()
    config = ProcessConfig(
        argv=(sys.executable, "-I", "-S", "-c", CLIENT, str(folder), str(port)),
        base_url=f"http://127.0.0.1:{port}",
        env={"ENGINE": ENGINE, "FOLDER": str(folder)},
        **{"grace_s": 30.0, "stop_timeout_s": 60.0, **settings},
    )
    try:
        with trio.fail_after(400):  # longer than any jump of a clock
            async with control_client() as client:
                yield ProcessEngine("small", config, client, guardian=guardian)
    finally:
        with suppress(OSError, ValueError):
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def shell(text: str) -> Argv:
    return ("/bin/sh", "-c", text)


KILL = 'kill -9 "$(cat "$FOLDER/pid")"; echo kill >> "$FOLDER/deeds"'


@pytest.mark.parametrize("is_owner_found", [True, False])
async def test_what_still_listens_is_not_dead(
    is_owner_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumping_clock: MockClock
) -> None:
    """Whoever that is may be found only after the deadline, on a busy machine."""
    searches = []

    async def search(port: int) -> psutil.Process | None:
        owner = await owner_of(port)
        searches.append(owner)
        if not is_owner_found:
            await trio.sleep_forever()
        return owner

    monkeypatch.setattr(running_process, "owner_of", search)
    async with a_client(tmp_path) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        life.supervision.stop()
        await until(lambda: len(searches) == 1 + is_owner_found)
        jumping_clock.jump(engine.config.stop_timeout_s)
        await life.over.wait()
        assert isinstance(life.error, EngineStopFailed)
        assert searches[0] is not None
        whose = f"(pid {searches[0].pid})" if is_owner_found else "another program"
        assert f"{whose} still accepts connections at http://127.0.0.1:" in life.error.message
        assert "60 s after its stop; " in life.error.message
        assert "kill_command" in life.error.message


async def test_a_kill_command_that_does_not_end_is_named(tmp_path: Path, jumping_clock: MockClock) -> None:
    kill = shell('[ -e "$FOLDER/deeds" ] && exit; echo kill > "$FOLDER/deeds"; exec sleep 1000')
    async with a_client(tmp_path, kill_command=kill) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        life.supervision.stop()
        await until((tmp_path / "deeds").exists)
        jumping_clock.jump(engine.config.stop_timeout_s)
        await life.over.wait()
        assert isinstance(life.error, EngineStopFailed)
        assert "has ended, but its kill_command still runs 60 s after its stop" in life.error.message


@pytest.mark.parametrize("end", ["stop", "death", "cancel"])
async def test_the_kill_command_ends_what_is_no_child(end: str, tmp_path: Path) -> None:
    async with a_client(tmp_path, kill_command=shell(KILL)) as engine:
        async with supervised(engine, "x") as life:
            await life.ready.wait()
            assert life.endpoint is not None
            if end == "stop":
                await life.stop()
                assert life.stopped
            elif end == "death":
                assert life.endpoint.pid is not None
                os.kill(life.endpoint.pid, signal.SIGKILL)
                await life.over.wait()
                assert life.died
            if end != "cancel":
                assert not await is_taken(life.endpoint.base_url)
        while await is_taken(life.endpoint.base_url):
            await trio.sleep(0.01)


async def test_a_stop_command_that_works_is_enough(tmp_path: Path) -> None:
    stop = shell('kill -9 "$(cat "$FOLDER/pid")"; echo stop {port} {pid} >> "$FOLDER/deeds"')
    async with (
        a_client(tmp_path, stop_command=stop, kill_command=shell(KILL)) as engine,
        supervised(engine, "x") as life,
    ):
        await life.ready.wait()
        assert life.endpoint is not None
        port, pid = life.endpoint.base_url.rpartition(":")[2], life.endpoint.pid
        await life.stop()
        assert life.stopped
    assert (tmp_path / "deeds").read_text().splitlines() == [f"stop {port} {pid}"]


async def test_a_stop_command_that_fails_is_followed_by_the_kill_command(tmp_path: Path) -> None:
    async with (
        a_client(
            tmp_path, stop_command=shell("echo no such box >&2; exit 3"), kill_command=shell(KILL)
        ) as engine,
        supervised(engine, "x") as life,
    ):
        await life.ready.wait()
        await life.stop()
        assert life.stopped
    assert (tmp_path / "deeds").read_text() == "kill\n"
    assert any("no such box" in line for line in engine.log.tail(20))


async def test_the_guardian_runs_the_kill_command_of_a_router_that_died(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        guardian = Guardian()
        await nursery.start(guardian.run)
        async with (
            a_client(tmp_path, guardian, kill_command=shell(KILL)) as engine,
            supervised(engine, "x") as life,
        ):
            await life.ready.wait()
            assert life.endpoint is not None
            lines = [f"+{group}\n{more}" for group, more in guardian._watched.items()]
            assert lines
            # Another guardian with the same orders, whose router dies now.
            argv = [sys.executable, "-I", "-S", str(guardian_program.__file__), "no-marker-of-anybody"]
            await trio.run_process(argv, stdin="".join(lines).encode(), start_new_session=True)
            assert (tmp_path / "deeds").read_text().splitlines()[0] == "kill"
            await life.over.wait()
        nursery.cancel_scope.cancel()


async def test_what_came_after_the_end_is_a_stranger(tmp_path: Path) -> None:
    """Somebody takes the port as soon as it is free: the engine is dead all the same."""
    stranger = f"env -i '{sys.executable}' -I -S '{ENGINE}' port={{port}} pids=\"$FOLDER/stranger\""
    # It is there long before the command ends.
    kill = shell(f"{KILL}; {stranger} >/dev/null 2>&1 & sleep 0.3")
    async with a_client(tmp_path, kill_command=kill) as engine:
        try:
            async with supervised(engine, "x") as life:
                await life.ready.wait()
                await life.stop()
                assert life.stopped
        finally:
            await until((tmp_path / "stranger").exists)
            for pid in (tmp_path / "stranger").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


# Output


async def test_a_flood_of_lines_is_counted_and_dropped(autojump_clock: trio.testing.MockClock) -> None:
    ring = LogRing(lines=LINES_PER_S * 3)
    output = EngineOutput(ring)
    piece = b"x\n" * 32768
    assert all(output.keep(piece) for _ in range(100))
    output.keep(b"Segmentation fault\n")
    output.end()
    assert ring.count < LINES_PER_S + 100
    lines = ring.tail(LINES_PER_S * 2)
    (told,) = [line for line in lines if "dropped" in line]
    assert lines[-1] == "Segmentation fault"
    kept = sum(line in ("x", "Segmentation fault") for line in lines)
    assert int(told.split()[1]) + kept == 100 * 32768 + 1
    await trio.sleep(2)
    assert not output.keep(b"quiet again\n")
    assert ring.tail(1) == ("quiet again",)


async def test_a_flood_is_read_at_a_pace(autojump_clock: trio.testing.MockClock) -> None:
    class Flood(trio.abc.ReceiveStream):
        pieces = 100

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            self.pieces -= 1
            return b"" if self.pieces < 0 else b"x\n" * 32768

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    began = trio.current_time()
    with trio.fail_after(60):
        await EngineOutput(LogRing()).read(Flood())
    assert trio.current_time() - began > 0.1  # of the virtual clock: others had their turns


async def test_how_a_flood_ended_is_told_though_nothing_comes_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ring = LogRing(lines=LINES_PER_S * 3)
    write, read = trio.testing.memory_stream_one_way_pair()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(EngineOutput(ring).read, read)
            await write.send_all(b"x\n" * LINES_PER_S * 5)
            await write.send_all(b"the last but one\n")
            await write.send_all(b"the last\n")
            await trio.sleep(2)
            assert ring.tail(2) == ("the last but one", "the last")
            (told,) = [line for line in ring.tail(LINES_PER_S * 3) if "dropped" in line]
            assert int(told.split()[1]) + ring.count - 1 == LINES_PER_S * 5 + 2
            await write.send_all(b"quiet again\n")
            await trio.sleep(0.1)
            assert ring.tail(1) == ("quiet again",)
            await write.aclose()


PROBES = [
    'INFO:     127.0.0.1:5 - "GET /health HTTP/1.1" 503 Service Unavailable',
    '127.0.0.1 - - [28/Nov/2026] "GET /v1/models HTTP/1.1" 404 -',
    "127.0.0.1 - - [28/Nov/2026] code 404, message Not Found",
    "srv  log_server_r: request: GET /health 127.0.0.1 503",
    '[GIN] 2026/11/28 | 200 | 1ms | 127.0.0.1 | GET      "/v1/models"',
]


@pytest.mark.parametrize("probe", PROBES)
def test_our_own_probes_are_left_out_of_the_last_words(probe: str) -> None:
    lines = ["loading", "ValueError: no such file: weights", *[probe] * 300]
    assert last_words(lines, ("/health", "/v1/models")) == ("loading", "ValueError: no such file: weights")


def test_others_requests_and_errors_before_the_last_lines_are_kept() -> None:
    asked = 'INFO: 1.2.3.4:5 - "GET /v1/models/x HTTP/1.1" 200'
    lines = ["start", "RuntimeError: CUDA out of memory", *[f"tidying up {n}" for n in range(40)], asked]
    words = last_words(lines, ("/health", "/v1/models"))
    assert words[0] == "RuntimeError: CUDA out of memory"
    assert words[-1] == asked
    assert len(words) == LINES_IN_ERRORS
    assert last_words([], ("/health",)) == ()


def test_a_guardian_s_line_survives_any_command() -> None:
    guardian = Guardian()
    guardian.watch(7)
    guardian.run_at_end(7, ["a b", "ü\n"], {"X": "1 2"}, "/tmp")
    line = guardian._watched[7].removeprefix("+7\n")
    assert line.count("\n") == 1
    assert len(line.split()) == 2
    guardian.reserve.close()
