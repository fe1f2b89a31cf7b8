"""The costs of swaps, in seconds, and what follows: who goes, how long the idle are held, when others are overdue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine_router.engines.base import ResidentId
from engine_router.residency.eviction import eviction_cost
from engine_router.residency.idle_gaps import IdleGaps
from engine_router.residency.memory_budget import MemoryBudget
from engine_router.residency.resident_state import ResidentState
from engine_router.residency.rules import Rules
from engine_router.residency.speeds import NOTHING_TO_READ, Reading

# So long, what was worked out for one ticket does for the next. Seconds.
_STILL_TRUE_S: Final = 5.0


class SwapCosts:
    """The costs of swaps between the residents of one ledger.

    Args:
        reading: what a resident has to read again once it was stopped.
    """

    def __init__(
        self, budget: MemoryBudget, idle_gaps: IdleGaps, reading: Callable[[ResidentId], Reading]
    ) -> None:
        self._budget = budget
        self._idle_gaps = idle_gaps
        self._lost = reading
        self._patience: dict[ResidentId, tuple[float, float]] = {}

    def swap_s(self, resident: ResidentId) -> float:
        """Return what it takes to stop a resident and to start it again, in seconds, as far as is known."""
        profile = self._budget.profile(resident)
        return profile.likely_start_s + (profile.stop_s or 0.0)

    def reading(self, resident: ResidentId) -> Reading:
        """Return what a resident has to read again once it was stopped; nothing where its cache outlives that."""
        return NOTHING_TO_READ if self._budget.profile(resident).keeps_context else self._lost(resident)

    def first_answer_s(self, resident: ResidentId) -> float:
        """Return the seconds of a swap to a resident, until it has read its first prompt."""
        return self.swap_s(resident) + self.reading(resident).one_s

    def eviction_cost(self, state: ResidentState, now: float) -> float:
        """See `eviction.eviction_cost`."""
        resident = state.resident
        return eviction_cost(state, self._budget.profile(resident), self.reading(resident).all_s, now)

    def hold_s(self, idle: ResidentId, waiting: int) -> float:
        """Return for how long an idle resident is held for its clients, while so many wait for others."""
        return self._idle_gaps.best_hold_s(idle, self._per_s(idle, waiting))

    def _per_s(self, idle: ResidentId, waiting: int) -> float:
        """Return how many requests a second are served if a resident makes way; guessed until that was seen."""
        per_s = self._idle_gaps.pace.per_s()
        if per_s is not None:
            return per_s
        swap_s = self.swap_s(idle) + self.reading(idle).all_s
        return waiting / (swap_s + self._idle_gaps.rhythm(idle).use_s)

    def patience_s(self, resident: ResidentId, rules: Rules, now: float) -> float:
        """Return after how many seconds a ticket for a resident is overdue, by what the swap to it costs.

        At least `max_wait_s`. A swap that takes longer, prompts included, is not worth less than that, and one that takes
        longer without them is followed by a batch as long as the last ones; and what was read for so long is used for a
        while. Counted as reading is only what was seen in an answer lately, and no more than
        `max_wait_s`: so nobody waits longer than the bound says, for which that answer counts in full.
        """
        if rules.hold_s is not None:
            return rules.max_wait_s
        known = self._patience.get(resident)
        if known is None or not now - known[1] < _STILL_TRUE_S:
            known = self._patience[resident] = self._worked_out(resident, rules), now
        return known[0]

    def _worked_out(self, resident: ResidentId, rules: Rules) -> float:
        reading_s = max(self.reading(r).all_s for r in (resident, *self._budget.states))
        longest_s = self._idle_gaps.pace.longest_s
        reading_s = min(reading_s, longest_s, rules.max_wait_s)
        swap_s, use_s = (
            self.swap_s(resident),
            min(self._idle_gaps.rhythm(resident).use_s, rules.drain_timeout_s),
        )
        batch_s = min(reading_s + use_s, longest_s)
        if (
            swap_s > rules.max_wait_s
        ):  # nobody is served in time: a batch may be as long as the bound counts it
            batch_s = min(longest_s, rules.max_wait_s + rules.drain_timeout_s)
        return max(rules.max_wait_s, swap_s + batch_s) + max(0.0, reading_s - rules.drain_timeout_s)

    def forget(self) -> None:
        """Work out anew what depends on who is there."""
        self._patience.clear()
