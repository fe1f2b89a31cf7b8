"""The programs beside the router that hold a pool's memory: who they are, what is theirs, and where that is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest
import trio
from support.asgi import ask
from support.simulated_memory import GIB, SimulatedMemory
from trio.testing import MockClock

from engine_router import open_router
from engine_router.cli import status as cli_status
from engine_router.config import parse_config
from engine_router.memory import Holder, MemoryHolders, NullGauge, NvmlGauge, Own, PsutilGauge
from engine_router.memory.holders import LISTED, RunningProcess
from engine_router.memory.reading import Gauge
from engine_router.residency.other_programs import LOOK_INTERVAL_S, OtherPrograms
from engine_router.residency.pool_memory import PoolMemory

ROUTER, ENGINE, WORKER, LISTENER, GAME, COMFY = 100, 200, 201, 300, 400, 500


class FakeError(Exception):
    """NVML's error."""


@attrs.frozen
class OnGpu:
    pid: int
    usedGpuMemory: int | None  # noqa: N815 - NVML's name


@attrs.define
class FakeNvml:
    """A driver with one GPU."""

    compute: list[OnGpu]
    graphics: list[OnGpu] = attrs.field(factory=list)
    broken: bool = False
    NVMLError: type[Exception] = FakeError

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise FakeError("driver not loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object, /) -> Iterable[OnGpu]:  # noqa: N802
        return self.compute if handle == 1 else []

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: object, /) -> Iterable[OnGpu]:  # noqa: N802
        return self.graphics if handle == 1 else []


SMALL_ENGINE = Path(__file__).parent / "programs" / "small_engine.py"
PROCESSES = [
    RunningProcess(pid=1, name="init", held_bytes=GIB // 100),
    RunningProcess(pid=ROUTER, parent=1, name="engine-router", held_bytes=GIB),
    RunningProcess(pid=ENGINE, parent=ROUTER, name="llama-server", held_bytes=20 * GIB),
    RunningProcess(pid=WORKER, parent=ENGINE, name="worker", held_bytes=2 * GIB),
    RunningProcess(pid=LISTENER, parent=1, name="ollama", held_bytes=5 * GIB),
    RunningProcess(pid=LISTENER + 1, parent=LISTENER, name="runner", held_bytes=9 * GIB),
    RunningProcess(pid=GAME, parent=1, name="game\x1b[2J", held_bytes=6 * GIB),
    RunningProcess(pid=COMFY, parent=1, name="python", held_bytes=12 * GIB),
    RunningProcess(pid=COMFY + 1, parent=1, name="hidden", held_bytes=None),
]
OWN = Own(pids=frozenset({ROUTER}), ports=frozenset({11434}))


def looking(gauge: Gauge, nvml: FakeNvml | None = None) -> MemoryHolders:
    def load() -> FakeNvml:
        if nvml is None:
            raise ImportError("pynvml")
        return nvml

    return MemoryHolders(
        gauge,
        processes=lambda: PROCESSES,
        command_of=lambda pid: {COMFY: "python main.py --listen"}.get(pid, ""),
        listeners=lambda ports: {LISTENER} if 11434 in ports else set(),
        load=load,
    )


async def test_in_main_memory_all_count_but_the_routers_own_and_what_serves_a_resident() -> None:
    assert await looking(PsutilGauge()).read(OWN) == (
        Holder(pid=COMFY, name="python", command="python main.py --listen", held_bytes=12 * GIB),
        Holder(pid=GAME, name=r"game\x1b[2J", held_bytes=6 * GIB),
    )


async def test_on_a_gpu_the_driver_tells_and_a_share_that_it_keeps_to_itself_is_not_made_up() -> None:
    nvml = FakeNvml(
        [OnGpu(ENGINE, 20 * GIB), OnGpu(COMFY, 12 * GIB), OnGpu(999, 3 * GIB)],
        [OnGpu(COMFY, 12 * GIB), OnGpu(GAME, None)],
    )
    found = await looking(NvmlGauge(1), nvml).read(OWN)
    assert found is not None
    assert [(one.pid, one.name, one.held_bytes) for one in found] == [
        (COMFY, "python", 12 * GIB),
        (999, "another process", 3 * GIB),  # in another container's process table
        (GAME, r"game\x1b[2J", None),
    ]


@pytest.mark.parametrize(
    ("gauge", "nvml"),
    [(NvmlGauge(1), None), (NvmlGauge(1), FakeNvml([], broken=True)), (NullGauge(), None)],
    ids=["no library", "no driver", "another gauge"],
)
async def test_what_cannot_be_told_is_not_made_up(gauge: Gauge, nvml: FakeNvml | None) -> None:
    assert await looking(gauge, nvml).read(OWN) is None


async def test_a_list_is_bounded() -> None:
    holders = looking(PsutilGauge())
    holders.processes = lambda: (
        RunningProcess(pid=pid, name="many", held_bytes=GIB + pid) for pid in range(1, 5000)
    )
    found = await holders.read(Own())
    assert found is not None
    assert [one.pid for one in found] == list(range(4999, 4999 - LISTED, -1))


def test_what_belongs_to_residents_is_known_by_process_or_by_port() -> None:
    own = Own.of(
        [(7, "http://127.0.0.1:1"), (None, "http://localhost:11434"), (None, "http://192.168.1.2:8000")]
    )
    assert own == Own(pids=frozenset({os.getpid(), 7}), ports=frozenset({11434}))


class CountingHolders(MemoryHolders):
    """Notes when somebody looks."""

    looks: list[float]

    @property
    def can_tell(self) -> bool:
        return True

    async def read(self, own: Own) -> tuple[Holder, ...]:
        self.looks.append(trio.current_time())
        return ()


async def test_nobody_looks_more_often_than_every_few_seconds(autojump_clock: MockClock) -> None:
    memory = PoolMemory("default", SimulatedMemory())
    others = OtherPrograms(memory, lambda: OWN)
    assert await others.look() is None  # that gauge cannot tell
    assert memory.last is not None
    await trio.sleep(LOOK_INTERVAL_S)
    others.holders = holders = CountingHolders(memory.gauge)
    holders.looks = []
    began = trio.current_time()
    with trio.move_on_after(4 * LOOK_INTERVAL_S - 0.1):
        while True:
            await others.look()
            await trio.sleep(0.5)
    assert [at - began for at in holders.looks] == [number * LOOK_INTERVAL_S for number in range(4)]


# Its child is nobody's: whoever started it has gone.
STRANGER = """
import os, sys
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
held = bytearray(b"x") * (300 * 2**20)
os.write(1, b"ready\\n")
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
async def test_a_program_that_holds_memory_is_shown_and_an_engine_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ("-I", "-S", str(SMALL_ENGINE), "port={port}", "mb=300")
    config = parse_config(f"""
        state_file = {json.dumps(str(tmp_path / "state.json"))}
        [history]
        enabled = false
        [engines.small]
        type = "process"
        argv = {json.dumps([sys.executable, *engine])}
        models = ["x"]
        """)
    with subprocess.Popen(  # noqa: ASYNC220 - it is started at once
        [sys.executable, "-I", "-S", "-c", STRANGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        stranger = int(await trio.to_thread.run_sync(starter.stdout.readline))
        assert await trio.to_thread.run_sync(starter.stdout.readline) == b"ready\n"
        with trio.fail_after(200):
            async with open_router(config) as router, router.lease("x"):
                told = (await ask(router.app, "GET", "/status")).json()
                while told["pools"]["default"]["other_programs"] is None:  # a look that took too long
                    await trio.sleep(1.0)
                    told = (await ask(router.app, "GET", "/status")).json()
        starter.stdin.close()
    pool = told["pools"]["default"]
    pid = pool["residents"][0]["pid"]
    sizes = {one["pid"]: one["held_bytes"] for one in pool["other_programs"]}
    assert 300 * 2**20 <= sizes[stranger] < 500 * 2**20
    assert pid not in sizes
    assert os.getpid() not in sizes
    cli_status._pools(told["pools"])
    shown = capsys.readouterr().out
    assert f"(pid {stranger})" in shown
    assert "other program" in shown
