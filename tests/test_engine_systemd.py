"""Engines of type `systemd`, with a systemctl on PATH that plays a manager, and once with the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve
from support.scripted import (
    Answer,
    Call,
    ScriptedLlamaRouter,
    ScriptedServer,
    SupervisedResident,
    as_json,
    supervised,
    until,
)
from support.scripted.server import Handler
from trio.testing import MockClock

from engine_router.config import SleepConfig, SystemdConfig, parse_config
from engine_router.config.kinds import Name
from engine_router.engines.base import Endpoint, ResidentId
from engine_router.engines.remote.systemd_engine import SystemdEngine, UnitState
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.errors import EngineStartFailed, EngineStartTimeout, EngineStopFailed, EngineUnreachable
from engine_router.upstream.control_client import control_client

PATIENCE_S = 300

FAKE = """#!{python} -S
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "calls", "a") as calls:
    calls.write(" ".join(sys.argv) + "\\n")
state = json.loads((folder / "state").read_text())
plan = json.loads((folder / "plan").read_text())
if sys.argv[0].endswith("journalctl"):
    print("loading weights\\nout of memory")
    sys.exit()
verb = next(word for word in sys.argv[1:] if not word.startswith("-"))
if verb in plan.get("refuse", []):
    words = f"Failed to {{verb}} fake.service: Interactive authentication required."
    print(plan.get("words", words), file=sys.stderr)
    sys.exit(4)
if verb == "show":
    print("\\n".join(f"{{key}}={{value}}" for key, value in state.items()))
else:
    state.update(plan.get(verb, {{}}))
    (folder / "new").write_text(json.dumps(state))
    (folder / "new").rename(folder / "state")
"""

RUNNING = {"ActiveState": "active", "SubState": "running", "MainPID": 4711, "Result": "success", "Job": ""}
STARTING = {**RUNNING, "ActiveState": "activating", "SubState": "start"}
RESTARTING = {
    **STARTING,
    "SubState": "auto-restart",
    "MainPID": 0,
    "Result": "exit-code",
    "ExecMainStatus": 1,
}
AT_REST = {"ActiveState": "inactive", "SubState": "dead", "MainPID": 0, "Result": "success", "NRestarts": 0}
FAILED = {
    **AT_REST,
    "ActiveState": "failed",
    "SubState": "failed",
    "Result": "exit-code",
    "ExecMainStatus": 203,
}


class Manager:
    """The fake systemctl, seen from the test. `plan` maps a verb to what it changes in the unit's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.set(AT_REST)
        self.plan(start=RUNNING, stop=AT_REST)
        for command in ("systemctl", "journalctl"):
            (folder / command).write_text(FAKE.format(python=sys.executable, folder=str(folder)))
            (folder / command).chmod(0o755)

    def set(self, state: dict[str, object]) -> None:
        new = self.folder / "set"
        new.write_text(json.dumps({"LoadState": "loaded", "NRestarts": 0, "ExecMainStatus": 0, **state}))
        new.rename(self.folder / "state")

    @property
    def state(self) -> dict[str, object]:
        return dict(json.loads((self.folder / "state").read_text()))

    def plan(self, **verbs: object) -> None:
        (self.folder / "plan").write_text(json.dumps(verbs))

    @property
    def calls(self) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.rpartition("/")[2] for line in lines]

    async def shown(self) -> None:
        """Wait until somebody has looked at the unit, and has read what was said."""
        before = self.looks
        await until(lambda: self.looks >= before + 2)

    @property
    def looks(self) -> int:
        return sum(" show" in call for call in self.calls) if (self.folder / "calls").exists() else 0


async def stopped_in_vain(resident: SupervisedResident, manager: Manager, clock: MockClock) -> None:
    resident.supervision.stop()
    await manager.shown()
    clock.jump(PATIENCE_S)
    await resident.over.wait()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Manager(tmp_path)


def configured(base_url: str, **options: object) -> SystemdConfig:
    lines = {
        "base_url": base_url,
        "unit": "fake.service",
        # None of these ends within a test, unless its clock jumps.
        "start_timeout_s": PATIENCE_S,
        "stop_timeout_s": PATIENCE_S,
        **options,
    }
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    config = parse_config(f'[engines.unit]\ntype = "systemd"\n{text}').engines[Name("unit")]
    assert isinstance(config, SystemdConfig)
    return config


@asynccontextmanager
async def engine_and_server(**options: object) -> AsyncIterator[tuple[SystemdEngine, ScriptedServer]]:
    server = ScriptedLlamaRouter("m")
    with trio.fail_after(1000):  # more than a clock jumps in any test
        async with server.running(), control_client() as client:
            yield SystemdEngine("unit", configured(server.base_url, **options), client), server


class ScriptedSleeper(ScriptedServer):
    """A server that sleeps as vLLM does."""

    asleep = False

    def routes(self) -> Mapping[str, Handler]:
        return {
            "GET /health": self.say,
            "GET /is_sleeping": self.say,
            "POST /sleep": self.change,
            "POST /wake_up": self.change,
        }

    async def say(self, _call: Call) -> Answer:
        return as_json({"is_sleeping": self.asleep})

    async def change(self, call: Call) -> Answer:
        self.asleep = call.path == "/sleep"
        return as_json({})


async def test_a_unit_sleeps_is_woken_and_is_stopped_with_the_router(manager: Manager) -> None:
    server = ScriptedSleeper()
    with trio.fail_after(200):
        async with server.running(), control_client() as client, trio.open_nursery() as nursery:
            sleep_registry = SleepRegistry()
            await nursery.start(sleep_registry.run)
            config = evolve(configured(server.base_url), sleep=SleepConfig(kind="vllm", verify=False))
            engine = SystemdEngine("unit", config, client, sleep_registry=sleep_registry)
            for woken in (False, True):
                async with supervised(engine, "m") as resident:
                    await resident.ready.wait()
                    assert resident.supervision.woken is woken
                    assert not server.asleep
                    assert await engine.find() == [ResidentId("unit")]
                    await resident.stop()
                    assert resident.ended is not None
                    assert resident.ended.asleep
                assert server.asleep
                assert await engine.find() == []
                assert manager.state["ActiveState"] == "active"
            await sleep_registry.close()
            assert manager.state["ActiveState"] == "inactive"
            nursery.cancel_scope.cancel()


async def test_a_unit_that_was_found_asleep_is_woken(manager: Manager) -> None:
    server = ScriptedSleeper()
    server.asleep = True
    manager.set(RUNNING)
    with trio.fail_after(200):
        async with server.running(), control_client() as client, trio.open_nursery() as nursery:
            sleep_registry = SleepRegistry()
            await nursery.start(sleep_registry.run)
            config = evolve(configured(server.base_url), sleep=SleepConfig(kind="vllm", verify=False))
            engine = SystemdEngine("unit", config, client, sleep_registry=sleep_registry)
            assert await engine.find() == []
            async with supervised(engine, "m") as resident:
                await resident.ready.wait()
                assert resident.supervision.woken
                resident.supervision.stop(for_good=True)
                await resident.over.wait()
                assert manager.state["ActiveState"] == "inactive"
            nursery.cancel_scope.cancel()


async def test_a_unit_is_started_found_and_stopped(manager: Manager) -> None:
    async with engine_and_server() as (engine, server):
        assert await engine.find() == []
        async with supervised(engine, "any") as resident:
            await resident.ready.wait()
            assert resident.endpoint == Endpoint(server.base_url, 4711)
            assert await engine.find() == [ResidentId("unit")]
            assert await engine.list_models() == ("m",)
            await resident.stop()
            assert resident.stopped, resident.error
        assert await engine.find() == []
        assert "systemctl --user --no-ask-password start --no-block -- fake.service" in manager.calls
        assert "systemctl --user --no-ask-password stop --no-block -- fake.service" in manager.calls


async def test_a_system_unit_goes_through_the_prefix(manager: Manager) -> None:
    async with (
        engine_and_server(scope="system", prefix=["env", "LANG=C"]) as (engine, _),
        supervised(engine, "m") as it,
    ):
        await it.ready.wait()
        assert "systemctl --no-ask-password start --no-block -- fake.service" in manager.calls


async def test_a_slow_start_is_waited_for(manager: Manager) -> None:
    manager.plan(start=STARTING, stop=AT_REST)
    async with engine_and_server() as (engine, server), supervised(engine, "m") as resident:
        server.script.answers["/health"] = as_json({"error": "loading"}, 503)
        await until(lambda: manager.state["ActiveState"] == "activating")
        manager.set(RUNNING)
        await trio.sleep(0.2)
        assert not resident.ready.is_set()
        del server.script.answers["/health"]
        await resident.ready.wait()


async def test_somebody_elses_answer_is_not_readiness(manager: Manager) -> None:
    manager.plan(start=STARTING, stop=AT_REST)
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await until(
            lambda: "show" in "".join(manager.calls) if (manager.folder / "calls").exists() else False
        )
        await trio.sleep(0.2)
        assert not resident.ready.is_set()
        manager.set(RUNNING)
        await resident.ready.wait()


async def test_a_failed_start_is_told_at_once_with_the_journal(manager: Manager) -> None:
    manager.plan(start=FAILED, stop=AT_REST)
    async with engine_and_server() as (engine, server), supervised(engine, "m") as resident:
        server.script.answers["/health"] = as_json({}, 503)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "exit status 203" in str(resident.error)
        assert resident.error.log_tail == ("loading weights", "out of memory")


async def test_a_unit_that_exits_again_and_again_is_given_up_and_stopped(manager: Manager) -> None:
    manager.plan(start={**RESTARTING, "NRestarts": 0}, stop=AT_REST)
    async with engine_and_server() as (engine, server), supervised(engine, "m") as resident:
        server.script.answers["/health"] = as_json({}, 503)
        await until(lambda: manager.state["SubState"] == "auto-restart")
        await manager.shown()
        manager.set({**RESTARTING, "NRestarts": 1})
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "exited 2 times" in str(resident.error)
        assert manager.state["ActiveState"] == "inactive"


async def test_a_refused_start_says_why(manager: Manager) -> None:
    manager.plan(refuse=["start"], stop=AT_REST)
    async with engine_and_server(scope="system") as (engine, _), supervised(engine, "m") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert "authentication required" in str(resident.error)
        assert "sudo" in str(resident.error)


async def test_a_start_that_takes_too_long_is_undone(manager: Manager, jumping_clock: MockClock) -> None:
    manager.plan(start=STARTING, stop=AT_REST)
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await until(lambda: manager.state["ActiveState"] == "activating")
        await manager.shown()
        jumping_clock.jump(PATIENCE_S)
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartTimeout)
        assert "activating" in str(resident.error)
        assert manager.state["ActiveState"] == "inactive"


async def test_a_stop_interrupts_a_start(manager: Manager) -> None:
    manager.plan(start=STARTING, stop=AT_REST)
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await until(lambda: manager.state["ActiveState"] == "activating")
        await resident.stop()
        assert resident.stopped
        assert resident.endpoint is None
        assert manager.state["ActiveState"] == "inactive"


async def test_a_unit_that_does_not_stop_is_an_error_and_can_be_taken_up(
    manager: Manager, jumping_clock: MockClock
) -> None:
    manager.plan(start=RUNNING, stop={"ActiveState": "deactivating", "SubState": "stop-sigterm"})
    async with engine_and_server() as (engine, _):
        async with supervised(engine, "m") as resident:
            await resident.ready.wait()
            await stopped_in_vain(resident, manager, jumping_clock)
            assert isinstance(resident.error, EngineStopFailed)
            assert "deactivating" in str(resident.error)
        manager.plan(stop=AT_REST)
        async with supervised(engine, "m", adopt=True) as again:
            await again.stop()
            assert again.stopped


async def test_a_refused_stop_is_told_at_once(manager: Manager) -> None:
    manager.plan(start=RUNNING, refuse=["stop"])
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        await resident.stop()
        assert isinstance(resident.error, EngineStopFailed)
        assert "authentication required" in str(resident.error)


async def test_a_process_left_behind_is_not_stopped(manager: Manager, jumping_clock: MockClock) -> None:
    manager.plan(start=RUNNING, stop={**AT_REST, "MainPID": 4711})
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        await stopped_in_vain(resident, manager, jumping_clock)
        assert isinstance(resident.error, EngineStopFailed)


async def test_a_doubted_unit_that_is_well_goes_on(manager: Manager) -> None:
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        resident.supervision.doubt()
        await trio.sleep(0.2)
        assert not resident.over.is_set()


async def test_a_doubted_unit_that_failed_has_ended(manager: Manager) -> None:
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        manager.set(FAILED)
        resident.supervision.doubt()
        await resident.over.wait()
        assert resident.died
        assert "failed" in str(resident.ended)


async def test_a_unit_that_systemd_restarts_is_given_a_moment(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_router.engines.remote.systemd_engine.REVIVE_S", 300)
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        manager.set({**RESTARTING, "NRestarts": 1})
        resident.supervision.doubt()
        await trio.sleep(0.1)
        manager.set({**RUNNING, "MainPID": 4712, "NRestarts": 1})
        await trio.sleep(0.3)
        assert not resident.over.is_set()


async def test_a_unit_that_keeps_loading_after_a_restart_has_died_and_is_stopped(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_router.engines.remote.systemd_engine.REVIVE_S", 0.1)
    async with engine_and_server() as (engine, server), supervised(engine, "m") as resident:
        await resident.ready.wait()
        server.script.answers["/health"] = as_json({}, 503)
        manager.set({**RUNNING, "MainPID": 4712, "NRestarts": 1})
        resident.supervision.doubt()
        await resident.over.wait()
        assert resident.died
        assert resident.ended is not None
        assert resident.ended.message.startswith(
            "was restarted by systemd and is not ready again: fake.service is"
        )
        assert manager.state["ActiveState"] == "inactive"


async def test_a_busy_unit_is_not_dead(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.engines.remote.systemd_engine.REVIVE_S", 0.1)
    async with engine_and_server() as (engine, server), supervised(engine, "m") as resident:
        await resident.ready.wait()
        server.script.answers["/health"] = as_json({}, 503)
        resident.supervision.doubt()
        await trio.sleep(0.3)
        assert not resident.over.is_set()


async def test_a_running_unit_is_adopted_and_a_resting_one_is_not(manager: Manager) -> None:
    async with engine_and_server() as (engine, _):
        async with supervised(engine, "m", adopt=True) as resident:
            await resident.over.wait()
            assert resident.died
        manager.set(STARTING)
        assert await engine.find() == [ResidentId("unit")]
        async with supervised(engine, "m", adopt=True) as resident:
            await trio.sleep(0.1)
            manager.set(RUNNING)
            await resident.ready.wait()
        assert not any(" start " in call for call in manager.calls)


async def test_an_error_while_asking_is_never_taken_for_at_rest(
    manager: Manager, jumping_clock: MockClock
) -> None:
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        manager.plan(refuse=["show"], stop=AT_REST)
        with pytest.raises(EngineUnreachable, match="authentication"):
            await engine.find()
        await stopped_in_vain(resident, manager, jumping_clock)
        assert isinstance(resident.error, EngineStopFailed)


BUS = "Failed to connect to bus: No such file or directory"


async def test_a_start_that_nobody_hears_is_told_at_once_and_holds_nothing(manager: Manager) -> None:
    manager.plan(refuse=["start", "stop", "show"], words=BUS)
    async with (
        engine_and_server(scope="user") as (engine, _),
        supervised(engine, "m") as resident,
    ):
        await resident.over.wait()
        assert isinstance(resident.error, EngineStartFailed)
        assert not isinstance(resident.error, EngineStopFailed)
        assert "Failed to connect to bus" in str(resident.error)
        assert "loginctl enable-linger" in str(resident.error)
        assert not any(" stop " in call for call in manager.calls)


async def test_a_unit_that_cannot_be_started_but_is_there_holds_its_memory(manager: Manager) -> None:
    manager.set(RUNNING)
    manager.plan(refuse=["start", "stop"])
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.over.wait()
        assert isinstance(resident.error, EngineStopFailed)


async def test_a_stop_that_nobody_hears_fails_at_once(manager: Manager) -> None:
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        await resident.ready.wait()
        manager.plan(refuse=["stop", "show"], words=BUS)
        await resident.stop()
        assert isinstance(resident.error, EngineStopFailed)
        assert "cannot be controlled: it cannot be looked at" in str(resident.error)


async def test_the_remedy_for_an_unknown_unit_is_its_name(manager: Manager) -> None:
    manager.plan(refuse=["start"], words="Failed to start fake.service: Unit fake.service not found.")
    async with engine_and_server(scope="user") as (engine, _), supervised(engine, "m") as resident:
        await resident.over.wait()
        assert "check the name in `unit`" in str(resident.error)
        assert "loginctl" not in str(resident.error)


async def test_without_systemd_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with engine_and_server() as (engine, _), supervised(engine, "m") as resident:
        with pytest.raises(EngineUnreachable, match="systemctl was not found"):
            await engine.find()
        await resident.over.wait()
        assert "install systemd" in str(resident.error)


@pytest.mark.parametrize("text", ["", "ActiveState=", "ActiveState=active\nMainPID=x"])
def test_answers_of_another_shape_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        UnitState.parse(text)


def user_manager_runs() -> bool:
    try:
        done = subprocess.run(
            ["systemctl", "--user", "is-system-running"], capture_output=True, check=False, timeout=200
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() in (b"running", b"degraded")


SERVE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
HTTPServer(("127.0.0.1", %d), Handler).serve_forever()
"""


async def test_a_real_unit_with_restart_always() -> None:
    if not await trio.to_thread.run_sync(user_manager_runs):
        pytest.skip("no systemd user manager runs here")
    sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = sockets[0].socket.getsockname()[1]
    await sockets[0].aclose()
    name = f"engine-router-test-{port}.service"
    unit = trio.Path("~/.config/systemd/user") / name
    unit = await unit.expanduser()
    await unit.parent.mkdir(parents=True, exist_ok=True)
    script = unit.with_suffix(".py")
    await script.write_text(SERVE % port)
    await unit.write_text(
        f"[Service]\nExecStart={sys.executable} {script}\nRestart=always\nTimeoutStopSec=5\n"
    )
    try:
        await trio.run_process(["systemctl", "--user", "daemon-reload"])
        config = configured(f"http://127.0.0.1:{port}", unit=name, start_timeout_s=20, stop_timeout_s=10)
        with trio.fail_after(200):
            async with control_client() as client:
                engine = SystemdEngine("unit", config, client)
                async with supervised(engine, "m") as resident:
                    await resident.ready.wait()
                    assert await engine.find() == [ResidentId("unit")]
                    await resident.stop()
                    assert resident.stopped
                assert await engine.find() == []
    finally:
        await unit.unlink()
        await script.unlink()
        await trio.run_process(["systemctl", "--user", "daemon-reload"], check=False)
