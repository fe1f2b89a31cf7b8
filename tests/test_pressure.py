"""Pressure: other programs take the memory, and idle residents make way for them, once and with the reason told."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from support.asgi import ask
from support.budget_world import A, B, World, running
from support.simulated_memory import GIB, SimulatedMemory
from trio.testing import MockClock

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.events import SwapBegan, SwapEnded
from engine_router.memory import MeminfoGauge, MemoryReading, NvmlGauge, PsutilGauge
from engine_router.memory.stalls import linux_stalls, no_stalls, stalls_of
from engine_router.residency import causes
from engine_router.residency.ledger import Capacity, Phase
from engine_router.residency.pressure import CONFIRM_LOOKS, LEAST_HOLD_S, STALLED_PERCENT, PressureJudge
from engine_router.residency.pressure_watch import CALM_S, NEAR_S
from engine_router.residency.rules import Traits
from engine_router.residency.scheduling import PRESSED_IDLE_S

RESERVE = 8 * GIB
SHARED = Capacity(budget_bytes=100 * GIB, reserve_bytes=RESERVE, yields_under_pressure=True)
SOON_S = (CONFIRM_LOOKS + 1) * CALM_S + 3.0


@attrs.define(eq=False)
class CountedMemory(SimulatedMemory):
    """Counts the looks at its gauge."""

    read_at: list[float] = attrs.field(factory=list)

    async def read(self) -> MemoryReading:
        self.read_at.append(trio.current_time())
        return await super().read()


def memory_of(others_gib: int = 0) -> CountedMemory:
    """Return a memory of 128 GiB; each resident takes 40."""
    return CountedMemory(shared=True, others_bytes=others_gib * GIB)


def gone_for_others(world: World) -> list[str | None]:
    return [
        event.source
        for event in world.of(SwapBegan)
        if isinstance(event, SwapBegan) and event.cause == causes.PRESSURE
    ]


async def test_idle_residents_go_for_a_game_until_the_reserve_is_free(autojump_clock: MockClock) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=SHARED) as world:
        await world.use(A)
        await world.use(B)
        await trio.sleep(60.0)
        memory.others_bytes = 42 * GIB  # 6 GiB are left
        await trio.sleep(SOON_S)
        assert gone_for_others(world) == ["a"]  # idle for longest; the other is not needed
        await trio.sleep(600.0)
        assert world.present() == {"b": Phase.READY}
        assert causes.cause_kind(causes.PRESSURE) == "pressure"
        assert "other programs need the memory: a stops, idle" in world.supervisor.decisions[-1].text
        assert [
            notice for notice in world.notices() if "leave only 6.0 GiB free" in notice
        ] == world.notices()[:1]
        memory.others_bytes = 80 * GIB + 5 * GIB
        await trio.sleep(SOON_S)
        assert gone_for_others(world) == ["a", "b"]
        memory.others_bytes = 0
        await world.use(A)  # whoever asks gets it
        assert all(event.result == "ok" for event in world.of(SwapEnded) if isinstance(event, SwapEnded))


async def test_what_residents_take_themselves_is_no_pressure(autojump_clock: MockClock) -> None:
    memory = memory_of(44)  # two residents leave 4 GiB, less than the reserve
    async with running(memory=memory, capacity=SHARED) as world:
        await world.use(A)
        await world.use(B)
        await trio.sleep(3600.0)
        assert gone_for_others(world) == []
        memory.others_bytes += 3 * GIB
        await trio.sleep(SOON_S)
        assert gone_for_others(world) == ["a"]


@pytest.mark.parametrize(
    ("capacity", "traits"),
    [
        (attrs.evolve(SHARED, yields_under_pressure=False), Traits(declared_bytes=40 * GIB)),
        (SHARED, Traits(declared_bytes=40 * GIB, pinned=True)),
    ],
    ids=["switched off", "pinned"],
)
async def test_nobody_goes_who_is_not_to(
    capacity: Capacity, traits: Traits, autojump_clock: MockClock
) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=capacity, a=traits) as world:
        await world.use(A)
        memory.others_bytes = 87 * GIB
        await trio.sleep(600.0)
        assert world.present() == {"a": Phase.READY}


async def test_who_is_pinned_stays_and_another_goes(autojump_clock: MockClock) -> None:
    memory = memory_of()
    pinned = Traits(declared_bytes=40 * GIB, pinned=True)
    async with running(memory=memory, capacity=SHARED, a=pinned) as world:
        await world.use(A)
        await world.use(B, 5.0)
        memory.others_bytes = 47 * GIB
        await trio.sleep(60.0)
        assert gone_for_others(world) == ["b"]
        assert world.present() == {"a": Phase.READY}


async def test_who_comes_back_all_the_time_stays(autojump_clock: MockClock) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=SHARED) as world:
        await world.use(A, 5.0)
        memory.others_bytes = 87 * GIB
        for _ in range(50):
            await world.use(A, 0.5)
            await trio.sleep(PRESSED_IDLE_S - 0.1)
        assert gone_for_others(world) == []


async def test_what_is_in_use_goes_once_it_is_idle(autojump_clock: MockClock) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=SHARED) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A, 100.0)
        await trio.sleep(50.0)
        memory.others_bytes = 87 * GIB
        await trio.sleep(50.0)
        assert world.present() == {"a": Phase.READY}
        await trio.sleep(30.0)
        assert gone_for_others(world) == ["a"]


async def test_in_an_exclusive_pool_the_resident_goes_too(autojump_clock: MockClock) -> None:
    memory = memory_of()
    capacity = Capacity(reserve_bytes=RESERVE, yields_under_pressure=True)
    async with running(memory=memory, capacity=capacity) as world:
        await world.use(A, 5.0)
        memory.others_bytes = 87 * GIB
        await trio.sleep(SOON_S)
        assert gone_for_others(world) == ["a"]


async def test_a_default_model_does_not_come_and_go_with_a_program_whose_use_goes_up_and_down(
    autojump_clock: MockClock,
) -> None:
    memory = memory_of(70)
    capacity = attrs.evolve(SHARED, default_model=A)
    async with running(memory=memory, capacity=capacity) as world:
        await trio.sleep(60.0)
        assert world.present() == {"a": Phase.READY}
        for _ in range(200):
            memory.others_bytes = 82 * GIB  # it leaves 6 GiB beside the model
            await trio.sleep(7.0)
            memory.others_bytes = 77 * GIB
            await trio.sleep(7.0)
        assert gone_for_others(world) == ["a"]
        assert world.present() == {}
        memory.others_bytes = 70 * GIB
        await trio.sleep(30.0)
        assert world.present() == {"a": Phase.READY}
        assert "have given memory back" in world.notices()[-1]


async def test_a_moment_is_no_pressure(autojump_clock: MockClock) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=SHARED) as world:
        await world.use(A)
        for _ in range(50):
            await trio.sleep(10.0)
            memory.others_bytes = 87 * GIB
            await trio.sleep(NEAR_S * 0.9)
            memory.others_bytes = 0
        assert gone_for_others(world) == []


async def test_nobody_looks_while_nothing_is_resident_and_never_more_than_once_a_second(
    autojump_clock: MockClock,
) -> None:
    memory = memory_of()
    async with running(memory=memory, capacity=SHARED) as world:
        await trio.sleep(60.0)
        assert memory.read_at == []
        await world.use(A)
        memory.others_bytes = 70 * GIB  # little is free: it is looked at more often
        await trio.sleep(5.0)
        memory.read_at.clear()
        await trio.sleep(100.0)
        gaps = [later - sooner for sooner, later in zip(memory.read_at[:-1], memory.read_at[1:], strict=True)]
        assert min(gaps) >= NEAR_S - 1e-6
        assert len(memory.read_at) > 90
        await world.supervisor.until_unloaded(A)
        await trio.sleep(CALM_S + 1.0)
        memory.read_at.clear()
        await trio.sleep(600.0)
        assert memory.read_at == []


def looked(
    judge: PressureJudge, *free_gib: float, stalled: float | None = None, loaded: object = 1
) -> list[str]:
    """Look again and again, a second apart, at a memory of 64 GiB."""
    return [
        judge.look(
            MemoryReading(int(free * GIB), 64 * GIB),
            stalled,
            reserve_bytes=2 * GIB,
            loaded=loaded,
            now=float(second),
        )
        for second, free in enumerate(free_gib)
    ]


@pytest.mark.parametrize(
    ("free_gib", "stalled", "last"),
    [
        ((20, 1.5, 1.5), None, "pressed"),
        ((20, 1.5, 3.0, 1.5), None, "calm"),
        ((20, 5.0, 5.0), STALLED_PERCENT, "pressed"),  # little is free, and programs wait for it
        ((20, 5.0, 5.0), STALLED_PERCENT - 0.1, "calm"),
        ((20, 19, 19), 90.0, "calm"),  # whoever waits there has a limit of its own
        ((3, 1.6, 1.6), None, "calm"),  # the residents left 3 GiB themselves
        ((3, 1.4, 1.4), None, "pressed"),
    ],
)
def test_what_pressure_is(free_gib: tuple[float, ...], stalled: float | None, last: str) -> None:
    assert looked(PressureJudge(), *free_gib, stalled=stalled)[-1] == last


def test_relief_takes_a_minute_and_room_for_who_went() -> None:
    judge = PressureJudge()
    assert looked(judge, 20, 1, 1)[-1] == "pressed"
    assert judge.missing_bytes == 2 * GIB
    after = [11.0] * 5 + [
        12.9
    ] * 100  # it brought 10 GiB; to come back leaves 2.9, less than half more than 2
    assert set(looked(judge, *after, loaded=2)) == {"calm"}
    story = looked(judge, *[13.5] * 100, loaded=2)
    assert story.index("relieved") >= LEAST_HOLD_S - 1
    assert story.count("relieved") == 1


def test_stalls_are_read_where_the_kernel_tells_them(tmp_path: Path) -> None:
    told = tmp_path / "memory"
    assert linux_stalls(told) is None
    told.write_text(
        "some avg10=12.34 avg60=1.00 avg300=0.10 total=7\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n"
    )
    assert linux_stalls(told) == 12.34
    told.write_text("nonsense\n")
    assert linux_stalls(told) is None


@pytest.mark.parametrize(
    ("gauge", "platform", "expected"),
    [
        (MeminfoGauge(), "linux", linux_stalls),
        (PsutilGauge(), "darwin", no_stalls),
        (PsutilGauge(), "win32", no_stalls),
        (NvmlGauge(), "linux", no_stalls),
    ],
    ids=["Linux", "macOS", "Windows", "GPU"],
)
def test_stalls_are_those_of_the_main_memory_under_linux(
    gauge: MeminfoGauge | PsutilGauge | NvmlGauge, platform: str, expected: Callable[[], float | None]
) -> None:
    assert stalls_of(gauge, platform) is expected
    assert math.isclose(no_stalls() or 0.0, 0.0)


PROGRAMS = Path(__file__).parent / "programs"
HOG = "import sys; held = bytearray(b'x') * (500 * 1000 * 1000); print('ready', flush=True); sys.stdin.read()"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_a_real_engine_goes_for_a_real_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.residency.pressure_watch.COMMAND_S", 0.2)
    pids, python = tmp_path / "pids", [sys.executable, "-I", "-S"]
    config = parse_config(f"""
        state_file = {json.dumps(str(tmp_path / "state.json"))}
        [pools.default]
        gauge = "command"
        command = {json.dumps([*python, str(PROGRAMS / "pids_gauge.py"), str(pids)])}
        reserve_gb = 0.2
        [engines.small]
        type = "process"
        argv = {json.dumps([*python, str(PROGRAMS / "small_engine.py"), "port={port}", "mb=350", f"pids={pids}"])}
        models = ["x"]
        """)
    with trio.fail_after(200):
        async with open_router(config) as router:
            async with router.lease("x"):
                pass
            memory = router.supervisor.pools["default"].memory
            for _ in range(4):  # by then it is known what the engine left to others
                read_at = memory.read_at
                while memory.read_at == read_at:
                    await trio.sleep(0.02)
            with subprocess.Popen([*python, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:  # noqa: ASYNC220 - it is started at once
                assert hog.stdin is not None
                assert hog.stdout is not None
                await trio.to_thread.run_sync(hog.stdout.readline)
                with pids.open("a") as file:
                    file.write(f"{hog.pid}\n")
                while router.read_model.present():
                    await trio.sleep(0.05)
                hog.stdin.close()
            cause = None
            while cause != causes.PRESSURE:  # its swap ends once its memory is back
                told = (await ask(router.app, "GET", "/status")).json()
                cause = told["last_swap"] and told["last_swap"]["cause"]
                await trio.sleep(0.05)
    assert any("other programs leave only" in notice["message"] for notice in told["notices"])
