"""The pauses of clients between requests, from which a hold is learned."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.residency.pace import FOLLOW_UP_S, Pace
from engine_router.residency.resident_state import ResidentState

# The last pauses that count. Enough to tell a habit from chance, few enough to forget an old one soon.
_REMEMBERED: Final = 16
_ENOUGH: Final = 3

# Clients do not come back to the millisecond.
_MARGIN: Final = 1.1

# How long a use takes, where nobody knows. Seconds.
UNKNOWN_USE_S: Final = 5.0


@define(eq=False, repr=False)
class Rhythm:
    """The rhythm of one resident's clients.

    Attributes:
        pauses: the seconds from the end of a use to the next request.
        uses: the seconds of each use, from the first of its requests to the end of the last, and how many they were.
    """

    pauses: deque[float] = field(factory=lambda: deque(maxlen=_REMEMBERED))
    uses: deque[tuple[float, int]] = field(factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def use_s(self) -> float:
        """The seconds of a use, on average."""
        return sum(seconds for seconds, _ in self.uses) / len(self.uses) if self.uses else UNKNOWN_USE_S

    @property
    def requests(self) -> float:
        """The requests of a use, on average."""
        return sum(count for _, count in self.uses) / len(self.uses) if self.uses else 1.0


_UNKNOWN: Final = Rhythm()


class IdleGaps:
    """Observes each resident's rhythm: how long it is used, and how long until the next request for it.

    Attributes:
        pace: that of all residents together.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._idle_since: dict[ResidentId, float] = {}
        self._rhythms: dict[ResidentId, Rhythm] = {}

    def answered(self, state: ResidentState, took_s: float, now: float) -> None:
        """Note that a request has ended, and with it the use of its resident where it was the last.

        The first use after a start tells nothing of the next: prompts of which nothing is cached take their time to be
        read.
        """
        pace = self.pace
        pace.answered_at = now
        if took_s > pace.newest_longest_s:  # noqa: PLR1730 - a call less
            pace.newest_longest_s = took_s
        if state.leases:
            return
        self._idle_since[state.resident] = now
        if state.busy_since > state.ready_at:
            rhythm = self._rhythms.get(state.resident) or self._rhythms.setdefault(state.resident, Rhythm())
            rhythm.uses.append((now - state.busy_since, state.uses))

    def arrived(self, resident: ResidentId, now: float) -> None:
        """Note that somebody wants a resident, be it still there or not."""
        if now - self.pace.answered_at <= FOLLOW_UP_S:
            self.pace.follow_ups += 1
        since = self._idle_since.pop(resident, None)
        if since is not None:
            rhythm = self._rhythms.get(resident) or self._rhythms.setdefault(resident, Rhythm())
            rhythm.pauses.append(now - since)

    def rhythm(self, resident: ResidentId) -> Rhythm:
        """Return what was observed of a resident; not to be changed."""
        return self._rhythms.get(resident, _UNKNOWN)

    def best_hold_s(self, resident: ResidentId, per_s: float) -> float:
        """Return for how many seconds it pays to wait for the next client of an idle resident.

        To hold serves the requests of one use for a pause and that use. Meanwhile others are not served: `per_s` requests
        for each second of both. So to wait until `h` gains the requests of a use whenever the pause ends before it, less
        what its seconds cost, and costs the part of each pause before `h`. The best `h` is one of the observed pauses, or
        0 where even that one costs more than it gains. (The marginal value theorem: leave where you earn less than on
        average.)

        Args:
            per_s: the requests that are served a second on average, swaps included.
        """
        rhythm = self.rhythm(resident)
        pauses = sorted(rhythm.pauses)
        if len(pauses) < _ENOUGH:
            return 0.0
        gain = rhythm.requests - per_s * rhythm.use_s
        best_s, most_gained, spent_s = 0.0, 0.0, 0.0
        for count, pause_s in enumerate(pauses, start=1):
            spent_s += pause_s
            waited_s = spent_s + pause_s * (len(pauses) - count)
            gained = count * gain - per_s * waited_s
            if gained > most_gained:
                best_s, most_gained = pause_s * _MARGIN, gained
        return best_s
