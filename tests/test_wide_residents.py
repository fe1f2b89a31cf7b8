"""Residents that lie across two memories, beside others in one each, under the virtual clock."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from support.simulated_engine import Script
from support.simulated_memory import GIB, Reclaim
from support.wide_world import BIG, EITHER, ONE, RULES, SMALL, ZERO, declared, running
from trio.testing import MockClock

from engine_router.errors import NeverFits, NotEnoughMemory
from engine_router.events import MemorySettled, SwapEnded
from engine_router.residency import messages
from engine_router.residency.ledger import Capacity, Ledger, Phase, Profile
from engine_router.residency.measurements import Measurements
from engine_router.residency.messages import Ticket
from engine_router.residency.rules import Traits
from engine_router.telemetry.router_gauges import router_gauges
from engine_router.telemetry.sampling import Sampler

BOTH = ("gpu0", "gpu1")
NO_SAMPLES = cast("Sampler", SimpleNamespace(readings={}, ring=()))


@EITHER
async def test_small_ones_run_beside_each_other_and_a_wide_one_has_both(
    autojump_clock: MockClock, capacities: Mapping[str, Capacity] | None
) -> None:
    async with running(capacities=capacities) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.use, ZERO)
            nursery.start_soon(world.use, ONE)
        assert world.waits == {"zero": [pytest.approx(10, abs=0.2)], "one": [pytest.approx(10, abs=0.2)]}
        await world.use(BIG)
        assert world.present("gpu0") == world.present("gpu1") == {"big": Phase.READY}
        assert world.waits["big"][0] < 12  # both make way at the same time
        await world.use(ZERO)
        assert (world.present("gpu0"), world.present("gpu1")) == ({"zero": Phase.READY}, {})


@EITHER
async def test_nobody_starves_on_either_pool(
    autojump_clock: MockClock, capacities: Mapping[str, Capacity] | None
) -> None:
    async with running(capacities=capacities) as world:
        for resident in (ZERO, ONE, BIG):
            await world.keep_using(resident, 4)
        await trio.sleep(3600)
        # Its deadline, a batch of each that is ahead, and their swaps.
        for waits in world.waits.values():
            assert max(waits) < 60 + 2 * (60 + 10 + 2)
        assert world.waits.keys() == {"zero", "one", "big"}
        world.nursery.cancel_scope.cancel()


async def test_each_memory_is_waited_for_and_taken_again_once_it_is_back(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(BIG)
        world.memories["gpu1"].reclaim = Reclaim(delay_s=5)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.use, ZERO)
            nursery.start_soon(world.use, ONE)
        assert world.waits["zero"][0] < 12  # gpu0 was back at once
        assert world.waits["one"][0] > 15
        settled = {event.pool: event for event in world.events if isinstance(event, MemorySettled)}
        assert settled["gpu0"].at < began + 2 < began + 5 < settled["gpu1"].at
        assert {pool: (event.released_bytes, event.expected_bytes) for pool, event in settled.items()} == {
            "gpu0": (20 * GIB, 20 * GIB),
            "gpu1": (18 * GIB, 18 * GIB),
        }
        (last,) = [
            event
            for event in world.of(SwapEnded)[-2:]
            if isinstance(event, SwapEnded) and event.target == "one"
        ]
        assert last.pool == "gpu1"


async def test_an_error_names_the_pool_that_is_short(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.memories["gpu1"].others_bytes = 10 * GIB
        error = await world.refusal(BIG)
        assert isinstance(error, NotEnoughMemory)
        assert error.pool == "gpu1"
        assert "it needs 19.3 GB of pool 'gpu1', and only 15.0 GB were free" in str(error)
        world.memories["gpu1"].others_bytes = 0
        await trio.sleep(100)
        await world.use(BIG)
    too_small = {"gpu0": Capacity(budget_bytes=23 * GIB), "gpu1": Capacity(budget_bytes=10 * GIB)}
    async with running(capacities=too_small) as world:
        error = await world.refusal(BIG)
        assert isinstance(error, NeverFits)
        assert "it needs 19.3 GB, and the budget of pool 'gpu1' is 10.7 GB" in str(error)


async def test_what_each_pool_gave_is_measured_and_counts_from_then_on(autojump_clock: MockClock) -> None:
    def unknown(name: str) -> Traits:
        return declared(name) if name != "big" else Traits(pools=("gpu0", "gpu1"), estimated_bytes=30 * GIB)

    async with running(traits=unknown) as world:
        assert [world.supervisor.profile(BIG).need_in(pool) for pool in ("gpu0", "gpu1")] == [
            15 * GIB,
            15 * GIB,
        ]
        await world.use(BIG)
        await trio.sleep(1)
        profile = world.supervisor.profile(BIG)
        assert (dict(profile.needs), profile.is_guessed) == ({"gpu0": 20 * GIB, "gpu1": 18 * GIB}, False)
        (shown,) = world.read.pool("gpu1").residents
        assert (shown.pools, shown.footprint_in("gpu1"), shown.footprint_bytes) == (
            ("gpu0", "gpu1"),
            18 * GIB,
            38 * GIB,
        )
        # Beside it there is room for 3 GiB on one of them, though not on the other for more.
        await world.use(SMALL)
        assert world.present("gpu1") == {"big": Phase.READY, "small": Phase.READY}
        again = Measurements.from_json(world.state.to_json())
        assert again.of(BIG).needs(("gpu0", "gpu1")) == {"gpu0": 20 * GIB, "gpu1": 18 * GIB}


async def test_a_wide_one_is_shown_in_each_of_its_pools(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(ONE)
        world.nursery.start_soon(world.use, BIG)
        await trio.sleep(0.5)
        for pool in ("gpu0", "gpu1"):
            (swap,) = world.read.pool(pool).swaps
            assert (swap.target, swap.pools, world.read.pool(pool).waiting) == (BIG, BOTH, {BIG: 1})
            assert [ticket.resident for ticket in world.read.queue(pool)] == [BIG]
        assert (world.present("gpu0"), world.present("gpu1")) == ({}, {"one": Phase.STOPPING})
        gauges = router_gauges(world.read, NO_SAMPLES, (), 0.0, {})
        assert {labels: count for labels, count in gauges["swaps_in_progress"].items() if count} == {
            ("gpu0+gpu1",): 1
        }
        assert gauges["waiting"] == {("gpu0+gpu1", "big"): 1}
        await trio.sleep(20)
        assert [world.read.resident(BIG).pools, world.read.resident(ONE).pools] == [
            ("gpu0", "gpu1"),
            ("gpu1",),
        ]
        assert len(world.read.present()) == 1


async def test_a_wide_default_model_comes_back_once_both_are_idle(autojump_clock: MockClock) -> None:
    capacity = Capacity(budget_bytes=23 * GIB, default_model=BIG, return_after_s=30)
    async with running(capacities={"gpu0": capacity, "gpu1": capacity}) as world:
        await trio.sleep(11)
        assert world.present("gpu0") == world.present("gpu1") == {"big": Phase.READY}
        await world.use(ONE)
        assert world.present("gpu0") == {}
        await trio.sleep(29)
        assert world.present("gpu1") == {"one": Phase.READY}
        await trio.sleep(15)
        assert world.present("gpu0") == world.present("gpu1") == {"big": Phase.READY}


async def test_what_could_not_be_stopped_holds_up_its_own_pools_only(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engines["one"].scripts.append(Script(stop_failures=9))
        await world.use(ONE)
        waiting = await world.refusal(BIG)
        assert "is still there" in str(waiting)
        await world.use(ZERO)
        assert world.present("gpu0") == {"zero": Phase.READY}


def test_one_that_shall_move_counts_where_it_lies_until_it_has_gone() -> None:
    profiles = {
        ZERO: Profile(need_bytes=6, pools=("gpu0",)),
        SMALL: Profile(need_bytes=4, pools=("gpu0",)),
    }
    capacities = {name: Capacity(budget_bytes=10) for name in ("gpu0", "gpu1", "gpu2")}
    ledger = Ledger(RULES, capacities, profiles.__getitem__)
    for resident in profiles:
        ticket = Ticket(resident)
        ledger.apply(messages.Acquire(ticket), 0)
        ledger.apply(messages.BecameReady(resident), 0)
        ledger.apply(messages.Release(ticket), 0)
    profiles[ZERO] = Profile(need_bytes=6, pools=("gpu1", "gpu2"), needs={"gpu1": 3, "gpu2": 3})
    assert (
        ledger.apply(messages.Reconfigured(RULES, capacities), 1) == []
    )  # there is room for both, as before
    assert [dict(state.needs) for state in ledger.states] == [{"gpu0": 6}, {"gpu0": 4}]
    ledger.apply(messages.Unload(ZERO), 2)
    ledger.apply(messages.HasEnded(ZERO, None), 3)
    ledger.apply(messages.Acquire(Ticket(ZERO)), 3)
    assert ledger.state(ZERO) is None  # its old memory is not back
    ledger.apply(messages.Settled(ZERO), 4)
    assert [dict(state.needs) for state in ledger.states] == [{"gpu0": 4}, {"gpu1": 3, "gpu2": 3}]
