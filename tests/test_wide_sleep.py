"""Sleep of residents across two memories: what they keep in each, who is cleared away for whom, and when."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.simulated_memory import GIB, SimulatedMemory
from test_sleep_residency import Dozer, Lab
from trio.testing import MockClock

from engine_router.engines.base import ResidentId
from engine_router.events import EventHub
from engine_router.residency.ledger import Capacity, Rules
from engine_router.residency.measurements import Measurements
from engine_router.residency.rules import ResidencySettings, Traits
from engine_router.residency.supervisor import Supervisor

WIDE, ZERO, ONE = ResidentId("wide"), ResidentId("zero"), ResidentId("one")

Sizes = Mapping[str, tuple[int, int]]
"""What a resident takes of each pool, and what it keeps of that asleep, in GiB."""


@attrs.define(eq=False)
class WideDozer(Dozer):
    """A dozer that holds something in each of several memories."""

    parts: dict[str, Dozer] = attrs.field(factory=dict)
    sizes: Callable[[], Sizes] = dict

    def _hold(self, size_bytes: int) -> None:
        for pool, part in self.parts.items():
            held = {self.size_bytes: part.size_bytes, self.kept_bytes: part.kept_bytes}
            part._hold(held.get(size_bytes, 0) if pool in self.sizes() else 0)


@asynccontextmanager
async def bedroom(
    changing: dict[str, Sizes] | None = None, **residents: Sizes
) -> AsyncIterator[tuple[Lab, dict[str, SimulatedMemory]]]:
    residents = residents if changing is None else changing
    story: list[str] = []
    memories = {name: SimulatedMemory(shared=True, total_bytes=24 * GIB) for name in ("gpu0", "gpu1")}
    engines: dict[str, Dozer] = {}
    for name, sizes in residents.items():
        parts = {
            pool: Dozer(name, memories[pool], story, size_bytes=size * GIB, kept_bytes=kept * GIB)
            for pool, (size, kept) in sizes.items()
        }
        whole, kept = (
            sum(part.size_bytes for part in parts.values()),
            sum(part.kept_bytes for part in parts.values()),
        )
        engines[name] = WideDozer(
            name,
            memories["gpu0"],
            story,
            size_bytes=whole,
            kept_bytes=kept,
            parts=parts,
            sizes=functools.partial(residents.__getitem__, name),
        )

    def traits(resident: ResidentId) -> Traits:
        needs = {pool: size * GIB for pool, (size, _) in residents[resident.engine].items()}
        return Traits(
            pools=tuple(needs),
            declared_bytes=sum(needs.values()),
            declared_needs=needs if len(needs) > 1 else {},
        )

    state = Measurements()
    supervisor = Supervisor(
        engines=engines,
        gauges=memories,
        pools_of={name: tuple(sizes) for name, sizes in {**residents, "link": {"gpu0", "gpu1"}}.items()},
        rules=Rules(),
        settle_timeout_s=25.0,
        hub=EventHub(),
        measurements=state,
        settings=ResidencySettings(
            capacities=dict.fromkeys(memories, Capacity(budget_bytes=24 * GIB)), traits=traits
        ),
    )
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield Lab(supervisor, memories["gpu0"], engines, state, story), memories
            nursery.cancel_scope.cancel()
    assert [fault for memory in memories.values() for fault in memory.faults] == []


def held(memory: SimulatedMemory) -> int:
    """Return what residents hold of a memory, in GiB."""
    return sum(memory.held.values()) // GIB


async def test_a_wide_one_sleeps_in_both_pools_and_keeps_a_little_of_each(autojump_clock: MockClock) -> None:
    async with bedroom(wide={"gpu0": (20, 1), "gpu1": (18, 2)}, one={"gpu1": (14, 1)}) as (it, memories):
        for _ in range(2):
            await it.use(WIDE)
            assert await it.use(ONE) < 12
            assert {name: held(memory) for name, memory in memories.items()} == {"gpu0": 1, "gpu1": 16}
        assert it.story == [
            "start wide",
            "sleep wide",
            "start one",
            "sleep one",
            "wake wide",
            "sleep wide",
            "wake one",
        ]
        measured = it.state.of(WIDE)
        assert {name: part.sleep_freed_bytes for name, part in measured.shares.items()} == {
            "gpu0": pytest.approx(19 * GIB, rel=0.02),
            "gpu1": pytest.approx(16 * GIB, rel=0.02),
        }
        assert measured.needs(("gpu0", "gpu1")) == {
            "gpu0": pytest.approx(20 * GIB, rel=0.02),
            "gpu1": pytest.approx(18 * GIB, rel=0.02),
        }


async def test_one_that_frees_just_enough_for_who_waits_sleeps_and_wakes_into_the_rest(
    autojump_clock: MockClock,
) -> None:
    async with bedroom(wide={"gpu0": (20, 10), "gpu1": (18, 10)}, one={"gpu1": (14, 1)}) as (it, memories):
        for resident in (WIDE, ONE, WIDE, ONE):
            await it.use(resident)
        assert it.story[:4] == ["start wide", "sleep wide", "start one", "sleep one"]
        assert it.story[4:] == ["wake wide", "sleep wide", "wake one"]
        assert held(memories["gpu0"]) == 10


async def test_one_that_frees_too_little_is_cleared_away_once_and_never_sleeps_again(
    autojump_clock: MockClock,
) -> None:
    async with bedroom(wide={"gpu0": (20, 18), "gpu1": (18, 16)}, one={"gpu1": (14, 1)}) as (it, _):
        for resident in (WIDE, ONE, WIDE, ONE):
            await it.use(resident)
        assert it.story[:4] == ["start wide", "sleep wide", "clear wide", "start one"]
        assert it.story[4:] == ["sleep one", "start wide", "stop wide", "wake one"]


async def test_what_sleep_sets_free_in_one_pool_is_of_no_use_in_the_other(autojump_clock: MockClock) -> None:
    async with bedroom(wide={"gpu0": (22, 0), "gpu1": (10, 6)}, one={"gpu1": (20, 1)}) as (it, _):
        await it.use(WIDE)
        await it.use(ONE)
        assert it.story == ["start wide", "sleep wide", "clear wide", "start one"]
        it.story.clear()
        await it.use(WIDE)
        await it.use(ONE)
        assert it.story == ["sleep one", "start wide", "stop wide", "wake one"]


async def test_who_sleeps_in_one_pool_is_left_alone_for_what_is_missing_in_the_other(
    autojump_clock: MockClock,
) -> None:
    sizes: dict[str, Sizes] = {
        "zero": {"gpu0": (14, 2)},
        "first": {"gpu0": (14, 2)},
        "one": {"gpu1": (20, 3)},
        "second": {"gpu1": (20, 3)},
        "wide": {"gpu0": (20, 1), "gpu1": (18, 2)},
    }
    async with bedroom(**sizes) as (it, memories):
        await it.use(ZERO)
        await it.use(ResidentId("first"))
        await it.use(ONE)
        memories["gpu1"].others_bytes = 3 * GIB
        await it.use(ResidentId("second"))
        assert "clear one" in it.story
        assert "clear zero" not in it.story


async def test_one_that_sleeps_starts_anew_where_it_shall_lie_in_other_pools(
    autojump_clock: MockClock,
) -> None:
    sizes: dict[str, Sizes] = {"wide": {"gpu0": (20, 1), "gpu1": (18, 2)}, "one": {"gpu1": (14, 1)}}
    async with bedroom(sizes) as (it, _):
        await it.use(WIDE)
        await it.use(ONE)
        sizes["wide"] = {"gpu0": (20, 1)}
        await it.use(WIDE)
        assert it.story[-2:] == ["clear wide", "start wide"]
