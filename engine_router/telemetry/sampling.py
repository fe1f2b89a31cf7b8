"""Samples of memory, queues and GPUs: the last hour in memory, every minute in the history."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import trio
from attrs import define, field, frozen

from engine_router.events import Event, RequestEnded
from engine_router.memory import GpuActivity, MemoryReading
from engine_router.residency.read_model import PoolStatus, ReadModel
from engine_router.telemetry.history import History
from engine_router.telemetry.records import SUMMED, Sample, Series

SAMPLE_INTERVAL_S: Final = 10.0
MINUTE_S: Final = 60
_RING: Final = 400  # a little more than an hour
# A gauge that runs a command costs a process each time, and one that cannot be read a line in the log.
_COMMAND_PAUSE_S: Final = 60.0
_UNREADABLE_PAUSE_S: Final = 1800.0

Values = Mapping[Series, float]
Span = tuple[float, float]


@frozen(eq=False, repr=False)
class Tick:
    """The values of one moment, in seconds since the epoch; of what adds up, of the time since the one before."""

    at: float
    values: Values


@define(eq=False, repr=False)
class Sampler:
    """Measures every few seconds, as long as a history is kept.

    Args:
        serving_since: returns when the requests began that use a resident now, by trio's clock.

    Attributes:
        ring: the last hour.
        readings: the last reading of each pool's gauge, where it can be read.
    """

    _history: History
    _read_model: ReadModel
    _serving_since: Callable[[], Iterable[float]]
    _gpus: GpuActivity = field(factory=GpuActivity)
    ring: deque[Tick] = field(factory=lambda: deque(maxlen=_RING))
    readings: dict[str, MemoryReading] = field(factory=dict)
    _minute: int = 0
    _sums: dict[Series, tuple[float, int]] = field(factory=dict)
    _ended: list[Span] = field(factory=list)
    _not_before: dict[str, float] = field(factory=dict)
    _last_at: float = field(factory=time.time)

    async def run(self) -> None:
        """Measure until cancelled, or until no history is kept any more."""
        self._history.on_events = self.observe
        while self._history.why_off is None:
            await trio.sleep(SAMPLE_INTERVAL_S)
            self._history.drain()
            self.take(time.time(), await self._measured())
        self.readings.clear()

    def close(self) -> None:
        """Hand over what was measured of this minute, at the end. Never waits."""
        self._history.add_samples(self.minute())
        self._sums.clear()

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the requests that have ended: until then a model served them."""
        for event in events:
            if isinstance(event, RequestEnded) and event.queue_wait_s is not None:
                self._ended.append((event.at - event.duration_s + event.queue_wait_s, event.at))

    def take(self, now: float, values: Values) -> None:
        """Take in what was measured.

        Args:
            now: seconds since the epoch. Where the clock was set back, a minute may come twice: the later counts.
        """
        values = {**values, Series("serving"): self._served_s(now)}
        if (minute := int(now // MINUTE_S)) != self._minute:
            self._history.add_samples(self.minute())
            self._minute = minute
            self._sums.clear()
        for series, value in values.items():
            sum_, count = self._sums.get(series, (0.0, 0))
            self._sums[series] = sum_ + value, count + 1
        self.ring.append(Tick(now, values))

    def minute(self) -> list[Sample]:
        """Return the minute that is under way, as far as it was measured."""
        return [
            Sample(self._minute * MINUTE_S, series, sum_ if series.kind in SUMMED else sum_ / count)
            for series, (sum_, count) in self._sums.items()
        ]

    def _served_s(self, now: float) -> float:
        """Return for how many seconds since the last time at least one request used a resident."""
        offset = now - trio.current_time()
        spans = [*self._ended, *((at + offset, now) for at in self._serving_since())]
        self._ended.clear()
        last_at, self._last_at = self._last_at, now
        # After a sleep of the machine there was no measuring, and no serving.
        return covered_s(spans, max(last_at, now - 2 * SAMPLE_INTERVAL_S), now)

    async def _measured(self) -> Values:
        found: dict[Series, float] = {}
        for name, pool in self._read_model.pools().items():
            found[Series("queue", name)] = float(sum(pool.waiting.values()))
            for resident in pool.residents:
                if held_bytes := resident.footprint_in(name):  # none where nobody measures
                    found[Series("resident", name, str(resident.resident))] = float(held_bytes)
            reading = await self._reading(name, pool)
            if reading is not None and reading.total_bytes is not None:
                found[Series("capacity", name)] = float(reading.total_bytes)
                found[Series("used", name)] = float(reading.total_bytes - reading.available_bytes)
        for index, gpu in (await self._gpus.read()).items():
            if gpu.use_percent is not None:
                found[Series("gpu_use", "", str(index))] = float(gpu.use_percent)
            if gpu.temperature_c is not None:
                found[Series("gpu_temperature", "", str(index))] = float(gpu.temperature_c)
        return found

    async def _reading(self, name: str, pool: PoolStatus) -> MemoryReading | None:
        now = trio.current_time()
        if pool.gauge == "none" or now < self._not_before.get(name, 0.0):
            return None
        reading = await self._read_model.memory(name)
        if reading is None:
            self._not_before[name] = now + _UNREADABLE_PAUSE_S
        elif pool.gauge.startswith("command"):
            self._not_before[name] = now + _COMMAND_PAUSE_S - SAMPLE_INTERVAL_S / 2
        if reading is None or not reading.measured:
            self.readings.pop(name, None)
            return None
        self.readings[name] = reading
        return reading


def covered_s(spans: Iterable[Span], begin: float, end: float) -> float:
    """Return how much of a time is covered by spans, which may overlap.

    >>> covered_s([(0, 4), (2, 5), (8, 20)], 1, 10)
    6.0
    """
    total, until = 0.0, begin
    for first, last in sorted(spans):
        if last > until and first < end:
            total += min(last, end) - max(first, until)
            until = max(until, min(last, end))
    return total
