"""What becomes of a resident across two memories: holds, pins, priorities, deadlines, failures, other programs, a restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import attrs
import pytest
import trio
import trio.testing
from support.simulated_engine import Script, SimulatedEngine
from support.simulated_memory import GIB
from support.wide_world import BIG, BUDGET, EITHER, ONE, RULES, SMALL, ZERO, World, running
from trio.testing import MockClock

from engine_router.config import Priority
from engine_router.engines.base import ResidentId
from engine_router.errors import EngineDied, EngineStartFailed, LeaseRevoked, NeverFits, RouterError
from engine_router.events import MemorySettled, SwapBegan, SwapEnded
from engine_router.residency import causes
from engine_router.residency.ledger import Capacity, Phase, Rules

EMPTY: dict[str, Phase | None] = {}
BIG_IS_THERE = {"big": Phase.READY}


def evolved(**changes: float) -> Rules:
    return attrs.evolve(RULES, **changes)  # type: ignore[arg-type]


async def waited(world: World, *residents: ResidentId, priority: Priority = "normal") -> list[float]:
    """Use residents at the same time. Returns for how long each was waited for, in seconds."""
    async with trio.open_nursery() as nursery:
        for resident in residents:
            nursery.start_soon(world.use, resident, 1.0, priority)
    return [world.waits[str(resident)][-1] for resident in residents]


async def use_until_revoked(world: World, resident: ResidentId) -> tuple[RouterError | None, float]:
    """Be a client that would never leave. Returns why it had to, and when."""
    lease = world.supervisor.request(resident)
    try:
        with suppress(RouterError), trio.CancelScope() as scope:
            await lease.granted()
            lease.on_revoke(scope.cancel)
            await trio.sleep_forever()
        return lease.error, trio.current_time()
    finally:
        lease.release()


# Who makes way, and when.


@pytest.mark.parametrize(
    ("rules", "priority", "expected_s"),
    [
        (evolved(hold_s=20.0), "normal", 20 + 1 + 10),
        (evolved(hold_s=20.0), "high", 1 + 10),  # a hold is for equals
        (evolved(min_resident_s=40.0), "normal", 39 + 1 + 10),
    ],
    ids=["hold", "urgent", "min-resident"],
)
async def test_what_is_held_in_one_pool_holds_up_a_wide_one(
    autojump_clock: MockClock, rules: Rules, priority: Priority, expected_s: float
) -> None:
    async with running(rules=rules) as world:
        await world.use(ONE)
        (waited_s,) = await waited(world, BIG, priority=priority)
        assert waited_s == pytest.approx(expected_s, abs=0.3)
        assert world.present("gpu0") == world.present("gpu1") == BIG_IS_THERE


@pytest.mark.parametrize(
    ("rules", "expected_s"),
    [(evolved(hold_s=20.0), 20 + 1 + 10), (evolved(min_resident_s=40.0), 39 + 1 + 10)],
    ids=["hold", "min-resident"],
)
async def test_a_wide_one_that_is_held_is_so_in_both_pools(
    autojump_clock: MockClock, rules: Rules, expected_s: float
) -> None:
    async with running(rules=rules) as world:
        await world.use(BIG)
        assert await waited(world, ZERO, ONE) == [pytest.approx(expected_s, abs=0.3)] * 2


async def test_a_pin_counts_in_each_pool_of_a_resident_and_in_no_other(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(BIG)
        world.supervisor.pin(BIG)
        error = await world.refusal(ZERO)
        assert isinstance(error, NeverFits)
        assert "'zero' can never be loaded here" in str(error)
        assert "of pool 'gpu0'" in str(error)
        assert "'big', pinned" in str(error)
        await world.use(SMALL)  # beside it there is room for little on one of them
        assert world.present("gpu1") == {"big": Phase.READY, "small": Phase.READY}
        world.supervisor.unpin(BIG)
        world.supervisor.pin(SMALL)
        await world.use(ONE)  # beside what is pinned, in the place of the wide one
        assert (world.present("gpu0"), set(world.present("gpu1"))) == (EMPTY, {"small", "one"})
        world.supervisor.unpin(SMALL)
        world.supervisor.pin(ONE)
        assert isinstance(await world.refusal(BIG), NeverFits)
        await world.use(ZERO)
        assert world.present("gpu0") == {"zero": Phase.READY}


async def test_who_waits_for_a_wide_one_is_refused_once_it_can_never_come(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(ONE)
        world.nursery.start_soon(world.use, ONE, 30)
        await trio.testing.wait_all_tasks_blocked()
        waiting = world.supervisor.request(BIG)
        world.supervisor.pin(ONE)
        with trio.fail_after(1), pytest.raises(NeverFits):
            await waiting.granted()
        waiting.release()


@pytest.mark.parametrize(
    ("priority", "order"),
    [("high", ["big", "small"]), ("normal", ["small", "big"]), ("low", ["small", "big"])],
)
async def test_priorities_order_wide_and_narrow_ones(
    autojump_clock: MockClock, priority: Priority, order: list[str]
) -> None:
    async with running(capacities={"gpu0": Capacity(), "gpu1": Capacity()}) as world:
        served: list[str] = []

        async def ask(resident: ResidentId, seconds: float, priority: Priority = "normal") -> None:
            await world.use(resident, seconds, priority)
            served.append(str(resident))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ZERO, 8.0)
            nursery.start_soon(ask, ONE, 8.0)
            await trio.sleep(11)
            nursery.start_soon(ask, SMALL, 1.0)
            await trio.sleep(1)
            nursery.start_soon(ask, BIG, 1.0, priority)
        assert served[2:] == order


async def test_leases_in_both_pools_are_revoked_for_a_wide_one_that_is_overdue(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        ends: dict[str, tuple[RouterError | None, float]] = {}

        async def stay(resident: ResidentId) -> None:
            ends[str(resident)] = await use_until_revoked(world, resident)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay, ZERO)
            await trio.sleep(30)
            nursery.start_soon(stay, ONE)
            await trio.sleep(20)
            nursery.start_soon(world.use, BIG)  # overdue at 110
        assert all(isinstance(error, LeaseRevoked) for error, _ in ends.values())
        # Each had a fair time of 60 s since it was ready, which has passed, and then the drain.
        assert ends["zero"][1] == pytest.approx(110 + 30, abs=0.5)
        assert ends["one"][1] == pytest.approx(110 + 30, abs=0.5)
        assert world.waits["big"] == [pytest.approx(60 + 30 + 1 + 10, abs=0.5)]


async def test_a_wide_ones_lease_is_revoked_for_who_is_overdue_in_one_pool(autojump_clock: MockClock) -> None:
    async with running() as world:
        ends: list[tuple[RouterError | None, float]] = []

        async def stay() -> None:
            ends.append(await use_until_revoked(world, BIG))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            await trio.sleep(15)
            nursery.start_soon(world.use, ONE)
            await trio.sleep(70)
            assert world.present("gpu0") == {"big": Phase.DRAINING}
            nursery.start_soon(world.use, ZERO)
        ((error, at),) = ends
        assert isinstance(error, LeaseRevoked)
        assert at == pytest.approx(15 + 60 + 30, abs=0.5)
        assert (world.present("gpu0"), world.present("gpu1")) == (
            {"zero": Phase.READY},
            {"one": Phase.READY},
        )


# Starts that come to nothing.


@EITHER
async def test_a_wide_start_that_nobody_waits_for_is_given_up_in_both_pools(
    autojump_clock: MockClock, capacities: Mapping[str, Capacity] | None
) -> None:
    async with running(capacities=capacities) as world:
        with trio.move_on_after(4):
            await world.use(BIG)
        assert await waited(world, ZERO, ONE) == [pytest.approx(2 + 1 + 10, abs=0.3)] * 2
        assert world.story("big") == ["start", "stop", "end"]
        (swap,) = (e for e in world.of(SwapEnded) if isinstance(e, SwapEnded) and e.target == "big")
        assert swap.result == "abandoned"


@pytest.mark.parametrize(
    "script",
    [Script("exit", 3), Script("fail", 3), Script("crash", 3), Script("hang")],
    ids=["exit", "fail", "crash", "hang"],
)
async def test_a_wide_start_that_fails_leaves_both_pools_to_others(
    autojump_clock: MockClock, script: Script
) -> None:
    async with running() as world:
        world.engines["big"].scripts.append(script)
        world.engines["big"].start_timeout_s = 3
        async with trio.open_nursery() as nursery:
            refusals: list[RouterError] = []

            async def be_refused() -> None:
                refusals.append(await world.refusal(BIG))

            nursery.start_soon(be_refused)
            nursery.start_soon(be_refused)
            await trio.sleep(1)
            nursery.start_soon(world.use, ONE)
            nursery.start_soon(world.use, ZERO)
        assert all(isinstance(error, EngineStartFailed) for error in refusals)
        assert len(refusals) == 2
        assert max(world.waits["one"][0], world.waits["zero"][0]) < 2 + 1 + 10 + 6
        assert (world.present("gpu0"), world.present("gpu1")) == (
            {"zero": Phase.READY},
            {"one": Phase.READY},
        )
        await trio.sleep(10)
        await world.use(BIG)


async def test_a_wide_one_that_dies_frees_both_pools_and_ends_its_requests(autojump_clock: MockClock) -> None:
    async with running() as world:
        ends: list[tuple[RouterError | None, float]] = []

        async def stay() -> None:
            ends.append(await use_until_revoked(world, BIG))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            nursery.start_soon(stay)
            await trio.sleep(15)
            nursery.start_soon(world.use, ZERO)
            world.engines["big"].kill(BIG)
        assert [type(error) for error, _ in ends] == [EngineDied, EngineDied]
        settled = [event.pool for event in world.of(MemorySettled) if isinstance(event, MemorySettled)]
        assert sorted(settled) == ["gpu0", "gpu1"]
        assert world.present("gpu0") == {"zero": Phase.READY}


# What comes by itself.


@pytest.mark.parametrize(
    ("preload", "present"),
    [
        ((BIG,), ({"big"}, {"big"})),
        ((BIG, SMALL), ({"big"}, {"big", "small"})),
        ((ZERO, BIG), ({"zero"}, set())),
        ((ZERO, BIG, ONE), ({"zero"}, {"one"})),
    ],
    ids=["alone", "with-small", "too-late", "skipped"],
)
async def test_wide_ones_are_loaded_ahead_as_far_as_they_fit(
    autojump_clock: MockClock, preload: tuple[ResidentId, ...], present: tuple[set[str], set[str]]
) -> None:
    async with running(preload=preload) as world:
        await trio.sleep(60)
        assert (set(world.present("gpu0")), set(world.present("gpu1"))) == present


async def test_a_wide_one_makes_way_for_the_default_model_of_one_of_its_pools(
    autojump_clock: MockClock,
) -> None:
    home = attrs.evolve(BUDGET, default_model=ZERO, return_after_s=30)
    async with running(capacities={"gpu0": home, "gpu1": BUDGET}) as world:
        await world.use(BIG)
        await trio.sleep(29)
        assert world.present("gpu0") == BIG_IS_THERE
        await trio.sleep(1 + 1 + 10 + 1)
        assert (world.present("gpu0"), world.present("gpu1")) == ({"zero": Phase.READY}, EMPTY)
        await world.use(ONE)
        await trio.sleep(300)
        assert world.present("gpu1") == {"one": Phase.READY}  # in nobody's way


async def test_a_wide_default_model_of_one_pool_has_who_is_idle_in_the_other_go(
    autojump_clock: MockClock,
) -> None:
    home = attrs.evolve(BUDGET, default_model=BIG, return_after_s=30)
    async with running(capacities={"gpu0": home, "gpu1": BUDGET}) as world:
        await trio.sleep(11)
        await world.use(ONE)
        await trio.sleep(45)
        assert world.present("gpu0") == world.present("gpu1") == BIG_IS_THERE


# A restart.


def run_already(*names: str) -> Callable[[dict[str, SimulatedEngine]], object]:
    return lambda engines: [engines[name].run_already() for name in names]


@EITHER
async def test_a_wide_one_that_runs_already_is_taken_over_in_both_pools(
    autojump_clock: MockClock, capacities: Mapping[str, Capacity] | None
) -> None:
    async with running(capacities=capacities, prepare=run_already("big")) as world:
        await trio.sleep(1)
        assert world.present("gpu0") == world.present("gpu1") == BIG_IS_THERE
        await world.use(ZERO)
        assert world.story("big") == ["adopt", "ready", "stop", "end"]
        assert (world.present("gpu0"), world.present("gpu1")) == ({"zero": Phase.READY}, EMPTY)


async def test_of_what_runs_already_who_has_room_stays(autojump_clock: MockClock) -> None:
    def three_run(engines: dict[str, SimulatedEngine]) -> None:
        run_already("one", "big", "small")(engines)
        for part in engines["one"].memory.parts:  # type: ignore[attr-defined]
            part.total_bytes = 64 * GIB

    async with running(prepare=three_run) as world:
        await trio.sleep(1)
        assert (world.present("gpu0"), set(world.present("gpu1"))) == (EMPTY, {"one", "small"})
        assert world.story("big") == ["adopt", "stop", "end"]
        assert not world.engines["big"].is_running(BIG)


# Other programs.


async def test_pressure_in_one_pool_has_a_wide_one_go_from_both(autojump_clock: MockClock) -> None:
    yielding = attrs.evolve(BUDGET, reserve_bytes=2 * GIB, yields_under_pressure=True)
    home = attrs.evolve(yielding, default_model=BIG, return_after_s=10)
    async with running(capacities={"gpu0": home, "gpu1": yielding}) as world:
        await trio.sleep(60)
        assert world.present("gpu0") == world.present("gpu1") == BIG_IS_THERE
        world.memories["gpu1"].others_bytes = 5 * GIB
        await trio.sleep(15)
        assert world.present("gpu0") == world.present("gpu1") == EMPTY
        assert [e.cause for e in world.of(SwapBegan) if isinstance(e, SwapBegan)][-1] == causes.PRESSURE
        await trio.sleep(300)
        assert world.present("gpu0") == EMPTY  # it is wanted there, but has no room in the other
        await world.use(ZERO)  # which concerns nobody else
        world.memories["gpu1"].others_bytes = 0
        await trio.sleep(300)
        assert world.present("gpu0") == world.present("gpu1") == BIG_IS_THERE


async def test_pressure_in_one_pool_leaves_the_other_alone(autojump_clock: MockClock) -> None:
    yielding = attrs.evolve(BUDGET, reserve_bytes=4 * GIB, yields_under_pressure=True)
    async with running(capacities=dict.fromkeys(("gpu0", "gpu1"), yielding)) as world:
        await waited(world, ZERO, ONE)
        await trio.sleep(60)
        world.memories["gpu1"].others_bytes = 8 * GIB
        await trio.sleep(15)
        assert (world.present("gpu0"), world.present("gpu1")) == ({"zero": Phase.READY}, EMPTY)
