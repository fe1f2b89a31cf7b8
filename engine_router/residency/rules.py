"""Rules of the ledger, the capacity of a memory, and the profile of each resident."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from attrs import evolve, field, frozen

from engine_router.config import TenantConfig
from engine_router.engines.base import ResidentId
from engine_router.models.availability import UNKNOWN_START_S
from engine_router.residency.cache_savings import ResidentOf
from engine_router.residency.files import Files, NoFiles
from engine_router.residency.measurements import Measurement

# Where nobody says what a resident needs of each of its pools.
EVENLY: Final[Mapping[str, int]] = MappingProxyType({})


@frozen(kw_only=True)
class Rules:
    """The settings that the ledger obeys; seconds, but for the two sizes of queues.

    Attributes:
        max_queue_per_model: requests that may wait for one resident; 0: as many as for the pool.
        min_resident_s: an idle resident is not stopped for somebody else earlier after it became ready.
        hold_s: an idle resident is kept for so long, for a client that comes back; None: learned.
    """

    drain_timeout_s: float = 30.0
    max_wait_s: float = 60.0
    abandon_grace_s: float = 2.0
    failed_start_memory_s: float = 5.0
    max_queue: int = 1000
    max_queue_per_model: int = 0
    min_resident_s: float = 0.0
    hold_s: float | None = 0.0

    def within(self, capacity: Capacity) -> Rules:
        """Return the rules for a pool: those who share no memory share no queue either."""
        if not capacity.is_boundless:
            return self
        per_model = min(self.max_queue_per_model or self.max_queue, self.max_queue)
        return evolve(self, max_queue=sys.maxsize, max_queue_per_model=per_model)


@frozen(kw_only=True)
class Capacity:
    """The capacity of one memory.

    Attributes:
        budget_bytes: the sum of what its residents may need; None: one resident at a time, or one group.
        max_resident: how many may be there at once; 0: as many as fit.
        default_model: the resident to return to when nobody wants another.
        return_after_s: an idle resident makes way for it after so long, in seconds.
        is_boundless: no memory here: any number of residents, whatever they need.
        is_auto: the budget is what is free at the start, less the reserve; exclusive where that is unknown.
        reserve_bytes: what is left to others then, and what idle residents make way for where others take it.
        yields_under_pressure: idle residents go where other programs leave less than that.
    """

    budget_bytes: int | None = None
    is_boundless: bool = False
    is_auto: bool = False
    reserve_bytes: int = 0
    yields_under_pressure: bool = False
    max_resident: int = 0
    default_model: ResidentId | None = None
    return_after_s: float = 60.0

    @property
    def mode(self) -> Literal["exclusive", "budget", "boundless"]:
        """The way in which residents share it."""
        if self.is_boundless:
            return "boundless"
        return "exclusive" if self.budget_bytes is None else "budget"

    @property
    def is_exclusive(self) -> bool:
        """Whether residents share the memory with nobody but their group."""
        return self.mode == "exclusive"


# One memory, for one resident at a time.
ONE_MEMORY: Final[Mapping[str, Capacity]] = MappingProxyType({"default": Capacity()})


@frozen(kw_only=True)
class Profile:
    """The profile of a resident, present or not.

    Attributes:
        need_bytes: memory that it needs, of all its pools together; None where nothing is known.
        pools: the pools that it takes from; empty: the only one there is.
        needs: what it needs of each, where that is known; otherwise they share it evenly.
        is_estimated: that is only an estimate: it says when the resident starts, never whether.
        least_bytes: what it needs for certain, such as its weights; 0 where nothing is known.
        start_s: seconds that its start takes; None where unknown.
        stop_s: seconds until it and its memory are gone; None where unknown.
        groups: residents that have one group in common may stay together; others are stopped before one of them starts.
        pinned: it is never stopped for somebody else's sake, nor for being idle.
        evict_cost: how many times its own start counts when victims are chosen.
        idle_timeout_s: idle for so long, it is stopped.
        is_checkable: its engine can be asked beforehand whether a start would be in vain.
        is_always_there: it runs by itself: it is neither started nor stopped for anybody.
        max_leases: that many requests may use it at the same time; others wait.
        keeps_context: what it has read of prompts is still there when it comes back: none has to be read again.
    """

    need_bytes: int | None = None
    pools: tuple[str, ...] = ()
    needs: Mapping[str, int] = EVENLY
    is_estimated: bool = False
    least_bytes: int = 0
    start_s: float | None = None
    stop_s: float | None = None
    groups: tuple[str, ...] = ()
    pinned: bool = False
    evict_cost: float = 1.0
    idle_timeout_s: float = math.inf
    is_checkable: bool = False
    is_always_there: bool = False
    max_leases: float = math.inf
    keeps_context: bool = False

    @property
    def is_guessed(self) -> bool:
        """Whether nobody declared or measured what it needs."""
        return self.is_estimated or self.need_bytes is None

    @property
    def likely_start_s(self) -> float:
        """Seconds that its start takes; a guess where nobody has measured that."""
        return UNKNOWN_START_S if self.start_s is None else self.start_s

    def need_in(self, pool: str) -> int | None:
        """Return what it needs of one of its pools, in bytes; None where nothing is known."""
        if self.needs:
            return self.needs.get(pool)
        need = self.need_bytes
        return need if need is None or len(self.pools) < 2 else self._share(need)

    def least_in(self, pool: str) -> int:
        """Return what it needs for certain of one of its pools, in bytes."""
        return self._share(self.least_bytes) if not self.pools or pool in self.pools else 0

    def _share(self, size_bytes: int) -> int:
        return -(-size_bytes // max(1, len(self.pools)))


UNKNOWN = Profile()


@frozen(kw_only=True)
class Traits:
    """The traits of a resident by its configuration; see `Profile`.

    Attributes:
        pools: the pools that it takes from.
        declared_bytes: memory that it needs, by the configuration.
        declared_needs: the same of each of its pools, where it lies across several and that is declared.
        estimated_bytes: memory that it needs, by its weights and context.
        weights_bytes: memory that its weights alone need.
        cache_sleeps: what it has read of prompts is still there after sleep, and not after a stop.
    """

    pools: tuple[str, ...] = ()
    declared_bytes: int | None = None
    declared_needs: Mapping[str, int] = EVENLY
    estimated_bytes: int | None = None
    weights_bytes: int = 0
    groups: tuple[str, ...] = ()
    pinned: bool = False
    evict_cost: float = 1.0
    idle_timeout_s: float = math.inf
    is_always_there: bool = False
    max_leases: float = math.inf
    keeps_context: bool = False
    cache_sleeps: bool = False

    def profile(self, measured: Measurement) -> Profile:
        """Return what is known of the resident: what is declared goes before what was measured, and both before guesses."""
        found_bytes, needs = measured.footprint_bytes or None, self.declared_needs
        if len(self.pools) > 1 and self.declared_bytes is None:
            shares = measured.needs(self.pools)
            found_bytes, needs = (None, EVENLY) if shares is None else (sum(shares.values()), shares)
        known = (self.declared_bytes, found_bytes, self.estimated_bytes)
        stop_s = None if measured.stop_s is None else measured.stop_s + (measured.settle_s or 0.0)
        return Profile(
            need_bytes=next((need for need in known if need is not None), None),
            pools=self.pools,
            needs=needs,
            is_estimated=known[0] is None and known[1] is None,
            least_bytes=self.weights_bytes,
            start_s=measured.start_s,
            stop_s=stop_s,
            groups=self.groups,
            pinned=self.pinned,
            evict_cost=self.evict_cost,
            idle_timeout_s=self.idle_timeout_s,
            is_checkable=True,
            is_always_there=self.is_always_there,
            max_leases=self.max_leases,
            keeps_context=self.keeps_context,
        )


def _no_resident(_engine: str, _model: str) -> ResidentId | None:
    return None


def _no_traits(_: ResidentId) -> Traits:
    return Traits()


@frozen(kw_only=True, eq=False, repr=False)
class ResidencySettings:
    """The settings by which residents share the memories.

    Attributes:
        capacities: what each pool can hold, by its name; one resident at a time where absent.
        traits: what the configuration says of a resident; asked often, and so not to take long.
        preload: residents to be started before anybody asks, as far as they fit.
        always_there: residents that run by themselves.
        has_remotes: there are servers elsewhere, whose pool is no memory.
        files: what is done about their files when one makes way for another.
        tenants: the other programs that share a pool's memory, by the pool.
        resident_of: returns the resident that serves a model, by the engine's name and the model's id.
    """

    capacities: Mapping[str, Capacity] = field(factory=dict)
    traits: Callable[[ResidentId], Traits] = _no_traits
    preload: tuple[ResidentId, ...] = ()
    always_there: tuple[ResidentId, ...] = ()
    has_remotes: bool = False
    files: Files = field(factory=NoFiles)
    tenants: Mapping[str, Sequence[TenantConfig]] = field(factory=dict)
    resident_of: ResidentOf = _no_resident
