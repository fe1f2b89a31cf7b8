"""settle(): as long as it takes, not a moment longer, and never fooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import attrs
import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine_router.memory import (
    Gauge,
    GaugeUnreadable,
    MemoryNotReturned,
    MemoryReading,
    NullGauge,
    SettleOutcome,
    SettleResult,
    settle,
)

MIB = 2**20
GIB = 2**30
BASELINE = 20 * GIB
HELD = 81 * GIB
TARGET = HELD - HELD // 20
INTERVAL_S = 0.03

Memory = Callable[[float], float]
"""Seconds since the gauge's first read -> bytes above the baseline."""


@attrs.define
class ScriptedGauge:
    """A pool whose free memory is a function of time."""

    memory: Memory
    takes_s: float = 0.0
    unreadable: Callable[[float], bool] = lambda _: False
    asked: int = 0
    seen: list[int] = attrs.field(factory=list)
    name: str = "scripted"
    _born: float = attrs.field(factory=trio.current_time)

    async def read(self) -> MemoryReading:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.takes_s:
            await trio.sleep(self.takes_s)
        at = trio.current_time() - self._born
        if self.unreadable(at):
            raise GaugeUnreadable(f"scripted at {at:.2f} s")
        available = BASELINE + round(self.memory(at))
        self.seen.append(available)
        return MemoryReading(available)


def ramp(amount: float, *, start_s: float = 0.0, per_s: float = math.inf) -> Memory:
    """Nothing until `start_s`, then towards `amount` (which may be negative) by `per_s` bytes a second."""

    def memory(at: float) -> float:
        if at < start_s:
            return 0.0
        reached = math.inf if math.isinf(per_s) else (at - start_s) * per_s
        return math.copysign(min(abs(amount), reached), amount)

    return memory


def steps(*then: tuple[float, float]) -> Memory:
    """Each (from second, bytes) holds until the next one; nothing before the first."""

    def memory(at: float) -> float:
        return next((value for second, value in reversed(then) if at >= second), 0.0)

    return memory


def together(*parts: Memory) -> Memory:
    return lambda at: sum(part(at) for part in parts)


async def settled(
    gauge: Gauge,
    *,
    expected: int | None = HELD,
    baseline: int | None = BASELINE,
    timeout_s: float = 25.0,
) -> SettleResult:
    with trio.fail_after(timeout_s + 1.0):
        return await settle(
            gauge,
            baseline_bytes=baseline,
            expected_bytes=expected,
            timeout_s=timeout_s,
            interval_s=INTERVAL_S,
        )


def lasted(result: SettleResult, seconds: float) -> bool:
    """Whether it ended at that moment, give or take two samples."""
    return seconds - 1e-6 <= result.waited_s <= seconds + 2 * INTERVAL_S + 1e-6


# --- it costs next to nothing --------------------------------------------------------------------------


async def test_memory_that_is_back_costs_one_sample_and_no_sleep(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD))
    result = await settled(gauge)
    assert result == SettleResult(SettleOutcome.RETURNED, HELD, 0, waited_s=0.0, samples=1)
    assert gauge.asked == 1


@pytest.mark.parametrize("expected", [-GIB, 0, 63 * MIB, 64 * MIB])
async def test_a_resident_that_freed_nothing_costs_one_sample(
    expected: int, autojump_clock: MockClock
) -> None:
    gauge = ScriptedGauge(ramp(-5 * GIB))
    result = await settled(gauge, expected=expected)
    assert (result.outcome, result.waited_s, gauge.asked) == (SettleOutcome.NOTHING, 0.0, 1)
    assert result.released_bytes == -5 * GIB


async def test_where_nothing_is_expected_an_unreadable_gauge_does_not_matter(
    autojump_clock: MockClock,
) -> None:
    result = await settled(ScriptedGauge(ramp(0), unreadable=lambda _: True), expected=0)
    assert result == SettleResult(SettleOutcome.NOTHING, 0, 0, waited_s=0.0, samples=0)


async def test_where_nothing_is_expected_a_gauge_that_hangs_costs_a_moment(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(0), takes_s=math.inf), expected=0)
    assert result.outcome is SettleOutcome.NOTHING
    assert lasted(result, 0.4)


async def test_a_pool_that_is_not_measured_has_nothing_to_wait_for(autojump_clock: MockClock) -> None:
    result = await settled(NullGauge(), baseline=0)
    assert result == SettleResult(SettleOutcome.NOTHING, 0, 0, waited_s=0.0, samples=0)


async def test_the_target_forgives_five_per_cent(autojump_clock: MockClock) -> None:
    assert (await settled(ScriptedGauge(ramp(TARGET)))).outcome is SettleOutcome.RETURNED
    short = await settled(ScriptedGauge(ramp(TARGET - MIB)))
    assert short.outcome is SettleOutcome.PLATEAU
    assert short.missing_bytes == HELD - TARGET + MIB


async def test_the_target_forgives_a_small_resident_64_mib(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(40 * MIB)), expected=100 * MIB)
    assert (result.outcome, result.samples) == (SettleOutcome.RETURNED, 1)


async def test_a_gauge_that_is_slow_is_left_alone_for_as_long_as_it_took(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD, start_s=2.0), takes_s=0.2)
    result = await settled(gauge)
    assert result.outcome is SettleOutcome.RETURNED
    assert result.samples == 6  # at 0.2, 0.6, ... 2.2 s
    slower = ScriptedGauge(ramp(HELD, start_s=4.0), takes_s=1.0)
    assert (await settled(slower)).waited_s == pytest.approx(4.75)  # pauses of a quarter second


# --- slow and late reclaim -----------------------------------------------------------------------------


@pytest.mark.parametrize("start_s", [0.2, 0.6, 1.5, 3.0])
async def test_a_reclaim_that_starts_late_is_waited_for(start_s: float, autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(HELD, start_s=start_s)))
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, start_s)


@pytest.mark.parametrize("gib_per_s", [50.0, 10.0, 1.5, 0.5, 0.25])
async def test_slow_reclaim_is_followed_to_its_end(gib_per_s: float, autojump_clock: MockClock) -> None:
    memory = ramp(HELD, start_s=1.5, per_s=gib_per_s * GIB)
    result = await settled(ScriptedGauge(memory), timeout_s=400)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, 1.5 + TARGET / GIB / gib_per_s)


async def test_a_reclaim_that_stalls_early_is_waited_for(autojump_clock: MockClock) -> None:
    memory = together(ramp(20 * GIB, per_s=20 * GIB), ramp(61 * GIB, start_s=5.0, per_s=20 * GIB))
    result = await settled(ScriptedGauge(memory))
    assert result.outcome is SettleOutcome.RETURNED
    assert result.waited_s > 7.0


async def test_reclaim_in_bursts_with_short_pauses_is_followed_to_its_end(autojump_clock: MockClock) -> None:
    memory = steps(*((0.3 * n, n * GIB) for n in range(82)))
    result = await settled(ScriptedGauge(memory), timeout_s=60)
    assert result.outcome is SettleOutcome.RETURNED


# --- estimates that are too high -----------------------------------------------------------------------


@pytest.mark.parametrize("real", [0.5, 0.7, 0.94])
async def test_an_estimate_above_the_real_release_ends_soon_after_the_rise(
    real: float, autojump_clock: MockClock
) -> None:
    result = await settled(ScriptedGauge(ramp(HELD * real, start_s=0.5, per_s=100 * GIB)))
    assert result.outcome is SettleOutcome.PLATEAU
    end_of_rise_s = 0.5 + HELD * real / (100 * GIB)
    assert result.waited_s == pytest.approx(end_of_rise_s + 0.4, abs=2 * INTERVAL_S)
    assert result.missing_bytes == HELD - result.released_bytes


@pytest.mark.parametrize("real", [0.0, 0.2, 0.49])
async def test_less_than_half_is_waited_for_long_and_then_said_to_be_short(
    real: float, autojump_clock: MockClock
) -> None:
    result = await settled(ScriptedGauge(ramp(HELD * real, start_s=1.0)))
    assert result.outcome is SettleOutcome.SHORT
    assert lasted(result, 6.0 if real else 5.0)
    assert result.released_bytes == round(HELD * real)
    assert result.missing_bytes == HELD - result.released_bytes


async def test_drift_smaller_than_noise_does_not_keep_it_waiting(autojump_clock: MockClock) -> None:
    drift: Memory = lambda at: 50 * MIB * math.sin(40 * at)  # noqa: E731
    result = await settled(ScriptedGauge(together(ramp(60 * GIB), drift)))
    assert result.outcome is SettleOutcome.PLATEAU
    assert result.waited_s < 1.0


# --- other tenants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_s", [0.1 * GIB, 2 * GIB, 1000 * GIB])
async def test_falling_memory_is_never_success(per_s: float, autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(-18 * GIB, per_s=per_s)))
    assert result.outcome is SettleOutcome.SHORT
    assert lasted(result, 5.0)
    assert result.released_bytes < 0
    assert result.missing_bytes == HELD


async def test_falling_memory_is_no_success_for_a_small_resident_either(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(-18 * GIB, per_s=GIB)), expected=65 * MIB)
    assert result.outcome is SettleOutcome.SHORT
    assert (result.missing_bytes, result.released_bytes < 0) == (65 * MIB, True)


async def test_what_another_took_and_gave_back_is_not_taken_for_ours(autojump_clock: MockClock) -> None:
    small = 10 * GIB  # the dip is larger than what we wait for
    memory = together(steps((0.1, -15 * GIB), (0.6, 0)), ramp(small, start_s=2.0))
    result = await settled(ScriptedGauge(memory), expected=small)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, 2.0)


async def test_what_another_took_before_ours_came_back_does_not_make_it_short(
    autojump_clock: MockClock,
) -> None:
    memory = together(steps((0.1, -18 * GIB)), ramp(HELD * 0.6, start_s=1.0))
    result = await settled(ScriptedGauge(memory))
    assert result.outcome is SettleOutcome.PLATEAU
    assert lasted(result, 3.0)
    assert result.released_bytes == round(HELD * 0.6) - 18 * GIB
    assert result.missing_bytes == HELD - result.released_bytes


async def test_what_another_took_while_ours_came_back_ends_as_a_plateau(autojump_clock: MockClock) -> None:
    memory = together(ramp(HELD, per_s=20 * GIB), steps((2.0, -18 * GIB)))
    result = await settled(ScriptedGauge(memory))
    assert result.outcome is SettleOutcome.PLATEAU
    assert result.released_bytes == HELD - 18 * GIB


@pytest.mark.parametrize("lost_gib", [2, 10, 30])
async def test_a_rise_after_a_fall_is_progress_though_no_record(
    lost_gib: int, autojump_clock: MockClock
) -> None:
    memory = together(
        ramp(HELD + lost_gib * GIB, per_s=1.5 * GIB),
        steps((20.0, -lost_gib * GIB / 2), (35.0, -lost_gib * GIB)),
    )
    result = await settled(ScriptedGauge(memory), timeout_s=100)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, (TARGET / GIB + lost_gib) / 1.5)


async def test_a_tenant_that_takes_a_little_now_and_then_does_not_cut_slow_reclaim_short(
    autojump_clock: MockClock,
) -> None:
    takes = steps(*((6.0 * n, -2.0 * n * GIB) for n in range(1, 11)))
    memory = together(ramp(HELD + 20 * GIB, per_s=1.5 * GIB), takes)
    result = await settled(ScriptedGauge(memory), timeout_s=100)
    assert result.outcome is SettleOutcome.RETURNED


async def test_a_long_fall_is_one_fall_down_to_its_end(autojump_clock: MockClock) -> None:
    memory = together(ramp(50 * GIB), ramp(-9 * GIB, per_s=30 * GIB), ramp(31 * GIB, start_s=0.3, per_s=GIB))
    result = await settled(ScriptedGauge(memory), expected=70 * GIB, timeout_s=60)
    assert result.outcome is SettleOutcome.RETURNED


async def test_a_tenant_that_goes_up_and_down_does_not_keep_it_waiting(autojump_clock: MockClock) -> None:
    waves: Memory = lambda at: GIB * math.sin(25 * at)  # noqa: E731
    result = await settled(ScriptedGauge(together(ramp(60 * GIB), waves)))
    assert result.outcome is SettleOutcome.PLATEAU
    assert result.waited_s < 2.0


# --- deadline ------------------------------------------------------------------------------------------


async def test_the_deadline_names_what_is_missing(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD, per_s=1.5 * GIB))
    with pytest.raises(MemoryNotReturned) as caught:
        await settled(gauge, timeout_s=10)
    error = caught.value
    assert error.released_bytes == gauge.seen[-1] - BASELINE == pytest.approx(15 * GIB, rel=0.01)
    assert error.missing_bytes == HELD - error.released_bytes
    assert error.expected_bytes == HELD
    assert error.waited_s == pytest.approx(10)
    assert "of 81.00 GiB had not come back after 10.0 s" in str(error)
    assert error.__cause__ is None


async def test_a_reclaim_that_never_starts_fails_at_a_short_deadline(autojump_clock: MockClock) -> None:
    with pytest.raises(MemoryNotReturned) as caught:
        await settled(ScriptedGauge(ramp(0)), timeout_s=3)
    assert caught.value.missing_bytes == HELD


# --- unreadable gauges ---------------------------------------------------------------------------------


async def test_a_gauge_that_never_answers_is_said_to_be_unreadable(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD), unreadable=lambda _: True)
    with pytest.raises(GaugeUnreadable, match="scripted at 9"):
        await settled(gauge, timeout_s=10)
    assert gauge.asked > 100


async def test_readings_that_come_and_go_are_survived(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD, start_s=1.5), unreadable=lambda at: int(at * 20) % 4 != 3)
    result = await settled(gauge)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, 1.55)
    assert result.samples == len(gauge.seen) < gauge.asked


async def test_a_failed_reading_is_no_zero_and_no_rise(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(0), unreadable=lambda at: 0.1 < at < 4.0)
    result = await settled(gauge)
    assert result.outcome is SettleOutcome.SHORT
    assert result.released_bytes == 0


async def test_silence_before_the_first_reading_is_not_flatness(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(HELD, start_s=7.0), unreadable=lambda at: at < 6.0)
    assert (await settled(gauge)).outcome is SettleOutcome.RETURNED


async def test_a_gauge_that_becomes_unreadable_is_the_cause_of_the_failure(autojump_clock: MockClock) -> None:
    gauge = ScriptedGauge(ramp(60 * GIB), unreadable=lambda at: at > 0.2)
    with pytest.raises(MemoryNotReturned) as caught:
        await settled(gauge, timeout_s=5)
    assert isinstance(caught.value.__cause__, GaugeUnreadable)
    assert caught.value.released_bytes == 60 * GIB


async def test_a_gauge_that_hangs_is_bounded_by_the_deadline(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    with pytest.raises(GaugeUnreadable, match="did not answer within 10 s"):
        await settled(ScriptedGauge(ramp(HELD), takes_s=math.inf), timeout_s=10)
    assert trio.current_time() - started == pytest.approx(10)


async def test_an_error_of_the_gauges_own_making_is_not_hidden(autojump_clock: MockClock) -> None:
    def broken(_: float) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await settled(ScriptedGauge(broken))


async def test_cancellation_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    for after_s in (0.0, 0.01, INTERVAL_S, 1.0):
        gauge = ScriptedGauge(ramp(0), takes_s=0.02)
        with trio.fail_after(2), trio.move_on_after(after_s) as scope:
            await settle(gauge, baseline_bytes=BASELINE, expected_bytes=HELD, timeout_s=25)
        assert scope.cancelled_caught
        asked = gauge.asked
        await trio.sleep(1)
        assert gauge.asked == asked
    assert trio.lowlevel.current_statistics().tasks_living == before


# --- unknown amounts -----------------------------------------------------------------------------------


async def test_an_unknown_amount_ends_when_it_has_stopped_rising(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(30 * GIB, start_s=0.2, per_s=30 * GIB)), expected=None)
    assert result.outcome is SettleOutcome.PLATEAU
    assert result.waited_s == pytest.approx(1.2 + 0.5, abs=2 * INTERVAL_S)
    assert (result.released_bytes, result.missing_bytes) == (30 * GIB, 0)


async def test_an_unknown_amount_that_was_back_at_once_takes_two_samples_at_least(
    autojump_clock: MockClock,
) -> None:
    result = await settled(ScriptedGauge(ramp(HELD), takes_s=0.6), expected=None)
    assert (result.outcome, result.samples) == (SettleOutcome.PLATEAU, 2)


async def test_an_unknown_amount_may_start_late(autojump_clock: MockClock) -> None:
    result = await settled(
        ScriptedGauge(ramp(HELD, start_s=1.5, per_s=1.5 * GIB)), expected=None, timeout_s=90
    )
    assert (result.outcome, result.released_bytes) == (SettleOutcome.PLATEAU, HELD)


@pytest.mark.parametrize(("timeout_s", "wait_s"), [(25.0, 2.0), (2.0, 1.0)])
async def test_an_unknown_amount_may_be_nothing(
    timeout_s: float, wait_s: float, autojump_clock: MockClock
) -> None:
    result = await settled(ScriptedGauge(ramp(-GIB, per_s=GIB)), expected=None, timeout_s=timeout_s)
    assert result.outcome is SettleOutcome.NOTHING
    assert lasted(result, wait_s)


async def test_an_unknown_amount_that_never_rests_fails_at_the_deadline(autojump_clock: MockClock) -> None:
    with pytest.raises(MemoryNotReturned, match=r"had not come to rest after 3\.0 s") as caught:
        await settled(ScriptedGauge(ramp(HELD, per_s=1.5 * GIB)), expected=None, timeout_s=3)
    assert (caught.value.missing_bytes, caught.value.expected_bytes) == (0, None)


async def test_without_a_baseline_a_rise_after_the_first_reading_is_enough(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(HELD, start_s=1.5)), baseline=None)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, 1.5)


async def test_without_a_baseline_memory_that_was_back_before_is_not_said_to_be_short(
    autojump_clock: MockClock,
) -> None:
    result = await settled(ScriptedGauge(ramp(HELD)), baseline=None)
    assert result == SettleResult(SettleOutcome.PLATEAU, 0, 0, result.waited_s, result.samples)
    assert lasted(result, 2.0)


async def test_without_a_baseline_what_is_not_even_free_cannot_be_back(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(0)), baseline=None)
    assert (result.outcome, result.missing_bytes) == (SettleOutcome.SHORT, HELD - BASELINE)


def restless(at: float) -> int:
    """Give the free memory of a host on which others take and give back some 20 MiB all the time."""
    return BASELINE + int(20 * MIB * math.sin(at * 7) + 3 * MIB * at)


async def test_without_a_baseline_it_ends_although_others_move(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(restless), baseline=None, expected=5 * GIB // 2)
    assert result.waited_s < 5


async def test_without_a_baseline_too_little_is_seen_as_soon_as_it_is_flat(autojump_clock: MockClock) -> None:
    result = await settled(ScriptedGauge(ramp(0)), baseline=None)
    assert result.outcome is SettleOutcome.SHORT
    assert lasted(result, 2.0)


def test_the_words_of_a_failure_add_up() -> None:
    flat = MemoryNotReturned(0, int(0.8 * GIB), int(2.4 * GIB), 25.0)
    assert str(flat) == "free memory had not come to rest after 25.0 s (released so far: 0.80 GiB)"
    short = MemoryNotReturned(int(1.6 * GIB), int(0.8 * GIB), int(2.4 * GIB), 25.0)
    assert str(short) == "1.60 GiB of 2.40 GiB had not come back after 25.0 s (released so far: 0.80 GiB)"


# --- properties ----------------------------------------------------------------------------------------

sizes = st.integers(min_value=-15 * GIB, max_value=100 * GIB)
moments = st.floats(min_value=0, max_value=20)


def run_scripted(
    then: Iterable[tuple[float, float]], expected: int | None, timeout_s: float, *, holes: set[int]
) -> tuple[ScriptedGauge, SettleResult | MemoryNotReturned | GaugeUnreadable, float]:
    async def scenario() -> tuple[ScriptedGauge, SettleResult | MemoryNotReturned | GaugeUnreadable, float]:
        gauge = ScriptedGauge(steps(*sorted(then)), unreadable=lambda at: int(at * 10) in holes)
        started = trio.current_time()
        try:
            end: SettleResult | MemoryNotReturned | GaugeUnreadable = await settled(
                gauge, expected=expected, timeout_s=timeout_s
            )
        except (MemoryNotReturned, GaugeUnreadable) as error:
            end = error
        return gauge, end, trio.current_time() - started

    return trio.run(scenario, clock=MockClock(autojump_threshold=0))


@settings(deadline=None)  # seconds of virtual time are milliseconds or more of a busy machine's
@given(
    then=st.lists(st.tuples(moments, sizes), max_size=8),
    expected=st.none() | st.integers(min_value=0, max_value=90 * GIB),
    timeout_s=st.floats(min_value=0.1, max_value=25),
    holes=st.sets(st.integers(min_value=0, max_value=60), max_size=30),
)
def test_whatever_memory_does_it_ends_in_time_and_says_what_it_measured(
    then: list[tuple[float, float]], expected: int | None, timeout_s: float, holes: set[int]
) -> None:
    gauge, end, took_s = run_scripted(then, expected, timeout_s, holes=holes)
    assert took_s <= timeout_s + INTERVAL_S
    if isinstance(end, GaugeUnreadable):
        assert not gauge.seen
        return
    released = gauge.seen[-1] - BASELINE if gauge.seen else 0
    assert end.released_bytes == released
    assert 0 <= end.missing_bytes <= max(0, expected or 0)
    if isinstance(end, SettleResult):
        assert end.samples == len(gauge.seen)
        if end.outcome is SettleOutcome.RETURNED:
            assert expected is not None
            assert released >= expected - max(64 * MIB, expected // 20)
        if end.outcome is SettleOutcome.SHORT:
            assert expected is not None
            assert released < expected / 2


@settings(deadline=None)  # seconds of virtual time are milliseconds or more of a busy machine's
@given(
    held=st.integers(min_value=65 * MIB, max_value=100 * GIB),
    start_s=st.floats(min_value=0, max_value=4),
    gib_per_s=st.floats(min_value=1.5, max_value=200),
)
def test_an_undisturbed_reclaim_is_always_waited_for_and_no_longer(
    held: int, start_s: float, gib_per_s: float
) -> None:
    assume(start_s <= 1.5 or held >= 2 * GIB)  # what is small is worth no more patience than that

    async def scenario() -> SettleResult:
        gauge = ScriptedGauge(ramp(held, start_s=start_s, per_s=gib_per_s * GIB))
        return await settled(gauge, expected=held, timeout_s=120)

    result = trio.run(scenario, clock=MockClock(autojump_threshold=0))
    target = held - max(64 * MIB, held // 20)
    assert result.outcome is SettleOutcome.RETURNED
    assert lasted(result, start_s + target / GIB / gib_per_s)
