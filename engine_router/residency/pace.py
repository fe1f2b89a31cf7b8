"""The pace at which requests are served while some wait: what a resident that is held has to keep up with."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

# The last swaps that count, and the fewest that tell anything.
_REMEMBERED: Final = 16
_ENOUGH: Final = 2

# A request that comes so soon after an answer was made possible by it; others come whatever is served. Seconds.
FOLLOW_UP_S: Final = 8.0


class Pace:
    """Observes how many requests follow an answer, and in how many seconds, while some wait for what is not there.

    Requests that come of themselves, such as those of an occasional chat, are not counted: they are served in the end
    whoever is resident. What an hour brings more or less are the requests of clients that wait for one answer before
    they go on.

    Attributes:
        follow_ups: those that have come since the last `note`.
        answered_at: when a request ended last.
        newest_longest_s: what the longest of the last few swaps took; see `longest_s`. It and the others are written by
            whoever sees requests come and end: that happens with each of them, and is to cost next to nothing.
    """

    def __init__(self) -> None:
        self._rounds: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self.follow_ups = self._served = 0
        self._seconds = 0.0
        self.answered_at = -math.inf
        self.newest_longest_s = self._longest_before_s = 0.0
        self._swaps = 0
        self._noted_at = 0.0
        self._is_contended = False

    def note(self, now: float, *, is_contended: bool) -> None:
        """Note whether some wait from now on."""
        if self._is_contended:
            self._seconds += now - self._noted_at
            self._served += self.follow_ups
        self.follow_ups = 0
        self._noted_at, self._is_contended = now, is_contended

    def swapped(self, now: float) -> None:
        """Note that a resident became ready."""
        self.note(now, is_contended=self._is_contended)
        if self._seconds > 0:
            self._rounds.append((self._served, self._seconds))
        self._served, self._seconds = 0, 0.0
        self._swaps += 1
        if self._swaps % _REMEMBERED == 0:
            self._longest_before_s, self.newest_longest_s = self.newest_longest_s, 0.0

    @property
    def longest_s(self) -> float:
        """The seconds of the longest answer, its prompt read before, of the last swaps; 0 before there was one."""
        return max(self.newest_longest_s, self._longest_before_s)

    def per_s(self) -> float | None:
        """Return how many requests are served a second, over the last swaps; None where there were too few."""
        if len(self._rounds) < _ENOUGH:
            return None
        served = self._served + sum(served for served, _ in self._rounds)
        return served / (self._seconds + sum(seconds for _, seconds in self._rounds))
