"""Figures over time: from samples, minutes and requests, each point right, whatever of it is in memory or in the file."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi import ask
from test_history import Kept, ended, get, routing, rows_of, swapped

from engine_router.errors import BadRequest
from engine_router.guards.limits import FIGURE_MODELS
from engine_router.memory import GpuActivity, GpuReading
from engine_router.telemetry import sampling
from engine_router.telemetry.figures import Grid, duration, figures
from engine_router.telemetry.records import Series
from engine_router.telemetry.sampling import Sampler, covered_s

NOW = 1_700_000_000.0  # twenty seconds past a minute
LIMIT_S = 100.0
USED, SERVING = Series("used", "default"), Series("serving")


class Sampled(Kept):
    """A history with samples that a test makes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.serving: list[float] = []
        self.sampler = Sampler(self.of, None, lambda: self.serving)  # type: ignore[arg-type] # no pool is looked at
        self.of.on_events = self.sampler.observe

    def take(self, times: Iterable[float], value: float) -> None:
        for at in times:
            self.sampler.take(at, {USED: value})

    async def ask(self, span_s: int, points: int, now: float = NOW) -> dict[str, Any]:
        return await figures(self.of, self.sampler, span_s=span_s, points=points, now=now)


def test_points_stay_where_they_are_as_time_goes_on() -> None:
    first, later = Grid.of(3600, 240, NOW), Grid.of(3600, 240, NOW + 15)
    assert (first.step_s, first.count) == (15, 240)
    assert later.since - first.since == 15
    assert first.place(NOW) == 239
    assert Grid.of(60, 1000, NOW).count == 6  # not closer together than what is measured
    assert Grid.of(31 * 86400, 1000, NOW).count <= 1000
    assert Grid.of(3660, 1000, NOW).step_s == 60


@pytest.mark.parametrize(("span_s", "points"), [(59, 10), (31 * 86400 + 1, 10), (3600, 0), (3600, 1001)])
def test_bounds(span_s: int, points: int) -> None:
    with pytest.raises(BadRequest):
        Grid.of(span_s, points, NOW)


async def test_memory_of_the_last_hour_and_of_the_file(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    kept.take((NOW - 7200 + 10 * step for step in range(360)), 1e9)  # an hour, an hour ago
    kept.take((NOW - 3600 + 10 * step for step in range(360)), 3e9)
    hour = await kept.ask(3600, 60)
    assert hour["pools"]["default"]["used_bytes"][1:-1] == [3_000_000_000] * 58
    both = await kept.ask(7200, 12)
    used = both["pools"]["default"]["used_bytes"]
    assert used[:5] == [1_000_000_000] * 5
    assert used[-5:] == [3_000_000_000] * 5
    assert both["pools"]["default"]["capacity_bytes"] == [None] * 12
    assert both["gpu"] == {}
    kept.sampler.close()
    await kept.of.close()
    again = Sampled(tmp_path / "history.db")  # after a restart the file alone knows
    assert (await again.ask(7200, 12))["pools"]["default"]["used_bytes"] == used
    await again.of.close()
    assert rows_of(tmp_path / "history.db", "samples") == 2 * 121  # with the seconds of serving


async def test_a_router_that_has_just_begun_shows_its_first_seconds(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    kept.take([NOW - 5], 2e9)
    assert (await kept.ask(60, 6))["pools"]["default"]["used_bytes"] == [None] * 4 + [2_000_000_000, None]
    await kept.of.close()


def test_serving_counts_each_moment_once() -> None:
    assert covered_s([], 0, 10) == 0
    assert covered_s([(1, 3), (2, 4), (8, 30), (-5, 0.5)], 0, 10) == 0.5 + 3 + 2
    assert covered_s([(1, 9), (2, 3)], 0, 10) == 8
    assert covered_s([(20, 30)], 0, 10) == 0


async def test_time_in_swaps_against_time_serving(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = math.inf
    kept = Sampled(tmp_path / "history.db")
    midnight = time.mktime((2023, 11, 14, 0, 0, 0, 0, 0, -1))
    noon = midnight + 12 * 3600
    kept.sampler._last_at = noon
    # One request from second 2 to 6, another from 4 to 8 that waited until 5; one more is under way since 9.
    kept.of.on_events = kept.sampler.observe
    for event in (
        ended(1, at=noon + 6, duration_s=4.0, queue_wait_s=0.0),
        ended(2, at=noon + 8, duration_s=4.0, queue_wait_s=1.0),
        ended(3, at=noon + 9, duration_s=9.0, queue_wait_s=None, status=503),  # it never had a model
    ):
        kept.hub.publish(event)
    kept.of.drain()
    kept.serving = [trio.current_time() - 1]
    kept.sampler.take(noon + 10, {})
    kept.hub.publish(swapped(at=noon + 30, duration_s=25.0))
    kept.hub.publish(swapped(at=midnight - 10, duration_s=5.0))  # yesterday
    answer = await kept.ask(60, 6, noon + 35)
    assert answer["serving_s"] == [None, None, None, 7.0, None, None]
    assert answer["swaps"]["seconds"] == [0, 0, 5, 10, 10, 0]
    assert answer["swaps"]["count"] == [0, 0, 0, 0, 0, 1]
    assert answer["today"] == {
        "swaps": 1,
        "swap_s": 25.0,
        "serving_s": 7.0,
        "text": "1 swap took 25 s; models served for 7.0 s",
    }
    await kept.of.close()


async def test_requests_and_waits_by_point(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    since = Grid.of(3600, 2, NOW).since
    for number in range(100):
        kept.hub.publish(
            ended(number, at=since + 1, tokens_out=10, tokens_per_s=20.0, queue_wait_s=number / 10)
        )
    kept.hub.publish(ended(100, at=since + 1801, model="b", tokens_per_s=None))
    kept.hub.publish(ended(101, at=since + 1, model="nobody", engine=None, status=404))
    answer = await kept.ask(3600, 2)
    assert answer["models"] == {
        "m": {"requests": [100, 0], "tokens_out": [1000, None], "tokens_per_s": [20.0, None]},
        "b": {"requests": [0, 1], "tokens_out": [None, None], "tokens_per_s": [None, None]},
    }
    assert answer["queue"]["wait_p50_s"] == [4.9, None]
    assert answer["queue"]["wait_p95_s"] == [9.4, None]
    await kept.of.close()


async def test_many_models_are_put_together(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    for number in range(FIGURE_MODELS + 5):
        for _ in range(number + 1):
            kept.hub.publish(ended(number, at=NOW - 1, model=f"m{number}", tokens_per_s=4.0))
    answer = await kept.ask(60, 1)
    assert len(answer["models"]) == FIGURE_MODELS + 1
    assert answer["models_left_out"] == 5
    assert answer["models"]["(other models)"]["requests"] == [1 + 2 + 3 + 4 + 5]
    await kept.of.close()


async def test_a_month_has_at_most_a_thousand_points(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    for day in range(31):
        kept.take((NOW - (31 - day) * 86400 + 60 * minute for minute in range(1440)), 1e9)
        await kept.of.flush()
    with trio.fail_after(LIMIT_S):
        answer = await kept.ask(31 * 86400, 1000)
    line = answer["pools"]["default"]["used_bytes"]
    assert 500 < len(line) <= 1000
    assert set(line[1:-1]) == {1_000_000_000}
    assert len(json.dumps(answer)) < 200_000
    await kept.of.close()


def test_durations() -> None:
    assert [duration(value) for value in (0, 59.6, 250, 7500, 3601, 90_000)] == [
        "0.0 s",
        "1 min",
        "4 min 10 s",
        "2 h 5 min",
        "1 h",
        "25 h",
    ]


# GPUs


class Driver:
    """NVML with two GPUs, one of which tells no temperature."""

    NVMLError = RuntimeError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.inits, self.is_gone = 0, False

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        if self.is_gone:
            raise RuntimeError("no driver")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.is_gone:
            raise RuntimeError("reloaded")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:  # noqa: N802
        if handle == 1:
            raise RuntimeError("not supported")
        return 61


async def test_gpus_tell_what_they_know(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    driver = Driver()
    gpus = GpuActivity(lambda: driver)
    assert await gpus.read() == {0: GpuReading(87, 61), 1: GpuReading(87, None)}
    driver.is_gone = True
    assert await gpus.read() == {}
    driver.is_gone = False
    assert await gpus.read() == {}  # not asked again at once
    await trio.sleep(700)
    assert len(await gpus.read()) == 2
    assert driver.inits == 2


async def test_without_the_library_there_are_no_gpus() -> None:
    def absent() -> Any:
        raise ImportError("pynvml")

    assert await GpuActivity(absent).read() == {}


async def test_gpus_have_figures(tmp_path: Path) -> None:
    kept = Sampled(tmp_path / "history.db")
    gpus = {Series("gpu_use", "", "0"): 40.0, Series("gpu_temperature", "", "0"): 61.0}
    kept.sampler.take(NOW - 1, {**gpus, Series("gpu_use", "", "1"): 20.0})
    answer = await kept.ask(60, 1)
    assert answer["gpu"] == {
        "0": {"use": [40.0], "temperature_c": [61.0]},
        "1": {"use": [20.0], "temperature_c": [None]},
    }
    await kept.of.close()


# The whole router


async def test_a_router_measures_its_pools(tmp_path: Path) -> None:
    async with routing(tmp_path, 'pools.host.gauge = "auto"') as router:
        async with router.lease("m"):
            router.sampler.take(time.time(), await router.sampler._measured())
        answer = await get(router, "/admin/figures", "span_s=60&points=1")
        for query in ("span_s=1", "points=9999", "span_s=x"):
            assert (await ask(router.app, "GET", "/admin/figures", query=query)).status == 400
    (capacity,), (used,) = answer["pools"]["host"]["capacity_bytes"], answer["pools"]["host"]["used_bytes"]
    assert 0 < used < capacity
    assert answer["pools"]["default"] == {"capacity_bytes": [None], "used_bytes": [None], "residents": {}}
    assert answer["queue"]["length"] == [0.0]
    assert answer["serving_s"][0] > 0
    assert answer["swaps"]["count"] == [1.0]
    assert answer["today"]["text"].startswith("1 swap took ")
    assert rows_of(tmp_path / "history.db", "starts") == 1


async def test_a_gauge_that_cannot_be_read_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async with routing(tmp_path, 'pools.x = { gauge = "command", command = "false" }') as router:
        await router.sampler._measured()
        assert router.sampler._not_before["x"] > trio.current_time() + sampling._UNREADABLE_PAUSE_S - 60
