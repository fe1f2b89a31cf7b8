"""The supervisor under a virtual clock: batches, leases, unloading, closing, takeover, memory, events, cancellation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import attrs
import pytest
import trio
import trio.testing
from support.cancel_at import CancelAt
from support.simulated_engine import Script, SimulatedEngine
from support.simulated_memory import GIB, Reclaim, SimulatedMemory
from support.supervised_world import RULES, A, B, C, World, running, together
from trio.testing import MockClock

from engine_router.engines.base import ResidentId
from engine_router.errors import (
    EngineStartFailed,
    EngineStopFailed,
    EngineUnreachable,
    LeaseRevoked,
    RouterClosing,
    RouterError,
)
from engine_router.events import (
    MemorySettled,
    ResidentReady,
    SwapBegan,
    SwapPhase,
)
from engine_router.residency.lease import Lease
from engine_router.residency.ledger import Phase, Rules
from engine_router.residency.measurements import Measurements

# Batching and fairness.


async def test_a_request_makes_its_model_resident_and_leaves_it_there(autojump_clock: MockClock) -> None:
    async with running() as world:
        began = trio.current_time()
        endpoint = await world.use(A)
        assert endpoint.base_url.startswith("http://a")
        assert trio.current_time() - began == pytest.approx(11)
        await world.use(A)
        assert world.story() == ["start a", "ready a"]
        assert world.present() == (A, Phase.READY)


async def test_a_lease_tells_how_much_of_its_wait_was_a_start(autojump_clock: MockClock) -> None:
    async with running() as world:
        request = world.supervisor.request
        first = request(A)
        await first.granted()
        assert first.load_wait_s == pytest.approx(10, abs=1)
        assert first.load_wait_s <= first.queue_wait_s
        second = request(B)
        await trio.sleep(20)  # of waiting for the first one's end
        first.release()
        while B not in world.supervisor.domains["default"].tasks:
            await trio.sleep(0.1)
        await trio.sleep(6)
        third = request(B)  # in the middle of the start
        await second.granted()
        await third.granted()
        assert second.queue_wait_s - second.load_wait_s >= 20
        assert second.load_wait_s == pytest.approx(10, abs=1)
        assert third.load_wait_s == third.queue_wait_s == pytest.approx(4, abs=1)
        fourth = request(B)
        await fourth.granted()
        assert fourth.load_wait_s == fourth.queue_wait_s == 0
        for lease in (second, third, fourth):
            lease.release()


async def test_what_was_found_running_was_not_started_for_anybody(autojump_clock: MockClock) -> None:
    async with running(prepare=lambda engines: engines["a"].run_already()) as world:
        lease = world.supervisor.request(A)
        await lease.granted()
        assert lease.load_wait_s == 0
        lease.release()


@pytest.mark.parametrize(("order", "most_swaps"), [("ABABABABAB", 2), ("AAAAABBBBB", 2), ("AAAAAAAAAA", 1)])
async def test_requests_in_flight_together_are_served_in_batches(
    autojump_clock: MockClock, order: str, most_swaps: int
) -> None:
    async with running() as world:
        await together(*(lambda name=name: world.use(ResidentId(name.lower()), 0.1) for name in order))
        assert Counter(world.served) == Counter(order.lower())
        assert len(world.swaps()) <= most_swaps
        assert world.story().count("start a") == 1


@pytest.mark.parametrize("order", ["ABABABABAB", "AAAAABBBBB"])
async def test_one_swap_is_enough_when_one_of_two_is_resident(autojump_clock: MockClock, order: str) -> None:
    async with running() as world:
        await world.use(A)
        before = len(world.swaps())
        await together(*(lambda name=name: world.use(ResidentId(name.lower()), 0.1) for name in order))
        assert len(world.swaps()) == before + 1


async def test_what_waits_when_a_resident_is_ready_is_served_at_once_even_if_others_are_overdue(
    autojump_clock: MockClock,
) -> None:
    async with running(rules=attrs.evolve(RULES, max_wait_s=1.0)) as world:
        await together(
            lambda: world.use(A, 0.1),
            *(lambda: world.use(B, 5.0) for _ in range(5)),
            *(lambda: world.use(A, 5.0) for _ in range(5)),
        )
        # The second batch of A was overdue long before B was ready.
        assert len(world.swaps()) <= 3
        assert len(world.served) == 11


async def test_nobody_starves_while_the_resident_stays_busy(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:

        async def keep_busy() -> None:
            while True:
                await world.use(A, 3.0)

        nursery.start_soon(keep_busy)
        await trio.sleep(1.5)
        nursery.start_soon(keep_busy)
        await trio.sleep(20)
        began = trio.current_time()
        await world.use(B)
        assert RULES.max_wait_s <= trio.current_time() - began <= RULES.max_wait_s + 3 + 1 + 10 + 1.1
        nursery.cancel_scope.cancel()


async def test_the_queue_is_served_by_who_waits_longest(autojump_clock: MockClock) -> None:
    async with running() as world:
        await together(
            lambda: world.use(A, 5.0),
            lambda: world.use(B, name="b1"),
            lambda: world.use(C),
            lambda: world.use(B),
        )
        assert [name[0] for name in world.served] == ["a", "b", "b", "c"]


async def test_a_lease_that_outlives_the_drain_deadline_is_revoked(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        errors: list[RouterError] = []

        async def stay() -> None:
            errors.append(await world.use_until_revoked(A))

        nursery.start_soon(stay)
        await trio.sleep(15)  # ready since 5 s
        began = trio.current_time()
        await world.use(B)
        assert isinstance(errors[0], LeaseRevoked)
        # Admission closed after 60 s; the lease had until 60 s after ready, or that moment, and 30 s beyond.
        assert trio.current_time() - began == pytest.approx(60 + 30 + 1 + 10 + 1)


async def test_a_client_that_ignores_its_revocation_holds_up_nobody(autojump_clock: MockClock) -> None:
    async with running() as world:
        lease = world.supervisor.request(A)
        await lease.granted()
        await world.use(B)
        assert isinstance(lease.error, LeaseRevoked)
        with pytest.raises(LeaseRevoked):
            await lease.granted()
        called: list[bool] = []
        lease.on_revoke(lambda: called.append(True))
        assert called == [True]
        lease.release()
        lease.release()
        await world.settle_down()
        world.assert_quiet()


async def test_two_pools_work_at_the_same_time(autojump_clock: MockClock) -> None:
    async with running(own_pools=True) as world:
        began = trio.current_time()
        await together(lambda: world.use(A), lambda: world.use(B), lambda: world.use(C))
        assert trio.current_time() - began == pytest.approx(11)
        assert world.present("a") == (A, Phase.READY)
        assert world.present("b") == (B, Phase.READY)


async def test_a_ready_model_never_waits_for_another_pools_stop(autojump_clock: MockClock) -> None:
    async with running(own_pools=True) as world, trio.open_nursery() as nursery:
        world.engines["b"].by_model = True
        world.engines["b"].stop_s = 50.0
        await world.use(A)
        await world.use(ResidentId("b", "x"))
        nursery.start_soon(world.use, ResidentId("b", "y"))
        await trio.sleep(1)
        began = trio.current_time()
        await world.use(A, 0.0)
        assert trio.current_time() == began


# Leases.


async def test_a_cancelled_wait_keeps_its_place(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        await world.use(A)
        nursery.start_soon(world.use, A, 10.0)
        await world.settle_down()
        lease = world.supervisor.request(B)
        with trio.move_on_after(5):
            await lease.granted()
        nursery.start_soon(world.use, C)
        await lease.granted()
        assert world.engine(C).actions == []
        assert lease.queue_wait_s == pytest.approx(10 + 1 + 10)
        lease.release()


async def test_a_lease_takes_the_short_cut_only_where_nothing_is_to_be_decided_before(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        await world.use(A)
        taken = world.supervisor.request(A)
        assert taken.endpoint is not None
        taken.release()
        world.supervisor.unload(A)
        later = world.supervisor.request(A)
        assert later.endpoint is None  # the unload was told before
        await later.granted()
        assert world.story()[-4:] == ["stop a", "end a", "start a", "ready a"]
        later.release()


async def test_an_unload_waits_for_the_end_of_what_was_asked_for_just_before(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        lease = world.supervisor.request(A)
        await world.supervisor.until_unloaded(A)
        assert world.present() is None
        assert not world.engine(A).is_running(A)
        lease.release()


async def test_release_is_synchronous_and_may_be_repeated(autojump_clock: MockClock) -> None:
    async with running() as world:
        first, second = world.supervisor.request(A), world.supervisor.request(A)
        first.release()
        first.release()
        await second.granted()
        second.release()
        second.release()
        await world.use(B)
        await world.settle_down()
        world.assert_quiet()


async def test_a_request_withdrawn_before_anybody_saw_it_leaves_nothing(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.supervisor.request(A).release()
        await trio.sleep(100)
        world.assert_quiet()
        assert world.story().count("ready a") == 0


async def test_a_lease_released_in_the_moment_of_its_grant_is_not_held(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        lease = world.supervisor.request(A)
        await trio.lowlevel.checkpoint()
        lease.release()
        began = trio.current_time()
        await world.use(B)
        assert trio.current_time() - began == pytest.approx(1 + 10 + 1)


async def test_one_error_for_many_waiters_carries_no_foreign_traceback(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("fail"))
        lease = world.supervisor.request(A)
        depths = []
        for _ in range(3):
            try:
                await lease.granted()
            except EngineStartFailed as error:
                depth, trace = 0, error.__traceback__
                while trace is not None:
                    depth, trace = depth + 1, trace.tb_next
                depths.append(depth)
        lease.release()
        assert depths[0] == depths[2]


# Unload.


async def test_unload_stops_an_idle_resident(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        world.supervisor.unload(B)  # is not there: nothing happens
        world.supervisor.unload(A)
        await trio.sleep(5)
        assert world.story() == ["start a", "ready a", "stop a", "end a"]
        assert world.present() is None
        assert world.swaps()[-1].result == "ok"
        assert world.swaps()[-1].cause == "unload asked for"


async def test_unload_lets_leases_end_and_serves_later_requests_after_a_new_start(
    autojump_clock: MockClock,
) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        await world.use(A)
        nursery.start_soon(world.use, A, 10.0, "early")
        await world.settle_down()
        world.supervisor.unload(A)
        nursery.start_soon(world.use, A, 1.0, "late")
        await trio.sleep(5)
        assert world.served == ["a", "early"]
        await trio.sleep(30)
        assert world.served == ["a", "early", "late"]
        assert world.engine(A).count("start") == 2


async def test_unload_ends_a_start(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A)
        await trio.sleep(3)
        world.supervisor.unload(A)
        await trio.sleep(30)
        # Who waits is still served, by a start of its own.
        assert world.story() == ["start a", "stop a", "end a", "start a", "ready a"]


async def test_a_start_that_is_unwanted_before_it_began_never_begins(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        world.memory.read_s = 0.5  # before a start
        nursery.start_soon(world.refusal, A)
        await trio.sleep(0.1)
        world.memory.read_s = 0.0
        await world.supervisor.close(5)
        assert trio.current_time() == pytest.approx(0.5)
        assert world.story() == []
        assert world.present() is None


async def test_a_start_that_fails_while_its_stop_is_asked_for_is_no_failure(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("exit", after_s=2.9))
        world.memory.read_s = 0.3
        with trio.move_on_after(1):
            await world.use(A)
        await trio.sleep(RULES.abandon_grace_s + 0.1)  # the gauge is being read, before the stop
        assert world.present() == (A, Phase.STOPPING)
        await trio.sleep(0.3)
        assert world.story() == ["start a", "end a"]
        await world.use(A)  # at once: nothing is held against it
        assert [swap.result for swap in world.swaps()] == ["abandoned", "ok"]


async def test_unload_in_the_moment_of_readiness(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A)
        await trio.sleep(10)
        world.supervisor.unload(A)
        await trio.sleep(60)
        assert world.served == ["a"]
        world.assert_quiet()


async def test_unload_while_draining_shortens_the_drain(autojump_clock: MockClock) -> None:
    rules = attrs.evolve(RULES, max_wait_s=100.0, drain_timeout_s=20.0)
    async with running(rules=rules) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, B, 1.0)
        nursery.start_soon(world.use_until_revoked, A)
        await trio.sleep(60)
        world.supervisor.unload(A)
        await trio.sleep(25)
        assert world.present() != (A, Phase.DRAINING)
        nursery.cancel_scope.cancel()


# Closing.


async def test_close_waits_for_leases_then_stops_what_it_started(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A, 5.0)
        await trio.sleep(11)
        began = trio.current_time()
        await world.supervisor.close(30)
        assert trio.current_time() - began == pytest.approx(4 + 1)
        assert not world.engine(A).is_running(A)
        assert isinstance(await world.refusal(A), RouterClosing)


async def test_close_revokes_after_its_grace(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        errors: list[RouterError] = []

        async def stay() -> None:
            errors.append(await world.use_until_revoked(A))

        nursery.start_soon(stay)
        await trio.sleep(11)
        began = trio.current_time()
        await world.supervisor.close(7)
        assert trio.current_time() - began == pytest.approx(7 + 1)
        assert isinstance(errors[0], LeaseRevoked)


async def test_close_refuses_who_waits_and_ends_a_start(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.refusal, A)
        nursery.start_soon(world.refusal, B)
        await trio.sleep(3)
        await world.supervisor.close(30)
        assert sorted(world.story()[-2:]) == ["end a", "stop a"] or sorted(world.story()[-2:]) == [
            "end b",
            "stop b",
        ]


async def test_close_does_not_wait_for_memory(autojump_clock: MockClock) -> None:
    async with (
        running(memory=SimulatedMemory(reclaim=Reclaim(1000.0))) as world,
        trio.open_nursery() as nursery,
    ):
        await world.use(A)
        nursery.start_soon(world.refusal, B)
        await trio.sleep(2)
        assert world.supervisor.domains["default"].ledger.settling == {A}
        began = trio.current_time()
        await world.supervisor.close(30)
        assert trio.current_time() == began


async def test_close_right_after_a_request_returns_when_that_is_over_too(autojump_clock: MockClock) -> None:
    async with running() as world:
        lease = world.supervisor.request(A)
        await world.supervisor.close(5)
        assert isinstance(lease.error, RouterClosing)
        lease.release()
        assert not world.engine(A).is_running(A)


async def test_close_when_nothing_runs_is_done_at_once(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.supervisor.close(5)
        await world.supervisor.close(5)


async def test_close_tries_a_stop_that_failed_once_more(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=1))
        await world.use(A)
        await world.refusal(B)
        await world.supervisor.close(5)
        assert not world.engine(A).is_running(A)
        assert world.notices() == ""


async def test_close_leaves_behind_what_cannot_be_stopped_and_says_so(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=9))
        await world.use(A)
        await world.supervisor.close(5)
        assert world.notices().count("left behind") == 1
        assert world.engine(A).count("stop") == 1


async def test_the_end_of_the_router_is_told_to_everybody(autojump_clock: MockClock) -> None:
    async with running() as world:
        held, waiting = world.supervisor.request(A), world.supervisor.request(B)
        await held.granted()
        revoked: list[bool] = []
        held.on_revoke(lambda: revoked.append(True))
        world.nursery.cancel_scope.shield = True
        supervisor_nursery = world.supervisor._nursery
        assert supervisor_nursery is not None
        supervisor_nursery.cancel_scope.cancel()
        with pytest.raises(RouterClosing):
            await waiting.granted()
        assert revoked == [True]
        assert isinstance(await world.refusal(C), RouterClosing)
        held.release()
        waiting.release()
        await world.supervisor.close(5)
        assert not world.engine(A).is_running(A)


# What runs already.


async def test_what_runs_already_is_taken_over(autojump_clock: MockClock) -> None:
    async with running(prepare=lambda engines: engines["b"].run_already()) as world:
        await world.use(B, 0.0)
        assert trio.current_time() == 0
        assert world.story() == ["adopt b", "ready b"]
        ready = world.of(ResidentReady)[0]
        assert isinstance(ready, ResidentReady)
        assert ready.adopted
        await world.use(A)  # it is stopped like any other
        assert not world.engine(B).is_running(B)


async def test_close_leaves_running_what_was_found_running(autojump_clock: MockClock) -> None:
    async with running(prepare=lambda engines: engines["b"].run_already()) as world:
        await world.use(B, 0.0)
        await world.supervisor.close(5)
        assert world.engine(B).is_running(B)
        assert world.engine(B).count("stop") == 0


async def test_close_leaves_running_what_was_found_running_after_its_stop_failed(
    autojump_clock: MockClock,
) -> None:
    async with running(prepare=lambda e: e["b"].run_already(script=Script(stop_failures=1))) as world:
        await world.use(B, 0.0)
        await world.refusal(A)
        await world.supervisor.close(5)
        assert world.engine(B).is_running(B)


async def test_extras_are_stopped_since_one_memory_has_one_resident(autojump_clock: MockClock) -> None:
    async with running(prepare=lambda e: [e[name].run_already() for name in "cab"]) as world:
        await world.settle_down()
        assert world.present() == (A, Phase.READY)
        assert not world.engine(B).is_running(B)
        assert not world.engine(C).is_running(C)
        assert "b was found running beside a and is stopped" in world.notices()


async def test_an_extra_that_cannot_be_stopped_is_told(autojump_clock: MockClock) -> None:
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].run_already()
        engines["b"].run_already(script=Script(stop_failures=1))

    async with running(prepare=prepare) as world:
        assert "is still there" in world.notices()


async def test_an_engine_that_cannot_say_what_runs_is_not_taken_for_one_where_nothing_runs(
    autojump_clock: MockClock,
) -> None:
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].find_error = EngineUnreachable("a", "answers nonsense")
        engines["b"].find_s = 1000.0

    async with running(prepare=prepare) as world:
        assert "answers nonsense" in world.notices()
        assert "did not say within 5 s" in world.notices()


class EndsOnceFound(SimulatedEngine):
    async def find(self) -> Sequence[ResidentId]:
        found = await super().find()
        for resident in found:
            self.kill(resident)
        return found


async def test_a_takeover_that_comes_too_late_is_a_start(autojump_clock: MockClock) -> None:
    def prepare(engines: dict[str, SimulatedEngine]) -> None:
        before = engines["b"]
        engines["b"] = EndsOnceFound("b", before.memory, shared_actions=before.shared_actions)
        engines["b"].run_already()

    async with running(prepare=prepare) as world:
        await world.use(B)
        assert world.story() == ["end b", "adopt b", "start b", "ready b"]


# Memory.


@pytest.mark.parametrize(
    ("reclaim", "least_s", "most_s"),
    [
        (Reclaim(), 0.0, 0.0),
        (Reclaim(delay_s=1.5), 1.5, 1.6),
        (Reclaim(bytes_per_s=2 * GIB), 19.0, 20.1),
        (Reclaim(delay_s=1.5, bytes_per_s=2 * GIB), 20.5, 21.6),
    ],
    ids=["at once", "late", "slow", "late and slow"],
)
async def test_a_start_waits_for_memory_and_not_longer(
    autojump_clock: MockClock, reclaim: Reclaim, least_s: float, most_s: float
) -> None:
    async with running(memory=SimulatedMemory(reclaim=reclaim)) as world:
        await world.use(A)
        await world.use(B)
        ended, started = (
            next(d.at for d in world.shared_actions if str(d) == what) for what in ("end a", "start b")
        )
        assert least_s <= started - ended <= most_s
        settled = world.of(MemorySettled)[0]
        assert isinstance(settled, MemorySettled)
        assert settled.warning is None
        assert settled.expected_bytes == 40 * GIB


async def test_memory_that_never_comes_back_is_told_and_the_next_start_tried(
    autojump_clock: MockClock,
) -> None:
    async with running(memory=SimulatedMemory(reclaim=Reclaim(3000.0), tolerance=1.0)) as world:
        await world.use(A)
        await world.use(B)
        settled = world.of(MemorySettled)[0]
        assert isinstance(settled, MemorySettled)
        assert settled.warning is not None
        assert "40.0 GiB did not come back" in settled.warning


async def test_an_unreadable_gauge_stops_nothing(autojump_clock: MockClock) -> None:
    async with running(memory=SimulatedMemory(readable=False), settle_timeout_s=3.0) as world:
        await world.use(A)
        await world.use(B)
        settled = world.of(MemorySettled)[0]
        assert isinstance(settled, MemorySettled)
        assert "cannot be read" in str(settled.warning)


async def test_a_gauge_that_hangs_stops_nothing(autojump_clock: MockClock) -> None:
    async with running(memory=SimulatedMemory(read_s=math.inf), settle_timeout_s=3.0) as world:
        await world.use(A)
        await world.use(B)


async def test_footprint_and_times_are_learned(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        await world.use(B)
        await world.settle_down()
        assert attrs.asdict(world.state.of(A)) == {
            "footprint_bytes": 40 * GIB,
            "release_ratio": None,
            "start_s": pytest.approx(10),
            "stop_s": pytest.approx(1),
            "settle_s": 0.0,
            "sleep_freed_bytes": None,
            "shares": {},
            "wake_s": None,
        }
        assert world.state.changed
        assert world.supervisor.expected_s(A, "start") == pytest.approx(10)
        assert world.supervisor.expected_s(A, "drain") is None


async def test_a_footprint_measured_while_its_owner_goes_is_not_believed(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        world.memory.read_s = 0.9  # the reading after the start of B ends when B has gone
        await together(lambda: world.use(B, 0.0), lambda: _kill_when_ready(world, B))
        assert world.state.of(B).footprint_bytes is None


async def _kill_when_ready(world: World, resident: ResidentId) -> None:
    while world.present() != (resident, Phase.READY):
        await trio.sleep(0.1)
    world.engine(resident).kill(resident)
    await trio.sleep(5)


async def test_a_gauge_that_answers_after_the_end_gives_no_baseline(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        await world.use(A)
        world.memory.read_s = 0.5
        world.memory.reclaim = Reclaim(delay_s=0.1)
        nursery.start_soon(world.use, B)
        await trio.sleep(0.3)
        life = world.supervisor.domains["default"].tasks[A]
        world.engine(A).kill(A)
        await trio.sleep(100)
        assert life.shares["default"].baseline is None
        assert life.stop_asked_at == math.inf


async def test_what_never_comes_back_is_learned_and_no_longer_waited_for(autojump_clock: MockClock) -> None:
    def shrink(engines: dict[str, SimulatedEngine]) -> None:
        for engine in engines.values():
            engine.size_bytes = 4 * GIB

    async with running(memory=SimulatedMemory(kept_ratio=0.4), prepare=shrink) as world:
        for resident in (A, B) * 4:
            await world.use(resident)
        waits = [event.waited_s for event in world.events if isinstance(event, MemorySettled)]
        assert waits[0] > 0
        assert waits[2:] == [0.0] * (len(waits) - 2)
        assert world.state.of(A).release_ratio == pytest.approx(0.6)


async def test_a_learned_release_ratio_does_not_wear_off(autojump_clock: MockClock) -> None:
    state = Measurements()
    state.of(A).release_ratio = state.of(B).release_ratio = 1.0
    async with running(memory=SimulatedMemory(reclaim=Reclaim(bytes_per_s=4 * GIB)), state=state) as world:
        for resident in (A, B) * 5:
            await world.use(resident)
        assert world.state.of(A).release_ratio == pytest.approx(1.0)


# Events.


async def test_the_events_of_a_swap_come_in_order(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        world.events.clear()
        await together(lambda: world.use(A, 70.0), lambda: world.use(B))
        kinds = [event.phase if isinstance(event, SwapPhase) else event.name for event in world.events]
        assert kinds == [
            "swap_began", "drain", "stop", "settle", "memory_settled", "start", "swap_ended", "resident_ready",
        ]  # fmt: skip
        began, ended = world.of(SwapBegan)[0], world.swaps()[0]
        assert isinstance(began, SwapBegan)
        assert (began.source, began.target, began.cause) == ("a", "b", "b has waited 60 s")
        assert (began.in_flight, began.waiting) == (1, 1)
        assert ended.result == "ok"
        assert ended.phases == pytest.approx({"drain": 10, "stop": 1, "settle": 0, "start": 10})
        assert ended.duration_s == pytest.approx(21)


async def test_a_drain_that_nobody_wants_any_more_is_abandoned(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.use, A, 100.0)
        await trio.sleep(11)
        with trio.move_on_after(65):
            await world.use(B)
        await world.use(A, 0.0)  # open again
        assert world.engine(A).count("stop") == 0
        assert [swap.result for swap in world.swaps()] == ["ok", "abandoned"]


async def test_a_swap_whose_target_nobody_wants_any_more_is_abandoned(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).stop_s = 10.0
        await world.use(A)
        with trio.move_on_after(5):
            await world.use(B)
        await trio.sleep(10)
        assert world.present() is None
        assert [swap.result for swap in world.swaps()] == ["ok", "abandoned"]


# Cancellation, everywhere.


@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
@pytest.mark.parametrize("script", [Script(), Script(stop_failures=1)], ids=["well", "failing stop"])
async def test_a_client_may_leave_at_every_step_of_anybody(
    autojump_clock: MockClock, script: Script, after: bool
) -> None:
    rules = Rules(drain_timeout_s=2.0, max_wait_s=1.0, abandon_grace_s=0.5)
    phases: Counter[str] = Counter()
    for n in itertools.count(1):
        memory = SimulatedMemory(reclaim=Reclaim(0.1))
        async with running(engines="ab", rules=rules, memory=memory) as world:
            world.engine(A).scripts.append(script)
            holder = world.supervisor.request(A)
            await holder.granted()
            with CancelAt(n, after=after) as sweep:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_release_later, holder)

                    def leaving(world: World = world, sweep: CancelAt = sweep) -> None:
                        present = world.present()
                        phases[present[1].value if present else "settling"] += sweep.fired
                        if present == (B, Phase.STARTING):
                            phases["starting b"] += 1

                    with sweep.scope:
                        await _swallow_refusal(world, B, leaving)
            await trio.sleep(60)
            world.assert_quiet()
            with trio.fail_after(200):
                await _swallow_refusal(world, A)
                await _swallow_refusal(world, B)
                await world.use(A)
                await world.use(B)
            await world.settle_down()
            world.assert_quiet()
        if not sweep.fired:
            break
    # A stop that fails ends the wait, so that there is nobody to leave after it.
    expected = {"ready", "draining", "stopping"} | (
        set() if script.stop_failures else {"settling", "starting b"}
    )
    assert expected <= {phase for phase, count in phases.items() if count}


async def _release_later(lease: Lease) -> None:
    for _ in range(15):  # steps, in each phase until then
        await trio.sleep(0.1)
    lease.release()


async def _swallow_refusal(
    world: World, resident: ResidentId, leaving: Callable[[], object] = lambda: None
) -> None:
    lease = world.supervisor.request(resident)
    try:
        await lease.granted()
        await trio.sleep(0.5)
    except EngineStopFailed:
        pass
    finally:
        leaving()
        lease.release()


async def test_the_router_may_go_down_at_every_step(autojump_clock: MockClock) -> None:
    for n in itertools.count(1):
        async with running(engines="ab") as world:
            supervisor_nursery = world.supervisor._nursery
            assert supervisor_nursery is not None
            outcomes: list[str] = []

            async def client(
                resident: ResidentId, world: World = world, outcomes: list[str] = outcomes
            ) -> None:
                lease = world.supervisor.request(resident)
                try:
                    await lease.granted()
                    with trio.CancelScope() as scope:
                        lease.on_revoke(scope.cancel)
                        await trio.sleep(1)
                    outcomes.append("revoked" if lease.error else "served")
                except RouterClosing:
                    outcomes.append("refused")
                finally:
                    lease.release()

            with CancelAt(n, supervisor_nursery.cancel_scope, supervisor_nursery.parent_task) as sweep:
                await together(lambda: client(A), lambda: client(B))
            assert len(outcomes) == 2
            await world.settle_down()
            if sweep.fired:
                assert not world.engine(A).is_running(A)
                assert not world.engine(B).is_running(B)
        if not sweep.fired:
            break
