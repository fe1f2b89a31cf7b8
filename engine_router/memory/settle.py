"""The wait until a stopped engine's memory has really come back, and not a moment longer.

A process can be gone before its memory is: the kernel unmaps 81 GiB at a few GiB/s, and a GPU driver
frees when it finds time, sometimes only after more than a second. The next engine may not start into
that. Yet most stops give everything back at once, and waiting "to be sure" would cost every swap.

What makes it hard is that a gauge shows one number for everybody. Somebody else may take memory while
ours returns, or take some and give it back, and no arithmetic can tell the two apart for certain. Two
figures bracket the truth, both signed:

- `sure`: the last reading less the baseline. What others took counts against us, so this errs towards
  waiting. The next engine can have this much more than before the stop, whosever it was.
- `likely`: the last reading less the lowest one seen, baseline included. It forgives what others took
  before ours came back, and so mistakes for ours what others took and gave back.

Only `sure` ends the wait at once. In every other case the reading has to stop rising first, for a
patience that is the longer the weaker the evidence is (`_SettleWatch.verdict`). So a mistake in either
direction costs a few seconds; neither falling memory nor another tenant's return is ever success.

Rising is judged against the level of the last progress, not between neighbouring samples: at 1.5 GiB/s
two samples differ by little more than noise, and slower reclaim than that has to be followed to its end
as well. A large fall lowers that level, because our memory may be returning underneath it: the climb
back to where the reading was before is progress that a mere record would not show. To keep a tenant
whose use goes up and down from posing as progress for ever, only a few falls between two records do so.

Without a baseline (it died, and nobody looked before) the wait ends as soon as the reading is flat.

An unreadable gauge is no information: it is asked again, until the deadline.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import attrs
import trio

from engine_router.memory.reading import Gauge, GaugeUnreadable, MemoryReading

_MIB: Final = 2**20
_GIB: Final = 2**30

NOISE_FLOOR_BYTES: Final = 64 * _MIB
"""Less than this is nothing to wait for, and so much may always be missing: hosts drift by that much."""

# Patience, in seconds without a rise. The first two end a settle that got what matters; the others wait
# for what has been seen to be late: driver and kernel start to give back up to 1.5 s after the exit.
_AFTER_MOST_S: Final = 0.4
_AFTER_SOME_S: Final = 0.5
_AFTER_LATE_START_S: Final = 2.0
_AFTER_TOO_LITTLE_S: Final = 5.0

# What is small is worth less patience, but always enough for a reclaim that starts 1.5 s late: seconds, and
# bytes for each further second.
_FOR_ANYTHING_S: Final = 1.6
_WORTH_BYTES_PER_S: Final = 512 * _MIB

# A gauge that is slow to answer (a command) is left alone for as long as it took, but no longer than this.
# Seconds.
_MAX_PAUSE_S: Final = 0.25

_FALLS_BETWEEN_RECORDS: Final = 3


class SettleOutcome(enum.Enum):
    """The end of a settle that went well, or well enough to go on."""

    RETURNED = "returned"
    """The expected memory is back."""
    PLATEAU = "plateau"
    """It stopped rising after most came back (some, where the amount was unknown): the expectation was
    too high, or another tenant took the rest."""
    SHORT = "short"
    """It stopped rising long ago with less than half back. The next start may not fit."""
    NOTHING = "nothing"
    """Nothing to wait for: nothing was expected, the pool is not measured, or the amount was unknown and
    nothing came."""


@attrs.frozen
class SettleResult:
    """The result of a settle."""

    outcome: SettleOutcome
    released_bytes: int
    """The last reading less the baseline (the first reading where there was no baseline). Negative where
    others took more than came back."""
    missing_bytes: int
    """Of the expected bytes, those not seen to come back; 0 where the amount was unknown. Without a
    baseline: those that cannot have come back, because not even that much is free."""
    waited_s: float
    """Seconds."""
    samples: int
    """Readings that succeeded."""


class MemoryNotReturned(Exception):
    """The deadline passed and the memory of a stopped engine was neither back nor at rest.

    Its cause is a `GaugeUnreadable` where the gauge could no longer be read in the end.

    Attributes:
        missing_bytes: what is still missing; 0 where the expected amount was unknown.
        released_bytes: what came back, signed.
        expected_bytes: what should have come back; None where that was unknown.
        waited_s: seconds.
    """

    def __init__(
        self, missing_bytes: int, released_bytes: int, expected_bytes: int | None, waited_s: float
    ) -> None:
        self.missing_bytes = missing_bytes
        self.released_bytes = released_bytes
        self.expected_bytes = expected_bytes
        self.waited_s = waited_s
        if expected_bytes is None or missing_bytes <= 0:
            what = "free memory had not come to rest"
        else:
            what = f"{_gib(missing_bytes)} of {_gib(expected_bytes)} had not come back"
        super().__init__(f"{what} after {waited_s:.1f} s (released so far: {_gib(released_bytes)})")


async def settle(
    gauge: Gauge,
    *,
    baseline_bytes: int | None,
    expected_bytes: int | None,
    timeout_s: float,
    interval_s: float = 0.03,
) -> SettleResult:
    """Wait until the memory of an engine that has just stopped is back in the pool.

    Memory that is back at once costs one reading and no sleep, and so does expecting nothing.

    Args:
        gauge: the pool's gauge.
        baseline_bytes: its reading from just before the stop began; None where that is unknown.
        expected_bytes: what the engine held, measured or declared; None where that is unknown.
        timeout_s: seconds until the wait is given up.
        interval_s: seconds between two readings.

    Raises:
        MemoryNotReturned: the deadline came first.
        GaugeUnreadable: the deadline came and no reading had succeeded.

    Cancelling it leaves nothing behind: it has no task of its own.
    """
    started = trio.current_time()
    watch = _SettleWatch(baseline_bytes, expected_bytes, timeout_s)
    failure: GaugeUnreadable | None = None
    with trio.move_on_at(started + watch.limit_s):
        while True:
            asked = trio.current_time()
            reading, failure = await _attempt(gauge)
            answered = trio.current_time()
            outcome = watch.verdict(reading, answered)
            if outcome is not None:
                return watch.settled(outcome, answered - started)
            await trio.sleep(max(interval_s, min(answered - asked, _MAX_PAUSE_S)))
    waited_s = trio.current_time() - started
    if watch.expects_nothing:
        return watch.settled(SettleOutcome.NOTHING, waited_s)
    if watch.samples == 0:
        raise failure or GaugeUnreadable(f"{gauge.name} did not answer within {timeout_s:g} s")
    seen = watch.settled(SettleOutcome.SHORT, waited_s)
    raise MemoryNotReturned(seen.missing_bytes, seen.released_bytes, expected_bytes, waited_s) from failure


async def _attempt(gauge: Gauge) -> tuple[MemoryReading | None, GaugeUnreadable | None]:
    try:
        return await gauge.read(), None
    except GaugeUnreadable as error:
        return None, error


@attrs.define(eq=False, repr=False)
class _SettleWatch:
    """The judge of a settle: is told readings and times, has neither I/O nor a clock."""

    baseline: int | None
    expected: int | None
    timeout_s: float  # seconds
    samples: int = attrs.field(init=False, default=0)
    # All in bytes, and set by the first reading.
    _origin: int = attrs.field(init=False, default=0)  # what `sure` is measured from
    _last: int = attrs.field(init=False, default=0)
    _lowest: int = attrs.field(init=False, default=0)
    _record: int = attrs.field(init=False, default=0)
    _progress: int = attrs.field(init=False, default=0)  # the level that a rise has to exceed
    _progress_at: float = attrs.field(init=False, default=0.0)  # seconds
    _falling: bool = attrs.field(init=False, default=False)
    _falls_left: int = attrs.field(init=False, default=_FALLS_BETWEEN_RECORDS)

    @property
    def expects_nothing(self) -> bool:
        return self.expected is not None and self.expected <= NOISE_FLOOR_BYTES

    @property
    def limit_s(self) -> float:
        """Seconds until the deadline; a reading that is only for the record gets no more than a moment."""
        return min(self.timeout_s, _AFTER_MOST_S) if self.expects_nothing else self.timeout_s

    @property
    def sure(self) -> int:
        return self._last - self._origin

    @property
    def likely(self) -> int:
        # Without a baseline everything may have come back before the first reading, but never more than
        # what is free now.
        return self._last if self.baseline is None else self._last - self._lowest

    def verdict(self, reading: MemoryReading | None, now: float) -> SettleOutcome | None:
        """Take in a reading (None: it failed) and say how the settle ends, or None to go on."""
        if reading is None:
            return SettleOutcome.NOTHING if self.expects_nothing else None
        if not reading.measured:
            return SettleOutcome.NOTHING
        self._take(reading.available_bytes, now)
        if self.expects_nothing:
            return SettleOutcome.NOTHING
        outcome, patience_s = self._verdict_if_flat()
        return outcome if now - self._progress_at >= min(patience_s, self._worth_s) else None

    @property
    def _worth_s(self) -> float:
        """Seconds that it is worth waiting for so much.

        Gauges show what everybody does, and a small model must not cost seconds because somebody else took as
        much as it gave back.
        """
        return math.inf if self.expected is None else _FOR_ANYTHING_S + self.expected / _WORTH_BYTES_PER_S

    def _verdict_if_flat(self) -> tuple[SettleOutcome, float]:
        """Say how it ends if it rises no more, and after how many seconds without a rise."""
        if self.expected is None:
            if self.sure >= NOISE_FLOOR_BYTES:
                return SettleOutcome.PLATEAU, _AFTER_SOME_S
            # Half of a short deadline has to do, or a resident that freed nothing would miss it.
            return SettleOutcome.NOTHING, min(_AFTER_LATE_START_S, self.timeout_s / 2)
        if self.sure >= self.expected - max(NOISE_FLOOR_BYTES, self.expected // 20):
            return SettleOutcome.RETURNED, 0.0
        if self.sure >= self.expected / 2:
            return SettleOutcome.PLATEAU, _AFTER_MOST_S
        if self.likely >= self.expected / 2:
            return SettleOutcome.PLATEAU, _AFTER_LATE_START_S
        # Without a baseline its memory may have been back before the first reading: flat is all that can be seen.
        return SettleOutcome.SHORT, _AFTER_LATE_START_S if self.baseline is None else _AFTER_TOO_LITTLE_S

    def _take(self, available: int, now: float) -> None:
        if self.samples == 0:
            self._origin = available if self.baseline is None else self.baseline
            self._lowest = min(self._origin, available)
            self._record = self._progress = available
            self._progress_at = now
        self.samples += 1
        self._last = available
        self._lowest = min(self._lowest, available)
        self._note_rise_or_fall(available, now)

    def _note_rise_or_fall(self, available: int, now: float) -> None:
        noise = 16 * _MIB if self.expected is None else max(4 * _MIB, self.expected // 1000)
        if self.baseline is None:
            # There is no amount at which to stop, so what others do all the time must not look like progress.
            noise = max(16 * _MIB, (self.expected or 0) // 50)
        if available >= self._record + noise:
            self._record = available
            self._falls_left = _FALLS_BETWEEN_RECORDS
        if available >= self._progress + noise:
            self._progress = available
            self._progress_at = now
            self._falling = False
        elif self._falling:  # one long fall is one fall, down to its end
            self._progress = min(self._progress, available)
        elif available <= self._progress - 4 * noise and self._falls_left > 0:
            self._progress = available
            self._falling = True
            self._falls_left -= 1

    def settled(self, outcome: SettleOutcome, waited_s: float) -> SettleResult:
        back = self._last if self.baseline is None else self.sure
        missing = max(0, self.expected - max(0, back)) if self.expected is not None and self.samples else 0
        return SettleResult(outcome, self.sure, missing, waited_s, self.samples)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
