"""The pace of a stream that somebody looks at: its events are counted while they do, and not before or after."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from engine_router.dialects.base import Clock

# Seconds that the pace is taken over: at least, and at most.
LEAST_S: Final = 0.3
MOST_S: Final = 3.0
# Seconds without a look after which nothing is counted any more.
FORGOTTEN_S: Final = 10.0


@define(eq=False, repr=False)
class StreamPace:
    """Counts the events, or lines, of a stream.

    Args:
        mark: stands in each of them once.
        clock: seconds.
        keep: takes in each piece.
        stop: called when nobody looks any more.
    """

    _mark: bytes
    _clock: Clock
    _keep: Callable[[bytes], object]
    _stop: Callable[[], object]
    _count: int = 0
    _looked_at: float = 0.0
    _looks: deque[tuple[float, int]] = field(factory=deque)

    def note(self, data: bytes) -> None:
        """Take in a piece."""
        self._keep(data)
        self._count += data.count(self._mark)
        if self._clock() - self._looked_at > FORGOTTEN_S:
            self._stop()

    def per_s(self) -> float | None:
        """Return how many have come a second, of late; None where it is not known yet."""
        now, looks = self._clock(), self._looks
        self._looked_at = now
        while len(looks) > 1 and looks[1][0] <= now - LEAST_S and looks[0][0] < now - MOST_S:
            looks.popleft()
        if not looks or now - looks[-1][0] >= LEAST_S:  # however many look
            looks.append((now, self._count))
        at, count = looks[0]
        return (self._count - count) / (now - at) if now - at >= LEAST_S else None
