"""The pace of threads that work for long: they rest now and then, so that the event loop gets its turn at once.

Python hands over between threads every 5 ms, but not to a thread that waits for one that reads files: each read gives
way for a moment, too short for the other to wake up, and starts the 5 ms anew. Only a sleep lets it in.
"""

from __future__ import annotations

import time
from typing import Final

from attrs import define, field

# Seconds.
_WORK_S: Final = 0.001
_REST_S: Final = 0.0003


@define(eq=False, repr=False)
class Pace:
    """The pace of one thread. While it is entered it counts among those of its crowd, which take turns.

    Args:
        crowd: the paces of threads that work at the same time.

    Attributes:
        signs: how often the thread came by.
    """

    _crowd: set[Pace] = field(factory=set)
    signs: int = field(default=0, init=False)
    _rested_at: float = field(default=0.0, init=False)

    def __enter__(self) -> None:
        self._crowd.add(self)

    def __exit__(self, *_exc_info: object) -> None:
        self._crowd.discard(self)

    def rest(self) -> None:
        """Let other threads have their turn, unless they had it just now."""
        self.signs += 1
        if time.perf_counter() - self._rested_at > _WORK_S:
            # As long as the others of the crowd work: more at once would only wait for each other.
            time.sleep(_REST_S + _WORK_S * max(0, len(self._crowd) - 1))
            self._rested_at = time.perf_counter()
