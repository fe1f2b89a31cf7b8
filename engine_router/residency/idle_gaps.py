"""The pauses of clients between requests, from which a hold is learned."""

from __future__ import annotations

from collections import deque
from typing import Final

from engine_router.engines.base import ResidentId

# The last pauses that count. Enough to tell a habit from chance, few enough to forget an old one soon.
_REMEMBERED: Final = 16
_ENOUGH: Final = 3

# Clients do not come back to the millisecond.
_MARGIN: Final = 1.1


class IdleGaps:
    """Observes each resident's rhythm: how long it is used, and how long until the next request for it."""

    def __init__(self) -> None:
        self._idle_since: dict[ResidentId, float] = {}
        self._pauses: dict[ResidentId, deque[float]] = {}
        self._uses: dict[ResidentId, deque[float]] = {}

    def released(self, resident: ResidentId, now: float, *, busy_s: float) -> None:
        """Note that nobody uses a resident any more, after so many seconds of use."""
        self._idle_since[resident] = now
        self._uses.setdefault(resident, deque(maxlen=_REMEMBERED)).append(busy_s)

    def arrived(self, resident: ResidentId, now: float) -> None:
        """Note that somebody wants a resident, be it still there or not."""
        since = self._idle_since.pop(resident, None)
        if since is not None:
            self._pauses.setdefault(resident, deque(maxlen=_REMEMBERED)).append(now - since)

    def best_hold_s(self, resident: ResidentId, swap_s: float, *, waiting: int) -> float:
        """Return for how many seconds it pays to wait for the next client of an idle resident.

        To hold serves one request for each pause and use of the resident; to swap serves all who wait for
        each swap and use. So to wait until `h` saves a swap and a use whenever the pause ends before it, and
        costs everybody who waits the part of the pause before `h`, and the use. The best `h` is one of the
        observed pauses, or 0 where even that one costs more than it saves.
        """
        pauses = sorted(self._pauses.get(resident, ()))
        if len(pauses) < _ENOUGH:
            return 0.0
        uses = self._uses[resident]
        use_s = sum(uses) / len(uses)
        gain_s = swap_s + use_s - waiting * use_s
        best_s, most_saved_s, spent_s = 0.0, 0.0, 0.0
        for count, pause_s in enumerate(pauses, start=1):
            spent_s += pause_s
            waited_s = spent_s + pause_s * (len(pauses) - count)
            saved_s = count * gain_s - waiting * waited_s
            if saved_s > most_saved_s:
                best_s, most_saved_s = pause_s * _MARGIN, saved_s
        return best_s
