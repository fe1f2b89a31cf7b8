"""The pauses between looks at something that has no event to wait for."""

from __future__ import annotations

import trio
from attrs import define, field

SHORTEST_S = 0.01
LONGEST_S = 0.25
# The pause grows with the time that has passed, so that what takes t seconds is noticed about t/20 late,
# neither rounded up to the next step of a schedule nor looked at a thousand times.
PART_OF_ELAPSED = 1 / 20


@define(eq=False, repr=False)
class Backoff:
    """A series of growing pauses: 10 ms at first, later a twentieth of the time since the first, 250 ms at most."""

    _began_at: float = field(factory=trio.current_time)

    async def pause(self) -> None:
        """Wait until it is time for the next look."""
        elapsed = trio.current_time() - self._began_at
        await trio.sleep(min(max(elapsed * PART_OF_ELAPSED, SHORTEST_S), LONGEST_S))
