"""The pace of threads that work for long: they rest now and then, so that the event loop gets its turn at once.

Python hands over between threads every 5 ms, but not to a thread that waits for one that reads files: each read gives
way for a moment, too short for the other to wake up, and starts the 5 ms anew. Only a sleep lets it in.
"""

from __future__ import annotations

import time
from typing import Final

from attrs import define

# Seconds.
_WORK_S: Final = 0.001
_REST_S: Final = 0.0003


@define(eq=False, repr=False)
class Pace:
    """The pace of one thread.

    Attributes:
        signs: how often the thread came by.
    """

    signs: int = 0
    _rested_at: float = 0.0

    def rest(self) -> None:
        """Let other threads have their turn, unless they had it just now."""
        self.signs += 1
        if time.perf_counter() - self._rested_at > _WORK_S:
            time.sleep(_REST_S)
            self._rested_at = time.perf_counter()
