"""The budgets of the memories that are planned together: needs, groups and pins of the residents that are present."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from engine_router.engines.base import ResidentId
from engine_router.errors import NeverFits
from engine_router.residency.eviction import Lack, Shortage
from engine_router.residency.resident_state import ResidentState
from engine_router.residency.rules import Capacity, Profile

# The choice of a resident that has no group.
NO_GROUP: Final = (None,)


class MemoryBudget:
    """The residents of one memory, or of several that some lie across, and the room beside them.

    Attributes:
        capacities: the capacity of each memory, by the name of its pool; see `set_capacities`.
        limits: the budgets of those that have one, by pool.
        defaults: the capacities of those that have a default model, by pool.
        states: the residents that are present, in whatever phase.
        settling: the residents that have gone, and the bytes of each budget that are theirs until they are back.
    """

    def __init__(self, capacities: Mapping[str, Capacity], profile: Callable[[ResidentId], Profile]) -> None:
        self.capacities: dict[str, Capacity] = {}
        self.set_capacities(capacities)
        self.profile = profile
        self.states: dict[ResidentId, ResidentState] = {}
        self.settling: dict[ResidentId, dict[str, float]] = {}
        self._pins: dict[ResidentId, bool] = {}
        self._is_one = len(self.capacities) == 1  # everybody is a neighbour of everybody
        self._first = tuple(self.capacities)[:1]

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """Take in the capacities of some memories: once they were measured, or are configured anew."""
        self.capacities.update(capacities)
        self.limits = {
            name: each.budget_bytes for name, each in self.capacities.items() if each.budget_bytes is not None
        }
        self._exclusive = frozenset(name for name, each in self.capacities.items() if each.is_exclusive)
        self.defaults = {
            name: each for name, each in self.capacities.items() if each.default_model is not None
        }

    def pools_of(self, profile: Profile) -> tuple[str, ...]:
        """Return the pools that a resident takes from."""
        return profile.pools or self._first

    def places(self, resident: ResidentId) -> tuple[str, ...]:
        """Return the pools in which a resident lies or will lie; those of one that is there are what they are."""
        state = self.states.get(resident)
        needs = self.settling.get(resident) if state is None else state.needs
        return tuple(needs) if needs else self.pools_of(self.profile(resident))

    def new(self, resident: ResidentId) -> ResidentState:
        """Make the state of a resident that is not present yet."""
        state = ResidentState(resident)
        self.describe(state)
        return state

    def describe(self, state: ResidentState) -> None:
        """Fill in what is known of a resident, be it anew. What is present stays in the memories in which it lies.

        Of one that shall lie in others from now on, nothing else is known of what it takes of those.
        """
        resident = state.resident
        profile = self.profile(resident)
        if not state.needs or set(state.needs) == set(self.pools_of(profile)):
            state.needs = self.needs(resident, profile)
        state.groups = profile.groups
        state.pinned = self._pins.get(resident, profile.pinned)
        state.idle_timeout_s = profile.idle_timeout_s
        state.is_always_there = profile.is_always_there
        state.most_leases = 0 if state.is_shut else profile.max_leases

    def needs(self, resident: ResidentId, profile: Profile) -> dict[str, float]:
        """Return what a resident of such a profile takes of the budget of each of its pools; 0 of a pool without one.

        What nobody declared or measured is guessed: all of the budget where nothing is known. A guess takes no
        more than there can be beside those that are pinned, but what is certain.
        """
        return {pool: self._need(resident, profile, pool) for pool in self.pools_of(profile)}

    def _need(self, resident: ResidentId, profile: Profile, pool: str) -> float:
        if (budget := self.limits.get(pool)) is None:
            return 0
        need = profile.need_in(pool)
        guess = budget if need is None else need
        if not profile.is_guessed:
            return guess
        room = budget - sum(other.needs.get(pool, 0) for other in self._pinned_beside(resident))
        return max(profile.least_in(pool), min(guess, room)) if room > 0 else guess

    def _pinned_beside(self, resident: ResidentId) -> list[ResidentState]:
        return [r for r in self.states.values() if r.pinned and r.resident != resident]

    def pin(self, resident: ResidentId, *, pinned: bool) -> None:
        """Change whether a resident is pinned, whatever its profile says."""
        self._pins[resident] = pinned
        if (state := self.states.get(resident)) is not None:
            state.pinned = pinned

    def run_short(self, resident: ResidentId, missing_bytes: int, pool: str | None) -> None:
        """Note what was found missing before the start of a resident; `pool` as in `messages.Short`."""
        if (state := self.states.get(resident)) is not None:
            state.short[pool or next(iter(state.needs))] = missing_bytes

    def settled(self, resident: ResidentId, pool: str | None) -> None:
        """Note that the memory of a resident that has gone is back, in one pool or in all."""
        needs = self.settling.get(resident, {})
        freed = (pool,) if pool is not None else tuple(needs)
        for name in freed:
            needs.pop(name, None)
            for state in self.states.values():
                state.short.pop(name, None)  # whether that was enough is seen at the next look
        if not needs:
            self.settling.pop(resident, None)

    def are_neighbours(self, one: ResidentId, other: ResidentId) -> bool:
        """Tell whether two residents take from one memory."""
        if self._is_one:
            return True
        pools = self.pools_of(self.profile(one))
        return any(pool in pools for pool in self.pools_of(self.profile(other)))

    def may_join(self, newcomer: Profile, others: Iterable[ResidentState]) -> bool:
        """Tell whether a newcomer may be there together with others, as far as groups say: one has all of them."""
        groups = newcomer.groups or NO_GROUP
        if len(groups) == 1:
            return all(self.may_share(groups[0], newcomer, other) for other in others)
        known = list(others)
        return any(all(self.may_share(group, newcomer, other) for other in known) for group in groups)

    def may_share(self, group: str | None, newcomer: Profile, other: ResidentState) -> bool:
        """Tell whether a newcomer may be there together with another as one of a group; None: as one of no group."""
        unshared: Collection[str] = self._exclusive
        if group is not None and (its := other.groups):
            if group in its:
                return True
            unshared = other.needs
        if unshared:
            for pool in newcomer.pools or self._first:
                if pool in unshared and pool in other.needs:
                    return False
        return True

    def excess_in(self, pool: str) -> float:
        """Return the bytes to make free, where those that stay need more than the budget, or than there really is."""
        if (budget := self.limits.get(pool)) is None:
            return 0
        staying_bytes = short_bytes = 0.0
        for state in self.states.values():
            need_bytes = state.needs.get(pool, 0)
            if state.is_leaving:
                short_bytes -= need_bytes
            else:
                staying_bytes += need_bytes
                if state.short:
                    short_bytes += state.short.get(pool, 0)
        return max(short_bytes - self._settling_in(pool), staying_bytes - budget)

    @property
    def has_excess(self) -> bool:
        """Whether some have to go because the others need more than was believed."""
        return any(self.excess_in(pool) > 0 for pool in self.limits)

    def _settling_in(self, pool: str) -> float:
        return sum(needs.get(pool, 0) for needs in self.settling.values())

    def fits_now(self, resident: ResidentId, starting: Iterable[ResidentState] = ()) -> bool:
        """Tell whether a resident has room beside everything that is there, leaves, or starts just now (Rule 1)."""
        if resident in self.settling:
            return False
        profile = self.profile(resident)
        others = [*self.states.values(), *starting]
        if not self.may_join(profile, others):
            return False
        return all(self._fits_into(pool, resident, profile, others) for pool in self.pools_of(profile))

    def _fits_into(
        self, pool: str, resident: ResidentId, profile: Profile, others: list[ResidentState]
    ) -> bool:
        capacity = self.capacities[pool]
        if capacity.is_exclusive and any(pool in needs for needs in self.settling.values()):
            return False
        if capacity.max_resident and _count(others, pool) >= capacity.max_resident:
            return False
        used = sum(other.needs.get(pool, 0) for other in others) + self._settling_in(pool)
        return used + self._need(resident, profile, pool) <= self.limit_bytes(pool)

    def shortage(self, needs: Iterable[tuple[str, float]], beside: list[ResidentState]) -> Shortage | None:
        """Return what is missing for a newcomer that needs so much of each pool beside others; None where nothing is."""
        lacks: list[Lack] = []
        for pool, need_bytes in needs:
            capacity = self.capacities[pool]
            missing_bytes, too_many = 0.0, 0
            if capacity.budget_bytes is not None:
                missing_bytes = need_bytes - capacity.budget_bytes
                for other in beside:
                    missing_bytes += other.needs.get(pool, 0)
            if capacity.max_resident:
                too_many = max(0, _count(beside, pool) + 1 - capacity.max_resident)
            if missing_bytes > 0 or too_many:
                lacks.append(Lack(pool, missing_bytes, too_many))
        return Shortage(tuple(lacks)) if lacks else None

    def is_promised(self, promised: list[ResidentState]) -> bool:
        """Tell whether nobody else can have room beside those who are to come, whoever goes, in any memory."""
        return all(self._is_promised(pool, promised) for pool in self.capacities)

    def _is_promised(self, pool: str, promised: list[ResidentState]) -> bool:
        capacity = self.capacities[pool]
        if capacity.max_resident and _count(promised, pool) >= capacity.max_resident:
            return True
        if capacity.budget_bytes is None:
            return capacity.is_exclusive and any(not r.groups and pool in r.needs for r in promised)
        return sum(state.needs.get(pool, 0) for state in promised) >= capacity.budget_bytes

    def free_beside(self, resident: ResidentId, pool: str) -> float:
        """Return the bytes of a budget that nobody but a resident has, or still has to give back."""
        others = (s.needs.get(pool, 0) for s in self.states.values() if s.resident != resident)
        return self.limit_bytes(pool) - sum(others) - self._settling_in(pool)

    def limit_bytes(self, pool: str) -> float:
        """Return the budget of a pool; infinity where there is none."""
        budget = self.capacities[pool].budget_bytes
        return math.inf if budget is None else budget

    def objection(self, resident: ResidentId) -> NeverFits | None:
        """Tell why a resident could not be started even if everything went that may go; None if it could."""
        profile = self.profile(resident)
        pinned = self._pinned_beside(resident)
        if pinned and not self.may_join(profile, pinned):
            groups = profile.groups or NO_GROUP
            apart = ([r for r in pinned if not self.may_share(group, profile, r)] for group in groups)
            fewest = _names(min(apart, key=len))
            return NeverFits(f"'{resident}' cannot be loaded beside {fewest}, which is pinned")
        for pool in profile.pools or self._first:
            budget = self.limits.get(pool)
            if not pinned and (budget is None or self._need(resident, profile, pool) <= budget):
                continue
            beside = [r for r in pinned if pool in r.needs]
            if (objection := self._objection_in(pool, resident, profile, beside)) is not None:
                return objection
        return None

    def _objection_in(
        self, pool: str, resident: ResidentId, profile: Profile, pinned: list[ResidentState]
    ) -> NeverFits | None:
        budget, need = self.limits.get(pool), self._need(resident, profile, pool)
        most = self.capacities[pool].max_resident
        if most and len(pinned) >= most:
            words = f"{_names(pinned)} pinned, and max_resident{self._of(pool)} is {most}"
            return NeverFits(f"'{resident}' cannot be loaded: {words}")
        taken = sum(r.needs[pool] for r in pinned)
        if budget is None or need + taken <= budget:
            return None
        return self._too_large(resident, pool, budget, pinned, taken)

    def _too_large(
        self, resident: ResidentId, pool: str, budget: int, pinned: list[ResidentState], taken: float
    ) -> NeverFits:
        profile = self.profile(resident)
        need = profile.need_in(pool)
        size = "an unknown amount (declare memory_gb)" if need is None else f"{need / 1e9:.1f} GB"
        if profile.is_guessed and profile.least_in(pool):
            need = profile.least_in(pool)
            size = f"{need / 1e9:.1f} GB for its weights alone"
        held = f", of which {taken / 1e9:.1f} GB belong to {_names(pinned)}, pinned" if pinned else ""
        return NeverFits(
            f"'{resident}' can never be loaded here: it needs {size}, "
            f"and the budget{self._of(pool)} is {budget / 1e9:.1f} GB{held}",
            need_bytes=need,
            budget_bytes=budget - int(taken),
        )

    def _of(self, pool: str) -> str:
        """Return which pool is meant, where there is more than one."""
        return "" if self._is_one else f" of pool '{pool}'"


def _count(residents: Iterable[ResidentState], pool: str) -> int:
    return sum(pool in resident.needs for resident in residents)


def _names(states: list[ResidentState]) -> str:
    return ", ".join(f"'{state.resident}'" for state in states)
