"""Sleep and files, as residency decides: who sleeps, who is stopped after all, whose files are read ahead."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from support.simulated_memory import GIB, SimulatedMemory

from engine_router.engines.base import Ended, Endpoint, EngineLogs, ResidentId, Supervision
from engine_router.events import EventHub
from engine_router.residency.measurements import Measurements
from engine_router.residency.rules import Capacity, ResidencySettings, Rules, Traits
from engine_router.residency.supervisor import Supervisor

A, B = ResidentId("a"), ResidentId("b")


@attrs.define(eq=False)
class Dozer:
    """An engine that falls asleep where it may, and then holds a part of its memory still."""

    name: str
    memory: SimulatedMemory
    story: list[str]
    size_bytes: int = 40 * GIB
    kept_bytes: int = 2 * GIB
    start_s: float = 10.0
    wake_s: float = 1.0
    logs: EngineLogs = attrs.field(factory=EngineLogs)
    asleep: bool = False

    def resident_of(self, model: str) -> ResidentId:
        return ResidentId(self.name)

    def _hold(self, size_bytes: int) -> None:
        for part, size in (
            ("kept", min(size_bytes, self.kept_bytes)),
            ("rest", size_bytes - self.kept_bytes),
        ):
            key = ResidentId(self.name, part)
            if size > 0 and key not in self.memory.held:
                self.memory.take(key, size)
            elif size <= 0 and key in self.memory.held:
                self.memory.free(key)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        if supervision.for_good.is_set():
            await trio.sleep(0.5)
            self.story.append(f"clear {self.name}")
            self.asleep = False
            self._hold(0)
            return Ended(stopped=True, message="")
        woken, self.asleep = self.asleep, False
        self.story.append(f"{'wake' if woken else 'start'} {self.name}")
        self._hold(self.size_bytes)
        await trio.sleep(self.wake_s if woken else self.start_s)
        supervision.ready(Endpoint("http://x"), woken=woken)
        await supervision.stop_asked.wait()
        await trio.sleep(0.5)
        self.asleep = not supervision.for_good.is_set()
        self.story.append(f"{'sleep' if self.asleep else 'stop'} {self.name}")
        self._hold(self.kept_bytes if self.asleep else 0)
        return Ended(stopped=True, message="", asleep=self.asleep)

    async def find(self) -> Sequence[ResidentId]:
        return ()

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        return None

    async def obstacle(self, resident: ResidentId) -> str | None:
        return None

    async def list_models(self) -> Sequence[str] | None:
        return None


@attrs.define(eq=False)
class Shelf:
    """Files that are read for a while."""

    story: list[str]
    read_s: float = 3.0

    async def ahead(self, resident: ResidentId) -> int:
        self.story.append(f"read {resident}")
        with trio.CancelScope():
            try:
                await trio.sleep(self.read_s)
            except trio.Cancelled:
                self.story.append(f"read enough of {resident}")
                raise
        self.story.append(f"read all of {resident}")
        return 1

    async def behind(self, resident: ResidentId) -> None:
        await trio.lowlevel.checkpoint()
        self.story.append(f"drop {resident}")


@attrs.define(eq=False)
class Lab:
    supervisor: Supervisor
    memory: SimulatedMemory
    engines: dict[str, Dozer]
    state: Measurements
    story: list[str]

    async def use(self, resident: ResidentId, seconds: float = 1.0) -> float:
        """Be a client. Returns for how long it waited."""
        began = trio.current_time()
        lease = self.supervisor.request(resident)
        try:
            await lease.granted()
            waited = trio.current_time() - began
            await trio.sleep(seconds)
        finally:
            lease.release()
        return waited


@asynccontextmanager
async def lab(*, files: bool = False, budget: int | None = None, **options: object) -> AsyncIterator[Lab]:
    story: list[str] = []
    memory = SimulatedMemory(shared=True, total_bytes=64 * GIB)
    engines = {name: Dozer(name, memory, story, **options) for name in "ab"}  # type: ignore[arg-type]
    state = Measurements()
    shelf = Shelf(story) if files else None
    layout = ResidencySettings(
        capacities={"default": Capacity(budget_bytes=budget)},
        traits=lambda _: Traits(declared_bytes=engines["a"].size_bytes if budget else None),
        **({"files": shelf} if shelf else {}),
    )
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(
            engines=engines,
            gauges={"default": memory},
            pools_of=dict.fromkeys("ab", ("default",)),
            rules=Rules(),
            settle_timeout_s=25.0,
            hub=EventHub(),
            measurements=state,
            settings=layout,
        )
        await nursery.start(supervisor.run)
        yield Lab(supervisor, memory, engines, state, story)
        nursery.cancel_scope.cancel()
    assert memory.faults == []


async def test_who_makes_way_sleeps_and_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    async with lab() as it:
        for resident in (A, B, A, B):
            await it.use(resident)
        assert it.story == ["start a", "sleep a", "start b", "sleep b", "wake a", "sleep a", "wake b"]
        measured = it.state.of(A)
        assert measured.start_s == pytest.approx(10)
        assert measured.wake_s == pytest.approx(1)
        assert measured.stop_s is None
        assert measured.release_ratio is None
        assert measured.sleep_freed_bytes == pytest.approx(38 * GIB, rel=0.02)
        assert measured.footprint_bytes == pytest.approx(40 * GIB, rel=0.02)


async def test_one_that_frees_too_little_asleep_is_stopped_at_once_and_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with lab(kept_bytes=30 * GIB) as it:
        for resident in (A, B, A):
            await it.use(resident)
        assert it.story == ["start a", "sleep a", "clear a", "start b", "sleep b", "clear b", "start a"]
        await it.use(B)
        assert it.story[-2:] == ["stop a", "start b"]


async def test_one_that_wakes_more_slowly_than_it_starts_is_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with lab(wake_s=12.0) as it:
        for resident in (A, B, A, B, A):
            await it.use(resident)
        assert it.story[-4:] == ["wake b", "stop a", "stop b", "start a"] or "stop a" in it.story


async def test_an_unload_is_no_sleep(autojump_clock: trio.testing.MockClock) -> None:
    async with lab() as it:
        await it.use(A)
        await it.supervisor.until_unloaded(A)
        assert it.story == ["start a", "stop a"]
        assert it.memory.held == {}


async def test_who_sleeps_is_stopped_where_its_rest_is_missing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with lab(budget=45 * GIB, kept_bytes=4 * GIB) as it:
        await it.use(A)
        it.memory.others_bytes = 26 * GIB  # another program takes what was free
        await it.use(B)
        assert it.story == ["start a", "sleep a", "clear a", "start b"]


async def test_files_of_who_comes_are_read_while_who_goes_still_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with lab(files=True) as it:
        it.engines["a"].asleep = False
        await it.use(A)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.use, A, 70.0)
            await trio.sleep(1)
            await it.use(B)
        reads = [line for line in it.story if "read" in line]
        assert reads == ["read b", "read all of b"]
        assert it.story.index("read all of b") < it.story.index("start b")


async def test_reading_ends_when_it_is_of_no_use_any_more(autojump_clock: trio.testing.MockClock) -> None:
    async with lab(files=True, start_s=0.5) as it:
        await it.use(A)
        it.story.clear()
        await it.use(B)
        assert "read enough of b" in it.story
        assert "read all of b" not in it.story


async def test_files_of_who_was_stopped_are_dropped_before_its_memory_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with lab(files=True, kept_bytes=30 * GIB) as it:
        it.state.of(A).sleep_freed_bytes = 0
        await it.use(A)
        await it.use(B)
        assert it.story.index("stop a") < it.story.index("drop a") < it.story.index("start b")
