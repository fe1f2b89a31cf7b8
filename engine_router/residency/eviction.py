"""The choice of victims: the cheapest set of residents whose end makes enough room for another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from attrs import frozen

from engine_router.residency.resident_state import Phase, ResidentState
from engine_router.residency.rules import Profile

# After so long without use a resident is half as likely to be wanted again soon. Seconds.
HALF_LIFE_S: Final = 60.0

# More candidates than this are not tried in every combination.
_MOST_COMBINED: Final = 8


class TakesRoom(Protocol):
    """Something that takes room in memories, and may be made to go."""

    @property
    def needs(self) -> Mapping[str, float]:
        """What it takes of each, in bytes."""
        ...


V = TypeVar("V", bound=TakesRoom)


@frozen
class Lack:
    """The room that is missing in one memory.

    Attributes:
        pool: which memory.
        size_bytes: of it.
        residents: of the number that may be there at once.
    """

    pool: str
    size_bytes: float
    residents: int

    def is_covered_by(self, chosen: Collection[TakesRoom]) -> bool:
        """Tell whether it would be enough if these went."""
        pool = self.pool
        if self.residents and sum(pool in victim.needs for victim in chosen) < self.residents:
            return False
        return sum(victim.needs.get(pool, 0) for victim in chosen) >= self.size_bytes


@frozen
class Shortage:
    """The room that is missing for a start, beyond those that have to go in any case.

    Attributes:
        lacks: that of each memory in which there is too little.
    """

    lacks: tuple[Lack, ...]

    def is_covered_by(self, victims: Collection[TakesRoom]) -> bool:
        """Tell whether it would be enough if these went."""
        return all(lack.is_covered_by(victims) for lack in self.lacks)

    def is_eased_by(self, victim: TakesRoom) -> bool:
        """Tell whether one lies where there is too little."""
        return any(lack.pool in victim.needs for lack in self.lacks)

    def eased_bytes(self, victim: TakesRoom) -> float:
        """Return how much of what is missing one would bring."""
        return sum(min(victim.needs.get(lack.pool, 0), lack.size_bytes) for lack in self.lacks)


def eviction_cost(state: ResidentState, profile: Profile, reading_s: float, now: float) -> float:
    """Return what it costs to lose a resident, in seconds of loading it again, by how soon that may be.

    What nobody uses costs its start and the reading of its conversations, the less the longer it has been idle. What is
    in use costs each of its leases on top. What goes anyway costs nothing, what could not be stopped before is tried last.

    Args:
        reading_s: seconds in which its conversations are read again.
    """
    if state.phase is Phase.DRAINING:
        return 0.0
    reload_s = (profile.likely_start_s + reading_s) * profile.evict_cost
    if state.phase is Phase.STUCK:
        return 1e6
    if state.leases:
        return 1000.0 * len(state.leases) + reload_s
    idle_s = max(0.0, now - state.idle_since)
    return reload_s * HALF_LIFE_S / (HALF_LIFE_S + idle_s)


def cheapest(candidates: Sequence[V], shortage: Shortage, cost: Callable[[V], float]) -> list[V] | None:
    """Return the victims that cost least and are enough (Rule 5); None where all together are not.

    Exact up to eight candidates. Beyond that, the cheapest by size are taken until it is enough, and whoever
    turns out not to be needed stays.
    """
    candidates = [candidate for candidate in candidates if shortage.is_eased_by(candidate)]
    if not shortage.is_covered_by(candidates):
        return None
    costs = {candidate: cost(candidate) for candidate in candidates}
    if len(candidates) <= _MOST_COMBINED:
        sets = (
            chosen
            for count in range(len(candidates) + 1)
            for chosen in itertools.combinations(candidates, count)
            if shortage.is_covered_by(chosen)
        )
        return list(min(sets, key=lambda chosen: sum(map(costs.__getitem__, chosen))))
    return _greedy(candidates, shortage, costs.__getitem__)


def _greedy(candidates: Sequence[V], shortage: Shortage, cost: Callable[[V], float]) -> list[V]:
    # Smaller than what is missing counts by what it contributes, larger by no more than is needed.
    def price(state: V) -> float:
        return cost(state) / max(1.0, shortage.eased_bytes(state))

    chosen: list[V] = []
    for candidate in sorted(candidates, key=price):
        if shortage.is_covered_by(chosen):
            break
        chosen.append(candidate)
    for candidate in sorted(chosen, key=cost, reverse=True):
        rest = [other for other in chosen if other is not candidate]
        if shortage.is_covered_by(rest):
            chosen = rest
    return chosen
