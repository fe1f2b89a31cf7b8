"""Sleep instead of stop: real processes that sleep as vLLM and SGLang do, units and servers of others."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
from support.cancel_at import CancelAt
from support.ports import free_port
from support.scripted import SupervisedResident, supervised, until
from support.scripted.server import Answer, Call, Handler, ScriptedServer, as_json

import engine_router
from engine_router.config import (
    CallConfig,
    HttpConfig,
    LoadedConfig,
    ProcessConfig,
    SleepConfig,
    parse_config,
)
from engine_router.engines.base import Ended, ResidentId
from engine_router.engines.ports import is_taken
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian
from engine_router.engines.remote.http_engine import HttpEngine
from engine_router.engines.remote.lifecycle import woken
from engine_router.engines.sleep import resident_sleep as sleep_module
from engine_router.engines.sleep import verification
from engine_router.engines.sleep.calls import SleepCall, plan_of
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.upstream.control_client import ControlClient, control_client

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups")

PROGRAM = str(Path(__file__).parent / "programs" / "sleeping_engine.py")
DEEP = SleepConfig(kind="vllm", level=2, verify=False)
LIGHT = SleepConfig(kind="vllm", verify=False)
SGLANG = SleepConfig(kind="sglang", verify=False)
CUSTOM = SleepConfig(
    kind="custom",
    path="/sleep",
    wake=(CallConfig(path="/wake_up"),),
    asleep_path="/is_sleeping",
    asleep_check="is_sleeping==true",
    verify=False,
)
RESIDENT = ResidentId("sleepy")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start takes milliseconds here; a wake may take as long as a busy machine needs."""
    monkeypatch.setattr(sleep_module, "MIN_WAKE_S", 300.0)


SLEPT = Ended(stopped=True, message="sleeps", asleep=True)


def config(*options: str, sleep: SleepConfig | None = DEEP, **settings: Any) -> ProcessConfig:
    # None of these ends within a test, unless the test says so.
    settings = {"start_timeout_s": 1000.0, "stop_timeout_s": 1000.0, "grace_s": 700.0, **settings}
    argv = (sys.executable, "-I", "-S", PROGRAM, *options)
    return ProcessConfig(argv=argv, sleep=sleep, **settings)  # type: ignore[arg-type]


class House:
    """An engine, the sleep registry that it uses, and what its processes were asked."""

    def __init__(self, engine: ProcessEngine, sleep_registry: SleepRegistry, file: Path) -> None:
        self.engine = engine
        self.sleep_registry = sleep_registry
        self._file = file

    @property
    def calls(self) -> list[str]:
        return self._file.read_text("ascii").split()

    def reconfigure(self, changed: ProcessConfig, client: ControlClient) -> None:
        """Exchange the engine for one of another configuration, as a reload does."""
        self.engine = ProcessEngine("sleepy", changed, client, sleep_registry=self.sleep_registry)


@asynccontextmanager
async def a_house(folder: Path, *options: str, **settings: Any) -> AsyncIterator[House]:
    file = folder / "calls"
    port = [] if "base_url" in settings else ["port={port}"]
    with trio.fail_after(500):
        async with control_client() as client, trio.open_nursery() as nursery:
            sleep_registry = SleepRegistry()
            await nursery.start(sleep_registry.run)
            settled = config(*port, f"calls={file}", *options, **settings)
            yield House(
                ProcessEngine("sleepy", settled, client, sleep_registry=sleep_registry), sleep_registry, file
            )
            nursery.cancel_scope.cancel()


async def post(url: str) -> None:
    async with httpx.AsyncClient(timeout=200, trust_env=False) as client:
        await client.post(url)


async def get(life: SupervisedResident, path: str) -> Any:
    assert life.endpoint is not None
    async with httpx.AsyncClient(timeout=200, trust_env=False) as client:
        return (await client.get(life.endpoint.base_url + path)).json()


def is_alive(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def slept(house: House) -> int:
    """Start, and put to sleep; return the process id."""
    async with supervised(house.engine, "m") as life:
        await life.ready.wait()
        await life.stop()
        assert life.ended == SLEPT
        assert life.endpoint is not None
        assert life.endpoint.pid is not None
        assert is_alive(life.endpoint.pid)
        return life.endpoint.pid


# A good night

VLLM_DEEP = [
    "start", "/sleep?level=2",
    "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", "/reset_prefix_cache",
]  # fmt: skip


@pytest.mark.parametrize(
    ("sleep", "options", "calls"),
    [
        pytest.param(DEEP, [], VLLM_DEEP, id="vllm-2"),
        pytest.param(LIGHT, [], ["start", "/sleep?level=1", "/wake_up"], id="vllm-1"),
        pytest.param(
            SGLANG,
            ["kind=sglang"],
            ["start", "/flush_cache", "/release_memory_occupation", "/resume_memory_occupation"],
            id="sglang",
        ),
        pytest.param(CUSTOM, [], ["start", "/sleep", "/wake_up"], id="custom"),
    ],
)
async def test_a_stop_is_a_sleep_and_the_next_start_a_wake(
    sleep: SleepConfig, options: list[str], calls: list[str], tmp_path: Path
) -> None:
    async with a_house(tmp_path, *options, sleep=sleep) as house:
        pid = await slept(house)
        assert house.sleep_registry.residents == (RESIDENT,)
        assert await house.engine.check(RESIDENT) == "does not run"
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert life.supervision.woken
            assert life.endpoint is not None
            assert life.endpoint.pid == pid
            assert await get(life, "/say") == "sense"
            assert house.sleep_registry.residents == ()
            assert house.calls == calls
            life.supervision.stop(for_good=True)
            await life.over.wait()
            assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
        assert not is_alive(pid)


async def test_a_first_start_is_no_wake(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house, supervised(house.engine, "m") as life:
        await life.ready.wait()
        assert not life.supervision.woken


async def test_it_sleeps_again_and_again(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        pids = {await slept(house) for _ in range(4)}
        assert len(pids) == 1
        assert house.calls.count("/sleep?level=2") == 4
        assert house.calls.count("start") == 1


async def test_what_is_written_asleep_is_read(tmp_path: Path) -> None:
    async with a_house(tmp_path, log_file=str(tmp_path / "log")) as house:
        await slept(house)
        assert house.engine.log.tail(1) == ("[engine-router] sleeps",)
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert house.engine.log.tail(1) == ("[engine-router] awake",)
        assert (tmp_path / "log").read_text("ascii") == "started\n"


async def test_residents_of_a_template_sleep_side_by_side(tmp_path: Path) -> None:
    async with a_house(tmp_path, "model={model}") as house:
        for model in ("a", "b"):
            async with supervised(house.engine, model) as life:
                await life.ready.wait()
                await life.stop()
                assert life.ended == SLEPT
        assert {resident.model for resident in house.sleep_registry.residents} == {"a", "b"}
        async with supervised(house.engine, "a") as life:
            await life.ready.wait()
            assert life.supervision.woken
            assert [resident.model for resident in house.sleep_registry.residents] == ["b"]


async def test_sglang_is_released_only_once_it_is_idle(tmp_path: Path) -> None:
    async with a_house(tmp_path, "kind=sglang", "busy=0.4", sleep=SGLANG) as house:
        await slept(house)
        assert house.calls.count("/flush_cache") > 1
        assert house.calls[-1] == "/release_memory_occupation"


async def test_whoever_was_woken_by_somebody_else_is_not_woken_again(tmp_path: Path) -> None:
    async with a_house(tmp_path, sleep=LIGHT) as house:
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            await life.stop()
            async with httpx.AsyncClient(trust_env=False) as client:
                assert life.endpoint is not None
                await client.post(f"{life.endpoint.base_url}/wake_up")
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert house.calls.count("/wake_up") == 1
            assert await get(life, "/say") == "sense"


# Really stopped


async def test_a_stop_for_good_is_a_stop(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house, supervised(house.engine, "m") as life:
        await life.ready.wait()
        life.supervision.stop(for_good=True)
        await life.over.wait()
        assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
        assert house.calls == ["start"]


async def test_a_sleeper_can_be_stopped_for_good(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        pid = await slept(house)
        for for_good in (False, True):
            resident = SupervisedResident(house.engine, "m", adopt=True)
            resident.supervision.stop(for_good=for_good)
            await resident.run()
            assert resident.stopped
            assert resident.ended is not None
            assert resident.ended.asleep is not for_good
            assert is_alive(pid) is not for_good
        assert house.calls == ["start", "/sleep?level=2"]


async def test_a_change_of_mind_while_it_falls_asleep(tmp_path: Path) -> None:
    async with a_house(tmp_path, "slow=/sleep", "for=100") as house, supervised(house.engine, "m") as life:
        await life.ready.wait()
        life.supervision.stop()
        await until(lambda: "/sleep?level=2" in house.calls)
        life.supervision.stop(for_good=True)
        with trio.fail_after(200):
            await life.over.wait()
        assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")


async def test_a_stop_while_it_wakes_stops_it(tmp_path: Path) -> None:
    async with a_house(tmp_path, "slow=/collective_rpc", "for=100") as house:
        pid = await slept(house)
        async with supervised(house.engine, "m") as life:
            await until(lambda: "/collective_rpc" in house.calls)
            with trio.fail_after(200):
                await life.stop()
            assert life.stopped
            assert not life.ready.is_set()
        assert not is_alive(pid)
        assert house.calls.count("start") == 1


async def test_without_a_sleep_registry_nobody_sleeps() -> None:
    async with control_client() as client:
        engine = ProcessEngine("sleepy", config("port={port}"), client)
        async with supervised(engine, "m") as life:
            with trio.fail_after(200):
                await life.ready.wait()
                await life.stop()
            assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")


# What goes wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dev=0"], "VLLM_SERVER_DEV_MODE=1"),
        (["fail=/sleep"], "out of memory"),
        (["deaf=1"], "did not fall asleep within 2 s"),
        (["slow=/sleep", "for=100"], "did not fall asleep within 2 s"),
    ],
)
async def test_who_cannot_fall_asleep_is_stopped_and_not_asked_again(
    options: list[str], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timeout_s = 2.0 if "within" in words else 300.0
    sleep = SleepConfig(kind="vllm", level=2, timeout_s=timeout_s, verify=False)  # type: ignore[arg-type]
    async with a_house(tmp_path, *options, sleep=sleep) as house:
        for _ in range(2):
            async with supervised(house.engine, "m") as life:
                await life.ready.wait()
                await life.stop()
                assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
        assert house.calls.count("/sleep?level=2") == 1
        assert house.sleep_registry.residents == ()
    assert words in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("path", ["/wake_up", "/collective_rpc", "/reset_prefix_cache"])
async def test_who_cannot_be_woken_is_started_anew(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path, f"fail={path}") as house:
        pid = await slept(house)
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            assert life.endpoint is not None
            assert life.endpoint.pid != pid
            assert not is_alive(pid)
            assert await get(life, "/say") == "sense"
            await life.stop()
            assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
    assert "could not wake up" in caplog.text


async def test_a_wake_that_takes_longer_than_a_start_is_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep_module, "MIN_WAKE_S", 0.5)
    async with a_house(tmp_path, "slow=/collective_rpc", "for=60") as house:
        pid = await slept(house)
        began = trio.current_time()
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert trio.current_time() - began >= 0.5
            assert not life.supervision.woken
            assert await get(life, "/say") == "sense"
        assert not is_alive(pid)
        assert any("did not wake up within 0.5 s" in line for line in house.engine.log.tail(9))


async def test_a_death_asleep_is_noticed_and_the_next_start_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path) as house:
        pid = await slept(house)
        psutil.Process(pid).kill()
        await until(lambda: not house.sleep_registry.residents)
        assert f"{RESIDENT} was killed by SIGKILL while it slept" in caplog.text
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            assert life.endpoint is not None
            assert life.endpoint.pid != pid


async def test_a_death_while_it_wakes_is_no_failure(tmp_path: Path) -> None:
    async with a_house(tmp_path, "slow=/collective_rpc", "for=100") as house:
        pid = await slept(house)
        async with supervised(house.engine, "m") as life:
            await until(lambda: "/collective_rpc" in house.calls)
            psutil.Process(pid).kill()
            await life.ready.wait()
            assert not life.supervision.woken
            await life.stop()
            assert life.ended == SLEPT


async def test_one_that_was_started_otherwise_is_not_woken(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house, control_client() as client:
        pid = await slept(house)
        house.reconfigure(config("port={port}", f"calls={tmp_path / 'other'}"), client)
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            assert not is_alive(pid)


async def test_one_of_another_kind_is_stopped_before_anything_is_started(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house, a_server() as (server, other, _):
        pid = await slept(house)
        other.sleep.registry = house.sleep_registry
        sleep = other.sleep.of(RESIDENT, other.server)
        assert sleep is not None
        life = SupervisedResident(other, "m", adopt=False)
        assert await woken(life, life.supervision, sleep) is None  # type: ignore[arg-type]
        assert not is_alive(pid)
        assert not house.sleep_registry.residents
        assert server.asked == []


# Verified wakes

CHAT = "/v1/chat/completions"
VERIFIED = SleepConfig(kind="vllm", level=2)
# As somebody writes it who forgets that level 2 drops the weights.
FORGETFUL = SleepConfig(
    kind="custom", path="/sleep?level=2", wake=(CallConfig(path="/wake_up"),), asleep_path="/is_sleeping"
)


async def test_the_first_wake_is_verified_and_no_other(tmp_path: Path) -> None:
    async with a_house(tmp_path, sleep=VERIFIED) as house:
        pids = {await slept(house) for _ in range(3)}
        assert len(pids) == 1
        first, *later = VLLM_DEEP
        asleep, *awake = later
        assert house.calls == [first, CHAT, CHAT, asleep, *awake, CHAT, asleep, *awake, asleep]


async def test_one_that_answers_otherwise_after_a_wake_is_started_anew_and_sleeps_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path, sleep=FORGETFUL) as house:
        pid = await slept(house)
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            assert not is_alive(pid)
            assert await get(life, "/say") == "sense"
            await life.stop()
            assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
    (record,) = caplog.records
    assert "answers otherwise than before it slept; from now on it is stopped" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["chat=no"], f"answered POST {CHAT}, by which its wakes are verified, with 200"),
        (["chat=fickle"], "answers the same question in two ways"),
        ([f"fail={CHAT}"], "with 500 (out of memory)"),
        ([f"slow={CHAT}", "for=100"], f"did not answer POST {CHAT} within 0.5 s"),
    ],
    ids=["no-chat", "fickle", "fails", "slow"],
)
async def test_one_that_cannot_be_verified_is_stopped(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "for=100" in options:
        monkeypatch.setattr(verification, "ANSWER_WITHIN_S", 0.5)
    async with a_house(tmp_path, *options, sleep=VERIFIED) as house:
        for _ in range(2):
            async with supervised(house.engine, "m") as life:
                await life.ready.wait()
                await life.stop()
                assert life.ended == Ended(stopped=True, message="was killed by SIGTERM")
        assert "/sleep?level=2" not in house.calls
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "verify = false" in record.getMessage()


# Nobody's


async def test_closing_stops_all_sleepers_at_the_same_time(tmp_path: Path) -> None:
    async with a_house(tmp_path, "model={model}", "ignore=1", grace_s=3) as house:
        pids = []
        for model in ("a", "b", "c"):
            async with supervised(house.engine, model) as life:
                await life.ready.wait()
                await life.stop()
                assert life.endpoint is not None
                pids.append(life.endpoint.pid)
        began = trio.current_time()
        await house.sleep_registry.close()
        assert 3 <= trio.current_time() - began < 9  # one after the other takes three times as long
        assert not any(map(is_alive, pids))
        async with supervised(house.engine, "a") as life:
            await life.ready.wait()
            await life.stop()
            assert life.ended == Ended(stopped=True, message="was killed by SIGKILL")


async def test_a_cancelled_sleep_registry_leaves_no_process(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        pid = await slept(house)
    await until(lambda: not is_alive(pid))


async def test_what_falls_asleep_after_the_end_is_killed(tmp_path: Path) -> None:
    async with a_house(tmp_path, "slow=/sleep", "for=0.3") as house, supervised(house.engine, "m") as life:
        await life.ready.wait()
        life.supervision.stop()
        await until(lambda: "/sleep?level=2" in house.calls)
        await house.sleep_registry.close()
        await life.over.wait()
        assert life.endpoint is not None
        pid = life.endpoint.pid
        await until(lambda: not is_alive(pid))


async def none_but(house: House) -> None:
    """Wait until no process is left but those that sleep."""
    with trio.fail_after(200):
        while sum(is_alive(child.pid) for child in psutil.Process().children()) > len(
            house.sleep_registry.residents
        ):
            await trio.sleep(0.002)


@pytest.mark.parametrize("after", [False, True])
async def test_cancelled_anywhere_on_the_way_to_sleep_it_is_dead_or_in_bed(
    after: bool, tmp_path: Path
) -> None:
    async with a_house(tmp_path, sleep=LIGHT) as house:
        for step in itertools.count(1):
            life = SupervisedResident(house.engine, "m", adopt=False)
            with CancelAt(step, after=after) as sweep, sweep.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(life.run)
                    await life.ready.wait()
                    life.supervision.stop()
            assert bool(house.sleep_registry.residents) is (life.ended == SLEPT)
            await none_but(house)
            await house.sleep_registry.clear(house.sleep_registry.residents)
            if not sweep.fired:
                break
        assert step > 20
        assert life.ended == SLEPT


@pytest.mark.parametrize("after", [False, True])
async def test_cancelled_anywhere_while_it_wakes_it_is_dead(after: bool, tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        for step in itertools.count(1):
            if not house.sleep_registry.residents:
                await slept(house)
            life = SupervisedResident(house.engine, "m", adopt=False)
            with CancelAt(step, after=after) as sweep, sweep.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(life.run)
                    await life.ready.wait()
                    assert life.supervision.woken
                    life.supervision.stop(for_good=True)
            assert house.sleep_registry.residents == ()
            await none_but(house)
            if not sweep.fired:
                break
        assert step > 20


async def test_who_sleeps_when_the_router_is_killed_is_killed_by_the_guardian() -> None:
    with trio.fail_after(500):
        async with control_client() as client, trio.open_nursery() as nursery:
            guardian, sleep_registry = Guardian(), SleepRegistry()
            await nursery.start(sleep_registry.run)
            async with trio.open_nursery() as guarded:
                await guarded.start(guardian.run)
                engine = ProcessEngine(
                    "sleepy", config("port={port}"), client, guardian=guardian, sleep_registry=sleep_registry
                )
                async with supervised(engine, "m") as life:
                    await life.ready.wait()
                    await life.stop()
                    assert life.ended == SLEPT
                assert life.endpoint is not None
                pid = life.endpoint.pid
                assert is_alive(pid)
                guarded.cancel_scope.cancel()  # its line breaks, as if the router were gone
            await until(lambda: not is_alive(pid))
            nursery.cancel_scope.cancel()


# Found asleep


def test_nobody_is_nobody() -> None:
    assert repr(SleepRegistry()) == "<SleepRegistry empty>"


@contextmanager
def running(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def a_stranger(folder: Path) -> AsyncIterator[tuple[str, int, str]]:
    """Start a process as an earlier router left it: awake or asleep, but not ours."""
    port = free_port()
    argv = config(f"port={port}", f"calls={folder / 'calls'}").argv
    base_url = f"http://127.0.0.1:{port}"
    with running(argv) as process:
        while not await is_taken(base_url):
            await trio.sleep(0.005)
        yield base_url, process.pid, f"port={port}"


async def test_one_that_is_found_asleep_is_not_adopted_but_woken_when_it_is_needed(tmp_path: Path) -> None:
    async with (
        a_stranger(tmp_path) as (base_url, pid, port),
        a_house(tmp_path, base_url=base_url) as house,
        control_client() as client,
    ):
        house.reconfigure(config(port, f"calls={tmp_path / 'calls'}", base_url=base_url), client)
        assert await house.engine.find() == [RESIDENT]
        await post(f"{base_url}/sleep?level=2")
        assert await house.engine.find() == []
        async with supervised(house.engine, "m") as life:
            await life.ready.wait()
            assert life.supervision.woken
            assert life.endpoint is not None
            assert life.endpoint.pid == pid
            assert await get(life, "/say") == "sense"
            await life.stop()
            assert life.ended == SLEPT
        await house.sleep_registry.close()
        assert is_alive(pid), "who was found is left as it is"


async def test_one_that_is_found_asleep_and_cannot_be_woken_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    options = [f"port={port}", f"calls={tmp_path / 'calls'}", "fail=/collective_rpc"]
    with running(config(*options).argv) as process:
        async with (
            a_house(tmp_path, base_url=base_url) as house,
            control_client() as client,
        ):
            house.reconfigure(config(*options, base_url=base_url), client)
            while not await is_taken(base_url):
                await trio.sleep(0.005)
            await post(f"{base_url}/sleep?level=2")
            async with supervised(house.engine, "m") as life:
                await life.ready.wait()
                assert not life.supervision.woken
                assert life.endpoint is not None
                assert life.endpoint.pid != process.pid
                assert process.wait() == -15


# A server that is somebody else's


class ScriptedVllm(ScriptedServer):
    """vLLM that somebody else runs: it has its model from its start, and sleeps."""

    asleep = False

    def routes(self) -> Mapping[str, Handler]:
        return {
            **super().routes(),
            "GET /is_sleeping": self.is_sleeping,
            "POST /sleep": self.fall_asleep,
            "POST /wake_up": self.wake_up,
            "POST /load": self.make_loaded,
            "POST /unload": self.make_unloaded,
            "GET /loaded": self.what_is_loaded,
        }

    async def is_sleeping(self, _call: Call) -> Answer:
        return as_json({"is_sleeping": self.asleep})

    async def fall_asleep(self, _call: Call) -> Answer:
        self.asleep = True
        return as_json({})

    async def wake_up(self, _call: Call) -> Answer:
        self.asleep = False
        return as_json({})

    async def make_loaded(self, call: Call) -> Answer:
        await self.load(call.model)
        return as_json({})

    async def make_unloaded(self, call: Call) -> Answer:
        self.unload(call.model)
        self.asleep = False
        return as_json({})

    async def what_is_loaded(self, _call: Call) -> Answer:
        return as_json([{"id": model} for model in self.loaded.values()])

    @property
    def asked(self) -> list[str]:
        return [call.path for call in self.calls if call.method == "POST"]


@asynccontextmanager
async def a_server(
    sleep: SleepConfig = LIGHT,
) -> AsyncIterator[tuple[ScriptedVllm, HttpEngine, SleepRegistry]]:
    server = ScriptedVllm("m")
    body = {"model": "{model}"}
    with trio.fail_after(200):
        async with server.running(), control_client() as client, trio.open_nursery() as nursery:
            sleep_registry = SleepRegistry()
            await nursery.start(sleep_registry.run)
            settled = HttpConfig(
                base_url=server.base_url,  # type: ignore[arg-type]
                load=CallConfig(path="/load", body=body),  # type: ignore[arg-type]
                unload=CallConfig(path="/unload", body=body),  # type: ignore[arg-type]
                loaded=LoadedConfig(path="/loaded"),
                sleep=sleep,
                start_timeout_s=300.0,  # type: ignore[arg-type]
                stop_timeout_s=300.0,  # type: ignore[arg-type]
            )
            yield server, HttpEngine("sleepy", settled, client, sleep_registry=sleep_registry), sleep_registry
            nursery.cancel_scope.cancel()


async def test_a_server_sleeps_and_is_woken() -> None:
    async with a_server() as (server, engine, sleep_registry):
        for number in range(3):
            async with supervised(engine, "m") as life:
                await life.ready.wait()
                assert life.supervision.woken is (number > 0)
                assert not server.asleep
                assert await engine.find() == [ResidentId("sleepy", "m")]
                await life.stop()
                assert life.ended == SLEPT
                assert server.asleep
                assert await engine.find() == []
        await sleep_registry.close()
        assert server.asked == ["/load", "/sleep", *["/wake_up", "/sleep"] * 2, "/unload"]


async def test_a_server_that_was_found_awake_is_left_asleep() -> None:
    async with a_server() as (server, engine, sleep_registry):
        await server.load("m")
        async with supervised(engine, "m", adopt=True) as life:
            await life.ready.wait()
            await life.stop()
            assert life.ended == SLEPT
        await sleep_registry.close()
        assert server.asked == ["/sleep"]


async def test_a_sleeping_server_is_unloaded_for_good() -> None:
    async with a_server() as (server, engine, _):
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            await life.stop()
        for for_good in (False, True):
            resident = SupervisedResident(engine, "m", adopt=True)
            resident.supervision.stop(for_good=for_good)
            await resident.run()
            assert resident.ended is not None
            assert resident.ended.asleep is not for_good
            assert bool(server.loaded) is not for_good
        assert "/wake_up" not in server.asked


@pytest.mark.parametrize("trouble", ["refusal", "silence"])
async def test_a_server_that_cannot_be_woken_is_loaded_anew(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sleep_module, "MIN_WAKE_S", 0.2)
    async with a_server() as (server, engine, _):
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            await life.stop()
        if trouble == "silence":
            server.script.hang.add("/wake_up")
        else:
            server.script.answers["/wake_up"] = as_json({"error": "CUDA out of memory"}, 500)
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            assert server.asked == ["/load", "/sleep", "/wake_up", "/unload", "/load"]
            await life.stop()
            assert life.ended is not None
            assert not life.ended.asleep
    assert ("did not wake up" if trouble == "silence" else "CUDA out of memory") in caplog.text


async def test_a_server_that_cannot_fall_asleep_is_unloaded(caplog: pytest.LogCaptureFixture) -> None:
    async with a_server() as (server, engine, _):
        server.script.answers["/sleep"] = as_json({"detail": "Not Found"}, 404)
        for _ in range(2):
            async with supervised(engine, "m") as life:
                await life.ready.wait()
                await life.stop()
                assert life.stopped
                assert not server.loaded
        assert server.asked.count("/sleep") == 1
    assert "VLLM_SERVER_DEV_MODE=1" in caplog.text


async def test_a_server_that_died_asleep_is_no_sleepless_one() -> None:
    async with a_server() as (server, engine, _):
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            await life.stop()
        server.loaded.clear()
        server.asleep = False
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            assert not life.supervision.woken
            await life.stop()
            assert life.ended == SLEPT
        server.crash()
        await trio.sleep(0.01)
        async with supervised(engine, "m") as life:
            await life.over.wait()
            assert "does not accept connections" in str(life.error)


async def test_a_change_of_mind_while_a_server_falls_asleep() -> None:
    async with a_server() as (server, engine, _), supervised(engine, "m") as life:
        await life.ready.wait()
        server.script.hang.add("/sleep")
        life.supervision.stop()
        await until(lambda: "/sleep" in server.asked)
        life.supervision.stop(for_good=True)
        await life.over.wait()
        assert life.ended is not None
        assert not life.ended.asleep
        assert not server.loaded


@pytest.mark.parametrize("after", [False, True])
async def test_a_server_is_well_after_any_cancellation(after: bool) -> None:
    async with a_server() as (server, engine, _):
        for step in itertools.count(1):
            life = SupervisedResident(engine, "m", adopt=False)
            with CancelAt(step, after=after) as sweep, sweep.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(life.run)
                    await life.ready.wait()
                    life.supervision.stop()
            async with supervised(engine, "m") as next_life:
                await next_life.ready.wait()
                assert not server.asleep
                assert server.loaded
                if step % 3:
                    await next_life.stop()
            if not sweep.fired:
                break
        assert step > 10


# Through the whole router

ROUTER = """
state_file = {state}
[server]
shutdown_timeout_s = 1
[scheduling]
settle_timeout_s = 0.2
[pools.default]
gauge = "none"
[engines.a]
type = "process"
argv = {a}
models = ["a"]
sleep = {{ kind = "vllm", level = 2 }}
[engines.b]
type = "process"
argv = {b}
models = ["b"]
sleep = {{ kind = "vllm", level = 2 }}
"""


def is_of(child: psutil.Process, folder: Path) -> bool:
    """Tell whether a child belongs to this test: one of the test before may be on its way out."""
    try:
        return any(str(folder) in word for word in child.cmdline())
    except psutil.NoSuchProcess:
        return False


async def test_the_router_swaps_by_sleep_and_leaves_nobody_behind(tmp_path: Path) -> None:
    # A start takes seconds, so that even on a busy machine a wake is faster and sleep is worth while.
    more = ["wait=4", "port={port}"]
    argv = {name: [*config().argv, *more, f"calls={tmp_path / name}"] for name in ("a", "b")}
    text = ROUTER.format(
        state=json.dumps(str(tmp_path / "state")), **{k: json.dumps(v) for k, v in argv.items()}
    )
    pids = set()
    with trio.fail_after(200):
        async with engine_router.open_router(parse_config(text)) as router:
            async with httpx.AsyncClient(trust_env=False) as client:
                for name in ("a", "b", "a", "b"):
                    async with router.lease(name) as lease:
                        assert (await client.get(f"{lease.base_url}/say")).json() == "sense"
                    pids |= {child.pid for child in psutil.Process().children() if is_of(child, tmp_path)}
            assert len(pids) == 2
            assert all(map(is_alive, pids))
        assert not any(map(is_alive, pids))
    assert [(tmp_path / name).read_text("ascii").split().count("start") for name in ("a", "b")] == [1, 1]


# The calls


def test_the_calls_of_vllm_and_sglang() -> None:
    light, deep, sglang = map(plan_of, (LIGHT, DEEP, SGLANG))
    assert light.sleep == (SleepCall("POST", "/sleep?level=1"),)
    assert light.wake == (SleepCall("POST", "/wake_up"),)
    assert deep.sleep == (SleepCall("POST", "/sleep?level=2"),)
    assert deep.wake[1] == SleepCall("POST", "/collective_rpc", {"method": "reload_weights"})
    assert sglang.sleep[1] == SleepCall("POST", "/release_memory_occupation", {})
    assert sglang.asleep_path is None


async def test_what_a_custom_call_may_have() -> None:
    sleep = SleepConfig(
        kind="custom",
        method="PUT",
        path="/v1/{model}/sleep",
        headers={"x-admin": "1"},  # type: ignore[dict-item]
        body={"who": "{model}"},  # type: ignore[arg-type]
        wake=(CallConfig(path="/up", headers={"x-more": "2"}),),  # type: ignore[dict-item]
        verify=False,
    )
    async with a_server(sleep) as (server, engine, _):
        server.script.answers |= {"/v1/m/sleep": as_json({}), "/up": as_json({})}
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            await life.stop()
            assert life.ended == SLEPT
        async with supervised(engine, "m") as life:
            await life.ready.wait()
            assert life.supervision.woken
        put, up = (next(c for c in server.calls if c.path == path) for path in ("/v1/m/sleep", "/up"))
        assert (put.method, put.body, put.headers["x-admin"]) == ("PUT", {"who": "m"}, "1")
        assert (up.method, up.headers["x-admin"], up.headers["x-more"]) == ("POST", "1", "2")
