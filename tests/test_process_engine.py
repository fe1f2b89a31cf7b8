"""Engines as processes: real ones, well and badly behaved, from their start to the end of all that they started."""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import httpx
import psutil
import pytest
import trio
import trio.testing
from support.ports import free_port
from support.scripted import supervised, until
from support.small_engine import PROGRAM, PYTHON, an_engine, command, config, the_engine

from engine_router.config import Config, ModelConfig, ProcessConfig
from engine_router.config.template import TemplateModels
from engine_router.engines import readiness
from engine_router.engines.base import EngineLogs, LogRing, ResidentId
from engine_router.engines.ports import described, head_of, is_taken, owner_of, runs
from engine_router.engines.process import process_tree, running_process
from engine_router.engines.process import start as process_start
from engine_router.engines.process.adopted import AdoptedTree
from engine_router.engines.process.guardian import MARKER_VARIABLE, carriers
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian, ProcessGroup
from engine_router.engines.process.windows import JobTree, KernelJobs
from engine_router.engines.process.wired_memory import least_grace_s
from engine_router.engines.started.running import GRACE_SHARE
from engine_router.errors import EngineStartFailed, EngineStartTimeout, EngineStopFailed, EngineUnreachable
from engine_router.guards.limits import RESIDENT_LOGS
from engine_router.upstream.address import address_of
from engine_router.upstream.control_client import ControlClient

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups")
linux = pytest.mark.skipif(sys.platform != "linux", reason="who left a process group is found on Linux only")


async def get(base_url: str, path: str) -> Any:
    async with httpx.AsyncClient(timeout=200, trust_env=False) as client:
        return (await client.get(base_url + path)).json()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def noted(path: Path) -> list[int]:
    """Return the process ids that an engine noted down, its own first."""
    return [int(line) for line in path.read_text("ascii").split()] if path.exists() else []


@contextlib.contextmanager
def started(argv: list[str], **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process that is nobody's engine yet, and leave nothing of it."""
    process = subprocess.Popen(argv, **{"stdout": subprocess.DEVNULL, **more})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until_listening(port: int) -> None:
    while not await is_taken(f"http://127.0.0.1:{port}"):
        await trio.sleep(0.005)


# A good life


async def test_an_engine_is_started_serves_and_is_stopped() -> None:
    async with the_engine("say=hello", "models=x") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        assert life.endpoint.pid is not None
        assert is_alive(life.endpoint.pid)
        assert await get(life.endpoint.base_url, "/v1/models") == {"data": [{"id": "x"}]}
        assert await engine.list_models() == ("x",)
        await life.stop()
        assert life.ended is not None
        assert life.ended.stopped
        assert life.ended.message == "was killed by SIGTERM"
        assert not is_alive(life.endpoint.pid)
        assert not await is_taken(life.endpoint.base_url)
        assert "hello" in engine.log.tail(10)
        assert await engine.list_models() is None


async def test_an_engine_that_ends_by_itself_after_the_signal_has_its_time() -> None:
    async with the_engine("stop=0.15") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        await life.stop()
        assert life.ended is not None
        assert life.ended.message == "exited with code 0"
        assert engine.log.tail(1) == ("asked to end",)


async def test_another_signal_may_be_the_one_that_asks() -> None:
    async with the_engine("ignore=SIGTERM", stop_signal="SIGINT") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        await life.stop()
        assert life.stopped
        assert not any("killed" in line for line in engine.log.tail(5))


async def test_the_same_engine_can_be_started_again() -> None:
    async with the_engine() as engine:
        pids = set()
        for _ in range(3):
            async with supervised(engine, "x") as life:
                await life.ready.wait()
                assert life.endpoint is not None
                pids.add(life.endpoint.pid)
                await life.stop()
                assert life.stopped
        assert len(pids) == 3


async def test_environment_and_working_directory(tmp_path: Path) -> None:
    settings = {"env": {"COLOUR": "grün"}, "cwd": str(tmp_path)}
    async with the_engine("pids=here", **settings) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        assert await get(life.endpoint.base_url, "/env/COLOUR") == "grün"
        assert await get(life.endpoint.base_url, "/env/PATH") == os.environ["PATH"]
        assert noted(tmp_path / "here") == [life.endpoint.pid]


# Starts that fail


async def test_an_early_exit_is_reported_at_once_with_code_and_last_words() -> None:
    async with (
        the_engine("say=line one\\nunknown flag: --x", "exit=7") as engine,
        supervised(engine, "x") as life,
    ):
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert not isinstance(life.error, EngineStartTimeout)
        assert life.error.summary == "exited with code 7 before it was ready"
        assert life.error.log_tail[-2:] == ("line one", "unknown flag: --x")
        assert "unknown flag" in str(life.error)


async def test_a_failed_start_tells_nothing_of_the_one_before() -> None:
    async with the_engine("say=no memory", "exit=7") as engine:
        for _ in range(2):
            async with supervised(engine, "x") as life:
                await life.over.wait()
        started, *words = life.error.log_tail
        assert started.startswith("[engine-router] started pid ")
        assert words == ["no memory"]
        assert engine.log.tail(99).count("no memory") == 2


async def test_an_exit_while_loading_is_reported_before_the_timeout() -> None:
    async with the_engine("loading=1000") as engine, supervised(engine, "x") as life:
        await until(lambda: engine.log.count)
        port = int(engine.log.tail(1)[0].rpartition("port=")[2].split()[0])
        await until_listening(port)
        with pytest.raises(httpx.HTTPError):
            await get(f"http://127.0.0.1:{port}", "/exit/4")
        with trio.fail_after(200):
            await life.over.wait()
        assert life.error is not None
        assert life.error.summary == "exited with code 4 before it was ready"


async def test_a_killed_start_names_the_signal() -> None:
    async with the_engine("loading=1000") as engine, supervised(engine, "x") as life:
        await until(lambda: engine.log.count)
        os.kill(int(engine.log.tail(1)[0].split()[3].rstrip(":")), signal.SIGKILL)
        await life.over.wait()
        assert life.error is not None
        assert life.error.summary == "was killed by SIGKILL before it was ready"


async def refused(settings: ProcessConfig) -> str:
    async with an_engine(settings) as engine, supervised(engine, "x") as life:
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert not life.ready.is_set()
        return life.error.summary


async def test_commands_that_cannot_be_run(tmp_path: Path) -> None:
    base = {"base_url": f"http://127.0.0.1:{free_port()}"}
    not_found = await refused(ProcessConfig(argv=("llama-srever", "-m"), **base))
    assert not_found == "cannot be started: llama-srever was not found; give its full path in argv"
    assert "~/no-such-program" not in await refused(ProcessConfig(argv=("~/no-such-program",), **base))
    plain = tmp_path / "plain"
    plain.write_text("echo", "ascii")
    assert await refused(ProcessConfig(argv=(str(plain),), **base)) == (
        f"cannot be started: {plain}: Permission denied; is it a program, and executable?"
    )
    plain.chmod(0o755)
    assert await refused(ProcessConfig(argv=(str(plain),), **base)) == (
        f"cannot be started: {plain}: Exec format error"
    )
    assert await refused(config("port={port}", cwd=str(tmp_path / "none"))) == (
        f"cannot be started: its cwd {tmp_path}/none does not exist"
    )
    assert await refused(config("port={port}", cwd=str(plain))) == (
        f"cannot be started: its cwd {plain} cannot be used: Not a directory"
    )
    assert "environment variable name" in await refused(config("port={port}", env={"A=B": "c"}))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Note what readiness probes see."""
    ask, seen = readiness.ask, list[str | None]()

    async def ask_and_note(*arguments: Any, **more: Any) -> str | None:
        seen.append(await ask(*arguments, **more))
        return seen[-1]

    monkeypatch.setattr(readiness, "ask", ask_and_note)
    return seen


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["deaf=1"], "; /health last: accepts connections but does not answer"),
        (["wait=1000"], "; /health last: no answer (ConnectError)"),
        (["loading=1000"], "; /health last: answered 503"),
    ],
    ids=["deaf", "not-listening", "loading"],
)
async def test_an_engine_that_never_becomes_ready(
    options: list[str],
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jumping_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr(readiness, "PROBE_TIMEOUT_S", 0.1)
    seen = watched(monkeypatch)
    pids = tmp_path / "pids"
    options = [*options, f"pids={pids}", "lose=group", "ignore=SIGTERM", "say=loading..."]
    async with the_engine(*options, start_timeout_s=300.0) as engine, supervised(engine, "x") as life:
        await until(lambda: len(noted(pids)) == 2 and seen[-1:] == [last.rpartition("last: ")[2]])
        await until(lambda: "loading..." in engine.log.tail(9))
        jumping_clock.jump(300)
        await life.over.wait()
        assert isinstance(life.error, EngineStartTimeout)
        assert life.error.summary == f"was not ready within 300 s{last}"
        assert "loading..." in life.error.log_tail
        assert len(noted(pids)) == 2
        assert not any(is_alive(pid) for pid in noted(pids))


# A port that is somebody else's


async def test_a_port_in_use_by_a_stranger() -> None:
    port = free_port()
    with started(command(f"port={port}", "models=theirs")) as stranger:
        await until_listening(port)
        message = await refused(config(f"port={port}", "models=ours", base_url=f"http://127.0.0.1:{port}"))
        assert message.startswith(
            f"cannot be started: 127.0.0.1:{port} is in use by {psutil.Process(stranger.pid).name()} "
        )
        assert message.endswith(f"(pid {stranger.pid}); stop that, or give the engine another port")
        assert stranger.poll() is None


async def test_owners_of_ports() -> None:
    assert await owner_of(free_port()) is None
    assert described(None) == "another program"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        owner = await owner_of(listener.getsockname()[1])
        assert owner is not None
        assert owner.pid == os.getpid()
    with started([sys.executable, "-c", ""]) as process:
        ghost = psutil.Process(process.pid)
        process.wait()
    assert described(ghost).endswith(f"pid {ghost.pid}") or described(ghost).endswith(f"(pid {ghost.pid})")
    assert address_of("http://[::1]:80") == ("::1", 80)
    assert address_of("https://example.org") == ("example.org", 443)
    assert address_of("http://example.org") == ("example.org", 80)


# Stops


async def test_a_stop_asked_for_before_the_start_starts_nothing(tmp_path: Path) -> None:
    async with the_engine(f"pids={tmp_path}/pids") as engine, supervised(engine, "x") as life:
        life.supervision.stop()
        await life.over.wait()
        assert life.stopped
        assert noted(tmp_path / "pids") == []
        assert engine.log.count == 0


async def test_a_stop_asked_for_during_the_start(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with the_engine("loading=1000", f"pids={pids}") as engine, supervised(engine, "x") as life:
        await until(lambda: noted(pids))
        with trio.fail_after(200):
            await life.stop()
        assert life.stopped
        assert not life.ready.is_set()
        assert not is_alive(noted(pids)[0])


async def test_an_ignored_signal_is_followed_by_sigkill_after_the_grace() -> None:
    async with the_engine("ignore=SIGTERM", grace_s=0.2) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        began = trio.current_time()
        await life.stop()
        assert trio.current_time() - began >= 0.2
        assert life.ended is not None
        assert life.ended.stopped
        assert life.ended.message == "was killed by SIGKILL"
        assert engine.log.tail(1) == ("[engine-router] still there 0.2 s after SIGTERM: killed",)


async def test_a_large_model_on_macos_gets_the_time_that_its_memory_needs(
    monkeypatch: pytest.MonkeyPatch, jumping_clock: trio.testing.MockClock
) -> None:
    held = least_grace_s("darwin", lambda: 1_000_000_000_000)
    monkeypatch.setattr(running_process, "least_grace_s", lambda: held)
    signalled, signal_tree = trio.Event(), ProcessGroup.signal

    async def signal(tree: ProcessGroup, name: str) -> None:
        await signal_tree(tree, name)
        signalled.set()

    monkeypatch.setattr(ProcessGroup, "signal", signal)
    settings = {"grace_s": 0.2, "stop_timeout_s": 60.0}
    async with the_engine("ignore=SIGTERM", **settings) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        life.supervision.stop()
        await signalled.wait()
        jumping_clock.jump(held)
        await life.over.wait()
        assert life.error is None
        assert any("still there 100 s after SIGTERM: killed" in line for line in engine.log.tail(3))


def test_elsewhere_what_is_configured_counts() -> None:
    assert [least_grace_s(platform, lambda: 4 << 40) for platform in ("linux", "win32")] == [0.0, 0.0]
    assert least_grace_s() >= 0.0


async def test_a_grace_longer_than_the_stop_timeout_leaves_time_for_sigkill(
    jumping_clock: trio.testing.MockClock,
) -> None:
    settings = {"grace_s": 1000.0, "stop_timeout_s": 400.0}
    async with the_engine("stop=1000", **settings) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        life.supervision.stop()
        await until(lambda: "asked to end" in engine.log.tail(1))
        jumping_clock.jump(400 * GRACE_SHARE)
        await life.over.wait()
        assert life.stopped, life.error


@pytest.mark.parametrize(
    "kind", ["group", pytest.param("session", marks=linux), pytest.param("orphan", marks=linux)]
)
@pytest.mark.parametrize("end", ["stop", "death", "cancel", "early"])
async def test_nothing_that_it_started_survives(kind: str, end: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    options = [f"lose={kind}", f"pids={pids}", *(["loading=1000"] if end == "early" else [])]
    async with the_engine(*options, grace_s=0.1) as engine:
        async with supervised(engine, "x") as life:
            if end == "early":
                await until(lambda: len(noted(pids)) == 2)
                os.kill(noted(pids)[0], signal.SIGKILL)
                await life.over.wait()
                assert life.error is not None
            else:
                await life.ready.wait()
                assert len(noted(pids)) == 2
                assert all(is_alive(pid) for pid in noted(pids))
            if end == "stop":
                await life.stop()
                assert life.stopped
            elif end == "death":
                os.kill(noted(pids)[0], signal.SIGKILL)
                await life.over.wait()
                assert life.died
            if end != "cancel":
                assert not any(is_alive(pid) for pid in noted(pids))
        with trio.fail_after(200):  # a cancelled life waits for nothing: the signal is on its way
            await until(lambda: not any(is_alive(pid) for pid in noted(pids)))


@linux
async def test_who_left_the_group_is_asked_to_end_too(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    waiting = {"grace_s": 3600.0, "stop_timeout_s": 4800.0}  # whoever is not asked would be waited for
    async with the_engine("lose=own", f"pids={pids}", **waiting) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert len(noted(pids)) == 2
        await life.stop()
        assert life.stopped
    assert "asked to end" in engine.log.tail(10)
    assert not any(is_alive(pid) for pid in noted(pids))


async def test_a_zombie_in_the_group_does_not_count_as_alive(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with the_engine("lose=zombie", f"pids={pids}") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        head, zombie = noted(pids)
        assert psutil.Process(zombie).status() == psutil.STATUS_ZOMBIE
        assert os.getpgid(zombie) == head
        # The head is gone, the group is not: its zombie has a parent of its own that does not wait for it.
        os.kill(head, signal.SIGSTOP)
        assert await ProcessGroup(head, "none", None).is_alive()
        os.kill(head, signal.SIGKILL)
        await life.over.wait()
        assert life.died


async def test_a_group_of_zombies_is_dead() -> None:
    # Two levels: this test is the parent of a process whose child, in a group of its own, is never waited for.
    script = (
        "import os, sys, time\n"
        "pid = os.fork()\n"
        "if pid == 0:\n os.setpgid(0, 0)\n os._exit(0)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "os.write(2, b'%d\\n' % pid)\ntime.sleep(60)\n"
    )
    with started([*PYTHON, "-c", script], stderr=subprocess.PIPE) as parent:
        assert parent.stderr is not None
        with parent.stderr:
            group = int(await trio.to_thread.run_sync(parent.stderr.readline))
        os.killpg(group, 0)  # does not fail, although nobody lives there
        tree = ProcessGroup(group, "none", None)
        with trio.fail_after(200):
            assert not await tree.is_alive()
        await tree.kill()
        tree.mark_dead()
        assert repr(tree) == f"<ProcessGroup {group} dead>"


async def test_a_dead_tree_is_never_signalled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ProcessGroup(os.getpid(), "none", None)
    tree.mark_dead()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("signalled"))
    await tree.signal("SIGTERM")
    await tree.kill()
    assert not await tree.is_alive()


async def test_cancellation_kills_at_once() -> None:
    async with the_engine("ignore=SIGTERM") as engine:
        async with supervised(engine, "x") as life:
            await life.ready.wait()
            assert life.endpoint is not None
            assert life.endpoint.pid is not None
        await until(lambda: not is_alive(life.endpoint.pid))  # type: ignore[union-attr, arg-type]


async def test_cancellation_at_any_moment_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with the_engine("lose=group", f"pids={pids}") as engine:
        for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05):
            async with supervised(engine, "x"):
                await trio.sleep(delay)
        with trio.fail_after(200):
            await until(lambda: not any(is_alive(pid) for pid in noted(pids)))
            # One that was killed before it could note its number may still be on its way out.
            await until(lambda: not [p for p in psutil.Process().children() if _is_engine(p)])


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and str(PROGRAM) in _words(process)
    return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_processes_are_reaped_by_one_thread_at_a_time() -> None:
    """As where several routers run in one program: looking at a process that has ended closes a file of it."""

    async def kill_one() -> None:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", "-c", ""], stdin=subprocess.DEVNULL
        )
        process.kill()
        process_tree.reap_later(process)

    def in_a_loop_of_its_own() -> None:
        async def many() -> None:
            for _ in range(20):
                await kill_one()
                process_tree.reap()

        trio.run(many)

    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trio.to_thread.run_sync, in_a_loop_of_its_own)


async def test_what_was_killed_does_not_stay_a_zombie_for_ever() -> None:
    async with the_engine() as engine:
        async with supervised(engine, "x") as life:
            await life.ready.wait()
        assert life.endpoint is not None
        assert life.endpoint.pid is not None
        await until(lambda: not is_alive(life.endpoint.pid))  # type: ignore[union-attr, arg-type]
        async with supervised(engine, "x") as life_two:  # the next start collects it
            await life_two.ready.wait()
            await life_two.stop()
        assert not psutil.pid_exists(life.endpoint.pid)


# Families that do not die when told


class Stubborn:
    """A tree, around a real one, of which something seems to survive `kills` kills."""

    def __init__(self, tree: Any, kills: float) -> None:
        self.tree, self.kills, self.pid = tree, kills, tree.pid
        self.tries = 0

    async def signal(self, name: str) -> None:
        await self.tree.signal(name)

    async def kill(self) -> None:
        await self.tree.kill()
        self.kills -= 1
        self.tries += 1

    def abandon(self) -> None:
        self.tree.abandon()

    async def is_alive(self) -> bool:
        return self.kills > 0 or await self.tree.is_alive()

    def members(self) -> Any:
        return self.tree.members()

    def mark_dead(self) -> None:
        self.tree.mark_dead()


def make_stubborn(monkeypatch: pytest.MonkeyPatch, kills: float) -> list[Stubborn]:
    start, made = process_start.start_tree, list[Stubborn]()

    async def start_stubborn(*arguments: Any, **more: Any) -> Any:
        process, tree = await start(*arguments, **more)
        made.append(Stubborn(tree, kills))
        return process, made[-1]

    monkeypatch.setattr(process_start, "start_tree", start_stubborn)
    return made


async def test_who_is_born_while_the_tree_is_killed_is_killed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = make_stubborn(monkeypatch, 3)
    async with the_engine(grace_s=0.05) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        await life.stop()
        assert life.stopped
        assert trees[0].kills <= 0


@pytest.mark.parametrize("end", ["stop", "death", "early", "deadline"])
async def test_what_cannot_be_killed_is_reported_and_taken_up_again(
    end: str, monkeypatch: pytest.MonkeyPatch, jumping_clock: trio.testing.MockClock
) -> None:
    trees = make_stubborn(monkeypatch, float("inf"))
    options = {"early": ["exit=1"], "deadline": ["loading=1000"]}.get(end, [])
    settings = {
        "grace_s": 0.05,
        "stop_timeout_s": 200.0,
        "start_timeout_s": 0.3 if end == "deadline" else 1000.0,
    }

    async def end_of_patience() -> None:
        for one in trees:
            one.tries = 0
        await until(lambda: trees and trees[0].tries)
        jumping_clock.jump(200)

    async with the_engine(*options, **settings) as engine:
        async with supervised(engine, "x") as life:
            if end in ("stop", "death"):
                await life.ready.wait()
                assert life.endpoint is not None
                if end == "stop":
                    life.supervision.stop()
                else:
                    os.kill(trees[0].pid, signal.SIGKILL)
            await end_of_patience()
            await life.over.wait()
            assert isinstance(life.error, EngineStopFailed)
            assert life.error.summary == (
                f"is still there 200 s after its stop (pid {trees[0].pid}), even after SIGKILL"
            )
        async with supervised(engine, "x", adopt=True) as again:
            await end_of_patience()
            await again.over.wait()
            assert isinstance(again.error, EngineStopFailed)
        trees[0].kills = 0
        async with supervised(engine, "x", adopt=True) as again:
            await again.over.wait()
            assert again.stopped
        assert len(trees) == 1


# Death


async def test_death_while_ready() -> None:
    async with the_engine("say=serving") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        with pytest.raises(httpx.HTTPError):
            await get(life.endpoint.base_url, "/exit/9")
        with trio.fail_after(200):
            await life.over.wait()
        assert life.died
        assert life.ended is not None
        assert life.ended.message == "exited with code 9"
        assert life.ended.log_tail[-2:] == ("serving", "exit 9")


# Output


async def test_the_log_file_gets_everything(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"before\n")
    async with (
        the_engine("say=one\\ntwo\\rthree\\xc3\\xbc", log_file=str(path)) as engine,
        supervised(engine, "x") as life,
    ):
        await life.ready.wait()
        await life.stop()
    assert path.read_bytes() == b"before\none\ntwo\rthree\xc3\xbc\n"
    assert engine.log.tail(2) == ("one", "threeü")


async def test_a_log_file_that_cannot_be_opened_prevents_the_start(tmp_path: Path) -> None:
    path = tmp_path / "no" / "engine.log"
    assert await refused(config("port={port}", log_file=str(path))) == (
        f"cannot be started: its log_file {path} cannot be written: No such file or directory"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
async def test_a_full_disk_does_not_end_the_engine() -> None:
    async with the_engine("say=one", log_file="/dev/full") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        await get(life.endpoint.base_url, "/say/two")
        await life.stop()
        assert life.stopped
    told = [line for line in engine.log.tail(10) if "log_file" in line]
    assert told == [
        f"[engine-router] the log_file cannot be written any more: [Errno {errno.ENOSPC}] No space left on device"
    ]
    assert "two" in engine.log.tail(10)


async def test_much_output_does_not_hold_an_engine_up() -> None:
    async with the_engine("say=" + "x" * 30 + "\\n") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        for _ in range(20):
            await get(
                life.endpoint.base_url, "/say/" + "y" * 3000
            )  # 60 KB and more fill a pipe that nobody reads
        await life.stop()
        assert life.stopped
        assert engine.log.count >= 20


def test_a_log_ring_keeps_the_last_lines() -> None:
    ring = LogRing(lines=3)
    for number in range(5):
        ring.feed(b"line %d\n" % number)
    assert ring.count == 5
    assert ring.tail(10) == ("line 2", "line 3", "line 4")
    assert ring.tail(1) == ("line 4",)
    assert ring.tail(0) == ()
    assert ring.since(4) == ("line 4",)
    assert ring.since(0) == ("line 2", "line 3", "line 4")
    assert ring.since(5) == ring.since(9) == ()


def test_a_log_ring_puts_split_lines_and_characters_together() -> None:
    ring = LogRing()
    for byte in "grün\nblau 🙂\n".encode():
        ring.feed(bytes([byte]))
    assert ring.tail(5) == ("grün", "blau 🙂")
    ring.feed(b"\xff\xfe bad\nno newline")
    assert ring.tail(1) == ("\ufffd\ufffd bad",)
    ring.flush()
    ring.flush()
    assert ring.tail(1) == ("no newline",)
    assert ring.count == 4


def test_a_log_ring_shows_the_last_state_of_a_progress_bar() -> None:
    ring = LogRing()
    ring.feed(b"10%\r50%\r100%\nwindows line\r\n\r\n")
    assert ring.tail(5) == ("100%", "windows line", "")


def test_a_log_ring_is_bounded() -> None:
    ring = LogRing(lines=4, line_bytes=10)
    ring.feed(b"a" * 95)
    assert [len(line) for line in ring.tail(10)] == [10] * 4
    assert ring.count == 9
    ring.flush()
    assert ring.tail(1) == ("aaaaa",)
    ring.feed(b"b" * 50 + b"\n")
    assert max(len(line) for line in ring.tail(10)) <= 10


async def test_a_log_ring_can_be_followed() -> None:
    ring = LogRing()
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring.grown)
            await trio.testing.wait_all_tasks_blocked()
            ring.write("now")


# Templates


def models_of(engine: str, paths: dict[str, str]) -> TemplateModels:
    models = {name: ModelConfig(engine=engine, path=path) for name, path in paths.items()}
    return TemplateModels(engine, Config(engines={engine: ProcessConfig(argv=("srv",))}, models=models))


def filled(argv: list[str], model: str | None, paths: dict[str, str] | None = None) -> list[str]:
    models = models_of("t", paths or {})
    engine = ProcessEngine("t", ProcessConfig(argv=tuple(argv)), ControlClient(), models=models)
    return engine.command(ResidentId("t", model), 1234)


def test_placeholders_are_filled_in_and_other_braces_stay() -> None:
    argv = [
        "srv",
        "-m",
        "{path}",
        "--alias={model}",
        "p{port}",
        "{port}{port}",
        '{"a":{}}',
        "{models}",
        "{ port }",
        "{}",
    ]
    assert filled(argv, "org/x", {"org/x": "/w/x.gguf"}) == [
        *[
            "srv",
            "-m",
            "/w/x.gguf",
            "--alias=org/x",
            "p1234",
            "12341234",
            '{"a":{}}',
            "{models}",
            "{ port }",
            "{}",
        ]
    ]


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert filled(["srv", "{model}", "{path}"], "{path}{port}", {"{path}{port}": "/{model}"}) == [
        *["srv", "{path}{port}", "/{model}"]
    ]


def test_a_home_folder_in_a_path_or_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    argv = ["~/bin/srv", "{path}", "~/as-it-is"]
    assert filled(argv, "x", {"x": "~/x.gguf"}) == ["/home/me/bin/srv", "/home/me/x.gguf", "~/as-it-is"]
    assert filled(["~nobody-of-this-name/srv"], None) == ["~nobody-of-this-name/srv"]


def test_a_model_without_a_path_stands_for_itself() -> None:
    assert filled(["srv", "{path}"], "org/x") == ["srv", "org/x"]


async def test_a_template_runs_once_for_each_model() -> None:
    settings = config(
        "port={port}", "models={model}", "say={path}", ready_path="/v1/models", ready_check="model:{model}"
    )
    async with (
        an_engine(settings, models=models_of("small", {"a": "/w/a"})) as engine,
        supervised(engine, "a") as one,
        supervised(engine, "b") as two,
    ):
        assert one.resident == ResidentId("small", "a")
        for life, model, path in ((one, "a", "/w/a"), (two, "b", "b")):
            await life.ready.wait()
            assert life.endpoint is not None
            port = address_of(life.endpoint.base_url)[1]
            assert await get(life.endpoint.base_url, "/argv") == [
                f"port={port}",
                f"models={model}",
                f"say={path}",
            ]
        assert one.endpoint != two.endpoint
        assert await engine.list_models() is None
        assert await engine.find() == []
        await one.stop()
        assert not two.over.is_set()
        await two.stop()


async def test_each_model_of_a_template_has_a_log_of_its_own() -> None:
    async with (
        an_engine(config("port={port}", "say=weights of {model}")) as engine,
        supervised(engine, "a") as one,
        supervised(engine, "b") as two,
    ):
        for life, model, other in ((one, "a", "b"), (two, "b", "a")):
            await life.ready.wait()
            lines = engine.logs.of(life.resident).tail(99)
            assert lines[0].startswith("[engine-router] started pid ")
            assert f"weights of {model}" in lines
            assert not any(f"weights of {other}" in line for line in lines)
            assert f"{model} | weights of {model}" in engine.log.tail(99)
        assert len(engine.log.tail(99)) == sum(
            engine.logs.of(life.resident).count for life in (one, two)
        )  # nothing twice


async def test_an_error_quotes_the_lines_of_its_own_model_only() -> None:
    async with (
        an_engine(config("port={port}", "say=weights of {model}")) as engine,
        supervised(engine, "a") as one,
        supervised(engine, "b") as two,
    ):
        await one.ready.wait()
        await two.ready.wait()
        assert one.endpoint is not None
        assert two.endpoint is not None
        await get(two.endpoint.base_url, "/say/error%20of%20b")
        with contextlib.suppress(httpx.HTTPError):
            await get(one.endpoint.base_url, "/exit/9")
        await one.over.wait()
        assert one.ended is not None
        assert one.ended.log_tail[-2:] == ("weights of a", "exit 9")
        assert not any("of b" in line for line in one.ended.log_tail)


def test_what_is_hidden_is_hidden_in_the_log_of_each_model() -> None:
    logs = EngineLogs()
    earlier = logs.of(ResidentId("e", "a"))
    logs.hide(lambda line: line.replace("hunter2", "***"))
    for ring in (earlier, logs.of(ResidentId("e", "b")), logs.engine):
        ring.write("password hunter2")
        assert ring.tail(1) == ("password ***",)
    assert logs.engine.tail(9) == ("a | password ***", "b | password ***", "password ***")


def test_logs_of_many_models_are_bounded() -> None:
    logs = EngineLogs()
    held = logs.of(ResidentId("e", "first"))
    for number in range(RESIDENT_LOGS + 5):
        logs.of(ResidentId("e", f"m{number}")).write("one line")
    assert logs.of(ResidentId("e", "m0")).count == 0, "the oldest went"
    assert logs.of(ResidentId("e", f"m{RESIDENT_LOGS + 4}")).count == 1
    assert logs.of(ResidentId("e", "first")) is held, "one that is in use is found"
    assert logs.engine.count == RESIDENT_LOGS + 5
    assert logs.engine.tail(1) == (f"m{RESIDENT_LOGS + 4} | one line",)


async def test_an_engine_without_a_template_is_one_resident() -> None:
    async with the_engine() as engine:
        assert engine.resident_of("a") == engine.resident_of("b") == ResidentId("small")


# Readiness


@pytest.mark.parametrize(
    ("path", "check", "seen"),
    [
        ("/health", "status == 200", None),
        ("/broken", "status==500", None),
        ("/health", "engine.state==ready", None),
        ("/health", "engine.state == broken", "engine.state is ready, not broken"),
        ("/v1/models", "model:b", None),
        ("/v1/models", "model:c", "does not list model 'c' yet"),
        ("/broken", "model:b", "answered 500"),
        ("/broken", "port", None),
    ],
)
async def test_ready_checks(
    path: str,
    check: str,
    seen: str | None,
    monkeypatch: pytest.MonkeyPatch,
    jumping_clock: trio.testing.MockClock,
) -> None:
    settings, looks = {"ready_path": path, "ready_check": check}, watched(monkeypatch)
    async with (
        the_engine("models=a,b", start_timeout_s=300.0, **settings) as engine,
        supervised(engine, "x") as life,
    ):
        if seen is None:
            await life.ready.wait()
        else:
            await until(lambda: looks[-1:] == [seen])
            jumping_clock.jump(300)
            await life.over.wait()
            assert isinstance(life.error, EngineStartTimeout)
            assert life.error.summary == f"was not ready within 300 s; {path} last: {seen}"


async def test_where_only_the_port_counts_an_engine_that_never_listens_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, jumping_clock: trio.testing.MockClock
) -> None:
    looks = watched(monkeypatch)
    silent = attrs.evolve(
        config(ready_check="port", start_timeout_s=300.0),
        argv=(*PYTHON, "-c", "import time; time.sleep(1000)", "{port}"),
    )
    async with an_engine(silent) as engine, supervised(engine, "x") as life:
        await until(lambda: looks[-1:] == ["does not accept connections"])
        jumping_clock.jump(300)
        await life.over.wait()
        assert isinstance(life.error, EngineStartTimeout)
        assert life.error.summary == "was not ready within 300 s; does not accept connections"


async def test_it_is_not_ready_before_it_says_so() -> None:
    async with the_engine("loading=0.3") as engine, supervised(engine, "x") as life:
        began = trio.current_time()
        await life.ready.wait()
        assert trio.current_time() - began > 0.25


# Lists of models


async def test_an_error_is_not_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    settings = config(f"port={port}", "loading=1000", base_url=f"http://127.0.0.1:{port}")
    monkeypatch.setattr("engine_router.engines.started.started_engine.LIST_TIMEOUT_S", 300.0)
    async with an_engine(settings) as engine:
        assert await engine.list_models() is None
        with started(command(f"port={port}", "loading=1000")):
            await until_listening(port)
            with pytest.raises(EngineUnreachable, match="answered GET /v1/models with 503"):
                await engine.list_models()
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mute.bind(("127.0.0.1", port))
            mute.listen()
            monkeypatch.setattr("engine_router.engines.started.started_engine.LIST_TIMEOUT_S", 0.1)
            with pytest.raises(EngineUnreachable, match=r"did not say within 0\.1 s"):
                await engine.list_models()


# Adoption


@asynccontextmanager
async def found_running(
    *options: str, grace_s: float = 700.0, **more: Any
) -> AsyncIterator[tuple[ProcessEngine, "subprocess.Popen[bytes]"]]:
    """Start an engine's very command as somebody else would, and make the engine that shall find it."""
    port = free_port()
    settings = config(f"port={port}", *options, base_url=f"http://127.0.0.1:{port}", grace_s=grace_s)
    async with an_engine(settings) as engine:
        assert await engine.find() == []
        with started(list(settings.argv), **more) as process:
            await until_listening(port)
            yield engine, process


@pytest.mark.parametrize("session", [True, False], ids=["own-group", "our-group"])
async def test_a_running_engine_is_found_and_stopped_on_demand(session: bool) -> None:
    async with found_running(start_new_session=session) as (engine, process):
        assert await engine.find() == [ResidentId("small")]
        async with supervised(engine, "x", adopt=True) as life:
            await life.ready.wait()
            assert life.endpoint is not None
            assert life.endpoint.pid == process.pid
            assert engine.log.tail(1) == (
                f"[engine-router] adopted pid {process.pid}, which runs this engine's command already",
            )
            await life.stop()
            assert life.stopped
            assert process.poll() == -signal.SIGTERM
        assert await engine.find() == []


async def test_an_adopted_engine_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    options = ("ignore=SIGTERM", "lose=session", f"pids={pids}")
    async with found_running(*options, grace_s=0.5) as (engine, process):
        async with supervised(engine, "x", adopt=True) as life:
            await life.ready.wait()
            await life.stop()
            assert life.stopped
        assert process.poll() == -signal.SIGKILL
        assert len(noted(pids)) == 2
        assert not any(is_alive(pid) for pid in noted(pids))


async def test_an_adopted_engine_survives_cancellation() -> None:
    async with found_running() as (engine, process):
        async with supervised(engine, "x", adopt=True) as life:
            await life.ready.wait()
        await trio.sleep(0.05)
        assert process.poll() is None
        assert await engine.find() == [ResidentId("small")]


async def test_the_death_of_an_adopted_engine_is_noticed_at_once() -> None:
    async with found_running() as (engine, process), supervised(engine, "x", adopt=True) as life:
        await life.ready.wait()
        process.kill()
        with trio.fail_after(200):
            await life.over.wait()
        assert life.died


async def test_the_children_of_an_adopted_engine_do_not_outlive_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with found_running("lose=session", f"pids={pids}") as (engine, process):
        async with supervised(engine, "x", adopt=True) as life:
            await life.ready.wait()
            process.kill()
            await life.over.wait()
            assert life.died
        assert not any(is_alive(pid) for pid in noted(pids))


async def test_what_was_found_may_have_gone_when_it_is_adopted() -> None:
    port = free_port()
    async with (
        an_engine(config(f"port={port}", base_url=f"http://127.0.0.1:{port}")) as engine,
        supervised(engine, "x", adopt=True) as life,
    ):
        await life.over.wait()
        assert life.error is not None
        assert life.error.summary == "was found running, but has gone meanwhile"


async def test_a_stranger_on_the_port_is_not_adopted() -> None:
    port = free_port()
    with started(command(f"port={port}", "models=theirs")):
        await until_listening(port)
        async with an_engine(config(f"port={port}", base_url=f"http://127.0.0.1:{port}")) as engine:
            assert await engine.find() == []
    with socket.socket() as listener:  # this very program
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert await head_of(port, psutil.Process().cmdline()) is None


async def test_a_master_and_its_worker_are_one_engine(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with found_running("lose=worker", f"pids={pids}", grace_s=0.5) as (engine, process):
        await until(lambda: len(noted(pids)) == 2)
        async with supervised(engine, "x", adopt=True) as life:
            await life.ready.wait()
            assert life.endpoint is not None
            assert life.endpoint.pid == process.pid == noted(pids)[0]
            await life.stop()
            assert life.stopped
        assert not any(is_alive(pid) for pid in noted(pids))


async def test_who_started_it_is_not_taken_for_it() -> None:
    """A terminal multiplexer has the engine's whole command at the end of its own, and much else to lose."""
    port = free_port()
    argv = command(f"port={port}")
    wrapper = "import subprocess, sys; subprocess.Popen(sys.argv[3:]).wait()"
    with started([sys.executable, "-c", wrapper, "new", "-d", *argv], start_new_session=True) as multiplexer:
        await until_listening(port)
        async with an_engine(config(f"port={port}", base_url=f"http://127.0.0.1:{port}")) as engine:
            assert await engine.find() == [ResidentId("small")]
            async with supervised(engine, "x", adopt=True) as life:
                await life.ready.wait()
                assert life.endpoint is not None
                assert life.endpoint.pid != multiplexer.pid
                await life.stop()
                assert life.stopped
                assert not any("killed" in line for line in engine.log.tail(5))
            assert await trio.to_thread.run_sync(multiplexer.wait) == 0


@pytest.mark.parametrize(
    ("words", "argv", "same"),
    [
        (["llama-server", "-m", "x"], ["llama-server", "-m", "x"], True),
        (["/usr/bin/llama-server", "-m", "x"], ["llama-server", "-m", "x"], True),
        (["/venv/bin/python3.12", "/venv/bin/vllm", "serve", "x"], ["vllm", "serve", "x"], True),
        (["python3", "-u", "/venv/bin/vllm", "serve", "x"], ["vllm", "serve", "x"], True),
        (["llama-server", "-m", "y"], ["llama-server", "-m", "x"], False),
        (["llama-server", "-m", "x", "-v"], ["llama-server", "-m", "x"], False),
        (["-m", "x"], ["llama-server", "-m", "x"], False),
        (["other-server", "-m", "x"], ["llama-server", "-m", "x"], False),
        (["tmux", "new", "llama-server", "-m", "x"], ["llama-server", "-m", "x"], False),
        (["SCREEN", "llama-server", "-m", "x"], ["llama-server", "-m", "x"], False),
        (["sudo", "llama-server", "-m", "x"], ["llama-server", "-m", "x"], False),
        (["less", "llama-server"], ["llama-server"], False),
        ([], ["llama-server"], False),
    ],
)
def test_the_very_command(words: list[str], argv: list[str], same: bool) -> None:
    process = SimpleNamespace(cmdline=lambda: words)
    assert runs(process, argv) is same  # type: ignore[arg-type]


def test_a_process_that_cannot_be_seen_runs_nothing() -> None:
    def cmdline() -> list[str]:
        raise psutil.AccessDenied(1)

    assert not runs(SimpleNamespace(cmdline=cmdline), ["x"])  # type: ignore[arg-type]


@pytest.mark.parametrize("session", [True, False])
async def test_the_routers_own_process_group_is_never_signalled(
    session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: groups.append(group))
    with started(command(), start_new_session=session) as process:
        tree = AdoptedTree(psutil.Process(process.pid))
        await tree.signal("SIGTERM")
        assert groups == ([process.pid] if session else [])
        if session:
            # Were the router a member of that group, its head would be signalled alone.
            monkeypatch.setattr(os, "getpgrp", lambda: process.pid)
            await tree.signal("SIGTERM")
            assert groups == [process.pid]
        assert await trio.to_thread.run_sync(process.wait) == -signal.SIGTERM
        assert not await tree.is_alive()
        assert repr(tree) == f"<AdoptedTree {process.pid}>"
        await tree.kill()
        await tree.signal("SIGTERM")
        tree.mark_dead()


async def test_waiting_for_an_adopted_process_without_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.engines.process.adopted.POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(sys, "platform", "darwin")
    with started(command()) as process, trio.fail_after(200):
        tree = AdoptedTree(psutil.Process(process.pid))
        with trio.move_on_after(0.03):
            await tree.wait()
            pytest.fail("it is still alive")
        process.kill()
        await tree.wait()


# The router's own death

ROUTER = """
import sys, trio
from engine_router.config import Config, ModelConfig, ProcessConfig
from engine_router.config.template import TemplateModels
from engine_router.engines.base import Supervision
from engine_router.engines.process.process_tree import Guardian, ProcessTree
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.upstream.control_client import control_client

async def main():
    guardian = Guardian()
    async with control_client() as client, trio.open_nursery() as nursery:
        await nursery.start(guardian.run)
        engine = ProcessEngine("small", ProcessConfig(argv=tuple(sys.argv[1:])), client, guardian=guardian)
        ready = lambda endpoint: print("ready", flush=True)
        await engine.run_resident(engine.resident_of("x"), Supervision(ready))

trio.run(main)
"""


def guardian_of(router: int) -> psutil.Process | None:
    for child in psutil.Process(router).children():
        if any(word.endswith("guardian.py") for word in _words(child)):
            return child
    return None


@asynccontextmanager
async def a_router(pids: Path) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """Run a router in a process of its own, with an engine that has children everywhere."""
    engine = command("port={port}", "lose=session", f"pids={pids}", "ignore=SIGTERM")
    argv = [sys.executable, "-c", ROUTER, *engine]
    with started(argv, start_new_session=True, stdout=subprocess.PIPE) as router:
        assert router.stdout is not None
        with router.stdout, trio.fail_after(200):
            assert await trio.to_thread.run_sync(router.stdout.readline) == b"ready\n"
            yield router


async def test_the_death_of_the_router_ends_its_engines(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with a_router(pids) as router:
        assert len(noted(pids)) == 2
        assert all(is_alive(pid) for pid in noted(pids))
        guardian = guardian_of(router.pid)
        assert guardian is not None
        router.kill()
        gone = noted(pids)[: 2 if sys.platform == "linux" else 1]
        with trio.fail_after(200):
            await until(lambda: not any(is_alive(pid) for pid in gone))
            await until(lambda: not is_alive(guardian.pid))


async def test_a_killed_guardian_is_replaced_and_knows_everything(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with a_router(pids) as router:
        first = guardian_of(router.pid)
        assert first is not None
        first.kill()
        await until(lambda: guardian_of(router.pid) not in (None, first))
        assert all(is_alive(pid) for pid in noted(pids))
        await trio.sleep(0.05)  # its line is written right after its start
        router.kill()
        with trio.fail_after(200):
            await until(lambda: not is_alive(noted(pids)[0]))


def ignores(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process ignores a signal by now; elsewhere than on Linux that is not told."""
    if sys.platform != "linux":
        return True
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


async def test_a_guardian_survives_what_ends_the_routers_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with a_router(pids) as router:
        guardian = guardian_of(router.pid)
        assert guardian is not None
        await until(lambda: ignores(guardian.pid, signal.SIGHUP))
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            guardian.send_signal(signal.Signals[name])
        assert os.getpgid(guardian.pid) != os.getpgid(router.pid)
        await trio.sleep(0.05)
        assert guardian.is_running()


async def test_a_guardian_kills_only_what_is_registered_when_its_line_ends() -> None:
    with (
        started(command(), start_new_session=True) as kept,
        started(command(), start_new_session=True) as lost,
    ):
        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                guardian = Guardian()
                guardian.watch(kept.pid)  # before it runs
                await nursery.start(guardian.run)
                guardian.watch(lost.pid)
                guardian.forget(kept.pid)
                guardian.forget(kept.pid)
                nursery.cancel_scope.cancel()
            await until(lambda: lost.poll() is not None)
        assert kept.poll() is None


async def test_a_guardian_is_told_when_a_tree_is_dead() -> None:
    class Watcher(Guardian):
        def __init__(self) -> None:
            super().__init__()
            self.deeds: list[str] = []

        def watch(self, group: int) -> None:
            self.deeds.append(f"+{group}")

        def forget(self, group: int) -> None:
            self.deeds.append(f"-{group}")

    watcher = Watcher()
    async with an_engine(config("port={port}"), guardian=watcher) as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        assert watcher.deeds == [f"+{life.endpoint.pid}"]
        await life.stop()
        assert watcher.deeds == [f"+{life.endpoint.pid}", f"-{life.endpoint.pid}"]


@linux
def test_carriers_of_a_marker() -> None:
    with started(command(), env={**os.environ, MARKER_VARIABLE: "abc123"}) as process:
        deadline = time.monotonic() + 200
        while process.pid not in carriers({"abc123"}) and time.monotonic() < deadline:
            time.sleep(0.005)  # until the new program is in place
        assert carriers({"abc123", "other"}) == [process.pid]
        assert carriers({"abc12"}) == [process.pid]  # a router's own part of its trees' markers
        assert carriers({"bc123"}) == carriers(set()) == []


@linux
async def test_a_guardian_kills_what_was_started_but_not_registered_yet() -> None:
    guardian = Guardian()
    surroundings = {**os.environ, MARKER_VARIABLE: guardian.new_marker()}
    with started(command(), env=surroundings, start_new_session=True) as process, trio.fail_after(200):
        await until(lambda: process.pid in carriers({surroundings[MARKER_VARIABLE]}))
        async with trio.open_nursery() as nursery:
            await nursery.start(guardian.run)
            nursery.cancel_scope.cancel()
        await until(lambda: process.poll() is not None)


# Windows: its calls are injected


class Kernel32:
    """The functions of kernel32 that job objects need; notes how they are called."""

    def __init__(self, *, fail: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.limit_flags = 0

        def function(name: str, result: Any) -> Any:
            def call(*arguments: Any) -> Any:
                self.calls.append((name, *(getattr(a, "value", a) for a in arguments)))
                if name == "SetInformationJobObject":
                    limits = ctypes.cast(arguments[2], ctypes.POINTER(ctypes.c_uint32 * 6)).contents
                    self.limit_flags = limits[4]
                if name == "QueryInformationJobObject":
                    ctypes.cast(arguments[2], ctypes.POINTER(ctypes.c_uint32 * 12)).contents[10] = 3
                return 0 if name == fail else result

            return call

        self.CreateJobObjectW = function("CreateJobObjectW", 0x1_0000_0007)
        self.SetInformationJobObject = function("SetInformationJobObject", 1)
        self.AssignProcessToJobObject = function("AssignProcessToJobObject", 1)
        self.TerminateJobObject = function("TerminateJobObject", 1)
        self.QueryInformationJobObject = function("QueryInformationJobObject", 1)
        self.CloseHandle = function("CloseHandle", 1)


def test_job_objects_kill_their_members_when_closed() -> None:
    kernel32 = Kernel32()
    jobs = KernelJobs(kernel32)
    job = jobs.create()
    assert job == 0x1_0000_0007  # wider than an int, and kept whole in every call
    assert kernel32.limit_flags == 0x2000
    assert kernel32.calls[1][1:3] == (job, 9)
    jobs.assign(job, 42)
    jobs.terminate(job)
    assert jobs.members(job) == 3
    jobs.close(job)
    assert kernel32.calls[2:4] == [("AssignProcessToJobObject", job, 42), ("TerminateJobObject", job, 1)]
    assert kernel32.calls[4][:3] == ("QueryInformationJobObject", job, 1)
    assert kernel32.calls[5] == ("CloseHandle", job)


@pytest.mark.parametrize(
    "name",
    ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject", "QueryInformationJobObject"],
)
def test_failed_calls_on_job_objects_are_errors(name: str) -> None:
    jobs = KernelJobs(Kernel32(fail=name))
    with pytest.raises(OSError, match="job object"):  # noqa: PT012 - one of these
        job = jobs.create()
        jobs.assign(job, 1)
        jobs.members(job)


class ScriptedJobs:
    """Job objects that note what is asked of them."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.deeds: list[tuple[Any, ...]] = []
        self.refuse = refuse
        self.living = 1

    def create(self) -> int:
        return 5

    def assign(self, job: int, process: int) -> None:
        self.deeds.append(("assign", job, process))
        if self.refuse:
            raise OSError("a call on a job object failed")

    def terminate(self, job: int) -> None:
        self.deeds.append(("terminate", job))
        self.living = 0

    def members(self, job: int) -> int:
        return self.living

    def close(self, job: int) -> None:
        self.deeds.append(("close", job))


class WindowsProcess:
    def __init__(self) -> None:
        self.pid, self.killed = 77, False
        self._proc = SimpleNamespace(_handle=99)

    def kill(self) -> None:
        self.killed = True


async def start_on_windows(monkeypatch: pytest.MonkeyPatch, jobs: ScriptedJobs) -> tuple[WindowsProcess, Any]:
    process, given = WindowsProcess(), {}

    async def open_process(argv: list[str], **more: Any) -> WindowsProcess:
        given.update(more, argv=argv)
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    try:
        _, tree = await JobTree.start(["srv.exe"], env={"A": "b"}, cwd=None, jobs=jobs)
    except OSError as error:
        return process, error
    assert given["argv"] == ["srv.exe"]
    assert given["creationflags"] == 0x200
    assert given["stdout"] == subprocess.PIPE
    return process, tree


async def test_a_process_tree_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ScriptedJobs()
    process, tree = await start_on_windows(monkeypatch, jobs)
    assert tree.pid == process.pid
    assert jobs.deeds == [("assign", 5, 99)]
    assert await tree.is_alive()
    await tree.signal("SIGTERM")
    assert jobs.deeds[1:] == [("terminate", 5)]
    assert not await tree.is_alive()
    tree.mark_dead()
    tree.mark_dead()
    await tree.kill()
    assert jobs.deeds[2:] == [("close", 5)]
    assert not await tree.is_alive()


async def test_a_process_that_fits_into_no_job_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ScriptedJobs(refuse=True)
    process, outcome = await start_on_windows(monkeypatch, jobs)
    assert isinstance(outcome, OSError)
    assert process.killed
    assert jobs.deeds[1:] == [("close", 5)]
