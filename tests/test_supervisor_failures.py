"""The supervisor and failures: abandoned and failed starts, deaths, failed stops, defects of engines."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.simulated_engine import Script, SimulatedEngine
from support.simulated_memory import GIB, Reclaim
from support.supervised_world import RULES, A, B, C, running, together
from trio.testing import MockClock

from engine_router.errors import (
    EngineDied,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
)
from engine_router.events import (
    MemorySettled,
    ResidentDied,
)
from engine_router.residency.ledger import Phase

# Starts that nobody wants any more, and starts that fail.


async def test_an_abandoned_start_is_cancelled_and_its_memory_settles_first(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.memory.reclaim = Reclaim(1.5, 20 * GIB)
        with trio.move_on_after(3):
            await world.use(A)
        await trio.sleep(RULES.abandon_grace_s - 0.1)
        assert world.story() == ["start a"]
        await world.use(B)
        assert world.story() == ["start a", "stop a", "end a", "start b", "ready b"]
        ended, started = (
            next(d.at for d in world.shared_actions if str(d) == what) for what in ("end a", "start b")
        )
        assert 1.5 + 40 / 20 * 0.9 < started - ended < 1.5 + 40 / 20 + 0.5
        assert [swap.result for swap in world.swaps()] == ["abandoned", "ok"]


async def test_a_client_that_comes_back_in_time_keeps_the_start(autojump_clock: MockClock) -> None:
    async with running() as world:
        began = trio.current_time()
        with trio.move_on_after(5):
            await world.use(A)
        await trio.sleep(RULES.abandon_grace_s - 0.1)
        await world.use(A, 0.0)
        assert trio.current_time() - began == pytest.approx(10)
        assert world.story() == ["start a", "ready a"]


async def test_a_client_that_comes_back_too_late_gets_a_new_start(autojump_clock: MockClock) -> None:
    async with running() as world:
        with trio.move_on_after(5):
            await world.use(A)
        await trio.sleep(RULES.abandon_grace_s + 0.5)
        await world.use(A, 0.0)
        assert world.story() == ["start a", "stop a", "end a", "start a", "ready a"]


async def test_an_aborted_start_that_took_little_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        await world.use(B)
        world.engine(A).size_bytes = GIB // 100  # it has hardly begun to load
        with trio.move_on_after(3):
            await world.use(A)
        await trio.sleep(10)
        settled = world.of(MemorySettled)[-1]
        assert isinstance(settled, MemorySettled)
        assert (settled.waited_s, settled.warning) == (0, None)


async def test_a_failed_start_is_told_to_every_waiter_at_once_remembered_and_then_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("exit", after_s=0.2))
        began, errors = trio.current_time(), []

        async def fail() -> None:
            errors.append(await world.refusal(A))

        await together(*[fail] * 5)
        assert trio.current_time() - began == pytest.approx(0.2)
        assert all(
            isinstance(error, EngineStartFailed) and error.log_tail == ("bad flag",) for error in errors
        )
        again = await world.refusal(A)
        assert (type(again), again.log_tail) == (EngineStartFailed, ("bad flag",))  # type: ignore[attr-defined]
        assert "(remembered: that was 0 s ago; it is tried again in 5 s, and at once after" in str(again)
        assert str(again).endswith("its last log lines:\n  bad flag")
        assert again.retry_after_s == pytest.approx(5)
        assert world.engine(A).count("start") == 1
        await trio.sleep(RULES.failed_start_memory_s)
        await world.use(A)
        assert world.engine(A).count("start") == 2
        assert [swap.result for swap in world.swaps()] == ["error", "ok"]


async def test_a_failed_start_costs_the_next_one_nothing(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("exit", after_s=0.2))
        began = trio.current_time()
        await together(lambda: world.refusal(A), lambda: world.use(B, 0.0))
        assert trio.current_time() - began == pytest.approx(0.2 + 10, abs=0.1)


async def test_a_start_that_hangs_ends_at_its_timeout(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("hang"))
        await together(lambda: world.refusal(A), lambda: world.use(B))
        assert world.story() == ["start a", "stop a", "end a", "start b", "ready b"]


async def test_a_start_that_hangs_reports_a_timeout(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("hang"))
        assert isinstance(await world.refusal(A), EngineStartTimeout)


# Deaths.


async def test_a_death_revokes_the_leases_and_the_next_request_starts_again(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(die_after_s=5.0))
        error = await world.use_until_revoked(A)
        assert isinstance(error, EngineDied)
        assert error.log_tail == ("the last line",)
        assert len(world.of(ResidentDied)) == 1
        await world.use(A)
        assert world.story() == ["start a", "ready a", "end a", "start a", "ready a"]


async def test_a_death_that_nobody_saw_costs_the_next_request_only_a_start(autojump_clock: MockClock) -> None:
    async with running() as world:
        await world.use(A)
        world.engine(A).kill(A)
        await trio.sleep(10)
        assert world.present() is None
        await world.use(A)
        assert world.engine(A).count("start") == 2


async def test_death_in_the_moment_of_readiness_is_told_to_who_waited(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(die_after_s=0.0))
        assert isinstance(await world.use_until_revoked(A), EngineDied)
        await world.use(A)


async def test_an_end_while_the_stop_is_being_asked_for_is_no_death(autojump_clock: MockClock) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        await world.use(A)
        world.memory.read_s = 0.5
        nursery.start_soon(world.use, B)
        await trio.sleep(0.2)  # the gauge is being read, before the stop
        assert world.present() == (A, Phase.STOPPING)
        world.engine(A).kill(A)
        await trio.sleep(100)
        assert world.of(ResidentDied) == []
        assert [swap.result for swap in world.swaps()] == ["ok", "ok"]
        assert world.story().count("stop a") == 0


@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0])
async def test_an_end_during_the_stop_is_a_stop(autojump_clock: MockClock, at_s: float) -> None:
    async with running() as world, trio.open_nursery() as nursery:
        await world.use(A)
        nursery.start_soon(world.use, B)
        await world.settle_down()
        await trio.sleep(at_s)
        world.engine(A).kill(A)
        await trio.sleep(30)
        assert world.of(ResidentDied) == []
        assert world.present() == (B, Phase.READY)


async def test_doubt_reaches_the_engine_and_may_come_at_any_time(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.supervisor.doubt(A)
        await world.use(A)
        world.supervisor.doubt(A)
        life = world.supervisor.domains["default"].tasks[A]
        with trio.fail_after(1):
            await life.supervision.doubted()


# Stops that fail.


async def test_nothing_is_started_beside_what_could_not_be_stopped(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=1))
        await world.use(A)
        error = await world.refusal(B)
        assert isinstance(error, EngineStopFailed)
        assert world.present() == (A, Phase.STUCK)
        await trio.sleep(1000)
        assert world.engine(B).actions == []
        # The next request tries the stop again.
        await world.use(B)
        assert world.story() == [
            "start a", "ready a", "stop a", "adopt a", "ready a", "stop a", "end a", "start b", "ready b",
        ] or world.story() == [
            "start a", "ready a", "stop a", "adopt a", "stop a", "end a", "start b", "ready b",
        ]  # fmt: skip


async def test_everybody_who_waits_hears_of_a_failed_stop(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=2))
        await world.use(A)
        for _ in range(2):
            await together(lambda: world.refusal(B), lambda: world.refusal(C), lambda: world.refusal(B))
        await together(lambda: world.use(C), lambda: world.use(B))


async def test_a_stuck_resident_is_stopped_before_it_is_used_again(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=1))
        await world.use(A)
        await world.refusal(B)
        await world.use(A)
        assert world.engine(A).count("start") == 2


async def test_a_stuck_resident_that_ended_by_itself_is_noticed_at_the_next_request(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=5))
        await world.use(A)
        await world.refusal(B)
        world.engine(A).kill(A)
        await world.use(B)
        assert world.of(ResidentDied) == []


async def test_an_abandoned_start_that_cannot_be_stopped_blocks_the_next(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_failures=1))
        with trio.move_on_after(3):
            await world.use(A)
        await trio.sleep(10)
        assert world.present() == (A, Phase.STUCK)
        await world.use(B)


# Defects of engines.


async def test_an_unexpected_exception_takes_nobody_down_and_leaves_nothing_running(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("crash", after_s=1.0))
        error = await world.refusal(A)
        assert isinstance(error, EngineStartFailed)
        assert "a defect of the engine" in str(error)
        assert not world.engine(A).is_running(A)
        await world.use(B)


async def test_an_unexpected_exception_in_a_stop_ends_in_another_stop(autojump_clock: MockClock) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script(stop_crashes=1))
        await world.use(A)
        await world.use(B)
        assert world.engine(A).count("stop") == 2


async def test_what_cannot_be_cleared_away_after_an_unexpected_exception_is_stuck(
    autojump_clock: MockClock,
) -> None:
    async with running() as world:
        world.engine(A).scripts.append(Script("crash", stop_failures=1))
        assert isinstance(await world.refusal(A), EngineStopFailed)
        assert world.present() == (A, Phase.STUCK)
        await world.use(B)


async def test_unexpected_exceptions_while_looking_for_what_runs_are_survived(
    autojump_clock: MockClock,
) -> None:
    def break_a(engines: dict[str, SimulatedEngine]) -> None:
        engines["a"].find_error = KeyError("models")

    async with running(prepare=break_a) as world:
        assert "KeyError" in world.notices()
        await world.use(A)
