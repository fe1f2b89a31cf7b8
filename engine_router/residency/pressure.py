"""Pressure: whether other programs take so much of a pool's memory that idle residents should go for them.

Pure: is told readings and times, and has neither I/O nor a clock.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from attrs import define

from engine_router.memory import MemoryReading

CONFIRM_LOOKS: Final = 2
"""Looks in a row that have to agree before somebody goes."""

LEAST_HOLD_S: Final = 60.0
"""Seconds after the last demand before it is over at the earliest."""

# Stalls count only where little is free as well: those of a program within limits of its own are not ours to cure.
STALLED_PERCENT: Final = 10.0
_STALLED_FREE: Final = 0.10

Verdict = Literal["calm", "pressed", "relieved"]


@define(eq=False, repr=False)
class PressureJudge:
    """The judge of one pool's memory, with a memory of its own, so that its verdict does not flap.

    - What residents themselves take is no pressure: once they are loaded, the mark below which there is too little is
      half of what they left, where that is less than the reserve.
    - Two looks in a row have to agree.
    - It is over once so much is free that those who went could come back and leave half more than the reserve, and a
      minute at the earliest.

    Attributes:
        missing_bytes: what should come free, by the last verdict `pressed`.
        is_pressed: between a verdict `pressed` and the next `relieved`.
    """

    missing_bytes: int = 0
    is_pressed: bool = False
    _loaded: object = None
    _left_bytes: int = 0
    _count: int = 0
    _pressed_at: float = -math.inf
    _pressed_free: int = 0
    _relieved_from: float = math.inf

    def mark_bytes(self, reserve_bytes: int) -> int:
        """Return the free bytes below which there is too little."""
        return min(reserve_bytes, self._left_bytes // 2)

    def has_seen(self, loaded: object) -> bool:
        """Tell whether it is known what these residents left to others."""
        return loaded == self._loaded

    def is_near(self, reading: MemoryReading, reserve_bytes: int) -> bool:
        """Tell whether there may be too little soon, so that it is worth looking more often."""
        return reading.available_bytes < 4 * reserve_bytes

    def look(
        self,
        reading: MemoryReading,
        stalled_percent: float | None,
        *,
        reserve_bytes: int,
        loaded: object,
        now: float,
    ) -> Verdict:
        """Take in a look that was made while no resident came or went.

        Args:
            reading: what is free.
            stalled_percent: of the last seconds, the part in which programs waited for memory.
            reserve_bytes: what is to be left to other programs.
            loaded: which residents are there, by anything that compares.
            now: when that was, in seconds.
        """
        free = reading.available_bytes
        if loaded != self._loaded:
            self._loaded, self._left_bytes, self._count = loaded, free, 0
            if self.is_pressed:  # those who went may come back then
                self._relieved_from = free + max(0, int(1.5 * reserve_bytes) - self._pressed_free)
        is_stalled = (
            stalled_percent is not None
            and stalled_percent >= STALLED_PERCENT
            and reading.total_bytes is not None
            and free < _STALLED_FREE * reading.total_bytes
        )
        if free < self.mark_bytes(reserve_bytes) or is_stalled:
            self._count += 1
            return self._press(free, reserve_bytes, now) if self._count >= CONFIRM_LOOKS else "calm"
        self._count = 0
        is_over = free >= self._relieved_from and now - self._pressed_at >= LEAST_HOLD_S
        if self.is_pressed and is_over:
            self.is_pressed = False
            return "relieved"
        return "calm"

    def _press(self, free: int, reserve_bytes: int, now: float) -> Verdict:
        if not self.is_pressed:
            self._pressed_free = free
            self._relieved_from = max(1.5 * reserve_bytes, 2.0 * free)
        self.is_pressed, self._pressed_at, self._count = True, now, 0
        self.missing_bytes = max(1, int(1.5 * reserve_bytes) - free)
        return "pressed"
