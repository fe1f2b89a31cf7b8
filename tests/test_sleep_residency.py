"""Sleep and files, as residency decides: who sleeps, who is stopped after all, whose files are read ahead."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

import attrs
import pytest
import trio
import trio.testing
from support.simulated_memory import GIB, SimulatedMemory

from engine_router.engines.base import Ended, Endpoint, EngineLogs, ResidentId, Supervision
from engine_router.events import EventHub, RequestEnded
from engine_router.residency.measurements import Measurements
from engine_router.residency.rules import Capacity, ResidencySettings, Rules, Traits
from engine_router.residency.supervisor import Supervisor

A, B, C = ResidentId("a"), ResidentId("b"), ResidentId("c")


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

    async def ahead(self, resident: ResidentId, *, is_asleep: bool) -> int:
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

    def save(self, resident: ResidentId, seconds: float) -> None:
        """Have a resident's cache save some seconds: it found the tokens that would have been read in these."""
        read = ended(resident, tokens_in=1000, first_token_s=1.0)
        self.state.speeds.note(read)
        self.state.speeds.note(ended(resident, tokens_in=10**6, tokens_cached=int(1000 * seconds)))


def ended(resident: ResidentId, **figures: float) -> RequestEnded:
    return RequestEnded(
        at=trio.current_time(),
        model="m",
        engine=resident.engine,
        path="/v1/chat/completions",
        status=200,
        duration_s=1.0,
        **figures,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def lab(
    *,
    files: bool = False,
    budget: int | None = None,
    sizes: Mapping[str, int] = MappingProxyType({"a": 40, "b": 40}),
    idle_s: float = math.inf,
    **options: object,
) -> AsyncIterator[Lab]:
    story: list[str] = []
    memory = SimulatedMemory(shared=True, total_bytes=64 * GIB)
    engines = {
        name: Dozer(name, memory, story, size_bytes=size * GIB, **options)  # type: ignore[arg-type]
        for name, size in sizes.items()
    }
    state = Measurements()
    shelf = Shelf(story) if files else None
    layout = ResidencySettings(
        capacities={"default": Capacity(budget_bytes=budget)},
        traits=lambda resident: Traits(
            declared_bytes=engines[resident.engine].size_bytes if budget else None,
            cache_sleeps=True,
            idle_timeout_s=idle_s,
        ),
        **({"files": shelf} if shelf else {}),
    )
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(
            engines=engines,
            gauges={"default": memory},
            pools_of=dict.fromkeys(engines, ("default",)),
            rules=Rules(),
            settle_timeout_s=25.0,
            hub=EventHub(),
            measurements=state,
            settings=layout,
            wall_clock=trio.current_time,
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
        assert it.story.index("read all of a") > it.story.index("start a")  # which it waits for anyway
        it.story.clear()
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


@pytest.mark.parametrize(("saved", "cleared"), [("b", "a"), ("a", "b")])
async def test_of_those_that_sleep_only_the_one_goes_whose_cache_saved_less(
    autojump_clock: trio.testing.MockClock, saved: str, cleared: str
) -> None:
    async with lab(sizes={"a": 30, "b": 30, "c": 50}, budget=60 * GIB, kept_bytes=4 * GIB) as it:
        await it.use(A)
        await it.use(B)
        it.save(ResidentId(saved), 100.0)
        it.memory.others_bytes = 8 * GIB
        await it.use(C)
        # 64 GiB, less 8 of others and twice 4 of sleepers: 48 are free, and 50 less 2.5 of slack would do.
        assert it.story[4:] == ["start c"]
        await it.use(A)
        it.memory.others_bytes = 11 * GIB
        it.story.clear()
        await it.use(C)
        assert it.story[0] == "sleep a"
        assert [line for line in it.story if "clear" in line] == [f"clear {cleared}"]


@pytest.mark.parametrize(
    ("saved_s", "goes"), [(0.0, "clear a"), (5.0, "sleep b"), (300.0, "sleep b")], ids=str
)
async def test_an_idle_resident_goes_for_a_sleeper_whose_cache_saved_more(
    autojump_clock: trio.testing.MockClock, saved_s: float, goes: str
) -> None:
    async with lab(sizes={"a": 30, "b": 40, "c": 20}, budget=60 * GIB, kept_bytes=4 * GIB) as it:
        await it.use(A)
        it.save(A, saved_s)
        await it.use(B)
        it.memory.others_bytes = 4 * GIB
        it.story.clear()
        await it.use(C)  # 16 GiB are free: 3 are missing
        assert it.story == [goes, "start c"]


@pytest.mark.parametrize(
    ("saved_s", "is_beside", "exit_"),
    [(0.0, True, "stop a"), (300.0, True, "sleep a"), (300.0, False, "stop a")],
    ids=str,
)
async def test_one_whose_cache_saved_much_sleeps_where_another_can_bring_the_rest(
    autojump_clock: trio.testing.MockClock, saved_s: float, is_beside: bool, exit_: str
) -> None:
    async with lab(sizes={"a": 30, "b": 10, "c": 40}, budget=60 * GIB, kept_bytes=14 * GIB) as it:
        it.engines["b"].kept_bytes = 1 * GIB
        if is_beside:
            await it.use(B)
        await it.use(A)
        it.state.of(A).sleep_freed_bytes, it.state.of(A).wake_s = 16 * GIB, 1.0
        it.save(A, saved_s)
        await it.use(A)
        it.memory.others_bytes = 4 * GIB if is_beside else 14 * GIB
        it.story.clear()
        await it.use(C)  # 20 GiB are free: sleep would bring 16 of the 20 that are missing
        assert it.story[0] == exit_
        assert it.story[-1] == "start c"


@pytest.mark.parametrize(("saved_s", "story"), [(0.0, ["stop a"]), (30.0, ["sleep a"])], ids=str)
async def test_one_that_was_idle_for_long_sleeps_for_its_cache_though_that_frees_little(
    autojump_clock: trio.testing.MockClock, saved_s: float, story: list[str]
) -> None:
    async with lab(budget=60 * GIB, kept_bytes=20 * GIB, idle_s=100.0) as it:
        await it.use(A)
        it.state.of(A).sleep_freed_bytes, it.state.of(A).wake_s = 20 * GIB, 1.0
        it.save(A, saved_s)
        it.story.clear()
        await trio.sleep(120.0)
        assert it.story == story
