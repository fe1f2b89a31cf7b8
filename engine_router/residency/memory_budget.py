"""The budget of one memory: needs, groups and pins of the residents that are present."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from engine_router.engines.base import ResidentId
from engine_router.errors import NeverFits
from engine_router.residency.resident_state import ResidentState
from engine_router.residency.rules import Capacity, Profile


class MemoryBudget:
    """The residents present in one memory, those whose memory is still to come back, and the room beside them.

    Attributes:
        capacity: may be replaced, once the memory was measured.
        states: who is present, in whatever phase.
        settling: who has gone, and what of the budget is theirs until it is back.
    """

    def __init__(self, capacity: Capacity, profile: Callable[[ResidentId], Profile]) -> None:
        self.capacity = capacity
        self.profile = profile
        self.states: dict[ResidentId, ResidentState] = {}
        self.settling: dict[ResidentId, float] = {}
        self._pins: dict[ResidentId, bool] = {}

    def new(self, resident: ResidentId) -> ResidentState:
        """Make the state of a resident that is not present yet."""
        state = ResidentState(resident)
        self.describe(state)
        return state

    def describe(self, state: ResidentState) -> None:
        """Fill in what is known of a resident, be it anew."""
        resident = state.resident
        profile = self.profile(resident)
        state.need_bytes = self.need(resident)
        state.group = profile.group
        state.pinned = self._pins.get(resident, profile.pinned)
        state.idle_timeout_s = profile.idle_timeout_s
        state.is_always_there = profile.is_always_there
        state.most_leases = 0 if state.is_shut else profile.max_leases

    def need(self, resident: ResidentId) -> float:
        """Return what a resident takes of the budget; 0 without one.

        What nobody declared or measured is guessed: all of the budget where nothing is known. A guess takes no
        more than there can be beside those that are pinned, but what is certain.
        """
        budget = self.capacity.budget_bytes
        if budget is None:
            return 0
        profile = self.profile(resident)
        guess = budget if profile.need_bytes is None else profile.need_bytes
        if not profile.is_guessed:
            return guess
        room = budget - sum(other.need_bytes for other in self._pinned_beside(resident))
        return max(profile.least_bytes, min(guess, room)) if room > 0 else guess

    def _pinned_beside(self, resident: ResidentId) -> list[ResidentState]:
        return [r for r in self.states.values() if r.pinned and r.resident != resident]

    def pin(self, resident: ResidentId, *, pinned: bool) -> None:
        """Change whether a resident is pinned, whatever its profile says."""
        self._pins[resident] = pinned
        if (state := self.states.get(resident)) is not None:
            state.pinned = pinned

    def are_compatible(self, one: str | None, other: str | None) -> bool:
        """Tell whether residents of two groups may be there together, as far as groups say."""
        if self.capacity.is_exclusive:
            return one is not None and one == other
        return one is None or other is None or one == other

    @property
    def excess_bytes(self) -> float:
        """The bytes to make free, where those that stay need more than the budget, or than there really is."""
        budget = self.capacity.budget_bytes
        if budget is None:
            return 0
        staying = [r for r in self.states.values() if not r.is_leaving]
        leaving_bytes = sum(r.need_bytes for r in self.states.values() if r.is_leaving)
        short_bytes = sum(r.short_bytes for r in staying) - leaving_bytes - sum(self.settling.values())
        return max(short_bytes, sum(r.need_bytes for r in staying) - budget)

    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        """Tell whether a resident has room beside everything that is there, leaves, or starts just now (Rule 1)."""
        if resident in self.settling or (self.capacity.is_exclusive and self.settling):
            return False
        group = self.profile(resident).group
        others = [*self.states.values(), *starting]
        if not all(self.are_compatible(group, other.group) for other in others):
            return False
        most = self.capacity.max_resident
        if most and len(others) >= most:
            return False
        used = sum(other.need_bytes for other in others) + sum(self.settling.values())
        return used + self.need(resident) <= self.limit_bytes

    def free_beside(self, resident: ResidentId) -> float:
        """Return the bytes of the budget that nobody but a resident has, or still has to give back."""
        others = (state.need_bytes for state in self.states.values() if state.resident != resident)
        return self.limit_bytes - sum(others) - sum(self.settling.values())

    @property
    def limit_bytes(self) -> float:
        """The budget; infinity where there is none."""
        return math.inf if self.capacity.budget_bytes is None else self.capacity.budget_bytes

    def objection(self, resident: ResidentId) -> NeverFits | None:
        """Tell why a resident could not be started even if everything went that may go; None if it could."""
        pinned = self._pinned_beside(resident)
        budget = self.capacity.budget_bytes
        if not pinned and (budget is None or self.need(resident) <= budget):
            return None
        group = self.profile(resident).group
        in_the_way = [r for r in pinned if not self.are_compatible(group, r.group)]
        if in_the_way:
            return NeverFits(f"'{resident}' cannot be loaded beside {_names(in_the_way)}, which is pinned")
        most = self.capacity.max_resident
        if most and len(pinned) >= most:
            words = f"{_names(pinned)} pinned, and max_resident is {most}"
            return NeverFits(f"'{resident}' cannot be loaded: {words}")
        taken = sum(r.need_bytes for r in pinned)
        if budget is None or self.need(resident) + taken <= budget:
            return None
        return self._too_large(resident, budget, pinned, taken)

    def _too_large(
        self, resident: ResidentId, budget: int, pinned: list[ResidentState], taken: float
    ) -> NeverFits:
        profile = self.profile(resident)
        need = profile.need_bytes
        size = "an unknown amount (declare memory_gb)" if need is None else f"{need / 1e9:.1f} GB"
        if profile.is_guessed and profile.least_bytes:
            need = profile.least_bytes
            size = f"{need / 1e9:.1f} GB for its weights alone"
        held = f", of which {taken / 1e9:.1f} GB belong to {_names(pinned)}, pinned" if pinned else ""
        return NeverFits(
            f"'{resident}' can never be loaded here: it needs {size}, and the budget is {budget / 1e9:.1f} GB{held}",
            need_bytes=need,
            budget_bytes=budget - int(taken),
        )


def _names(states: list[ResidentState]) -> str:
    return ", ".join(f"'{state.resident}'" for state in states)
