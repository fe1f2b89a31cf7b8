"""The reclaim of memory: what residents are worth asleep, and what is given up for memory that a start lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import trio
from attrs import define

from engine_router.engines.base import ResidentId
from engine_router.residency.domain import Domain
from engine_router.residency.measurements import SLEEP_SHARE, Measurements
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.rules import Profile, ResidencySettings
from engine_router.residency.sleep_choice import Candidate, Relief, cheapest_relief, sleeper_cost_s
from engine_router.residency.sleepers import Sleepers, SleepStatus

# A gauge of GPU memory: what sleepers of other pools have parked lies in main memory, and is nothing to it.
_GPU_GAUGE = "nvml"


@define(eq=False, kw_only=True, repr=False)
class Reclaim:
    """Chooses between residents that sleep and idle ones.

    Attributes:
        profile: returns what is known of a resident.
        settings: returns how residents share the memories.
        wall_clock: seconds since the epoch.
    """

    profile: Callable[[ResidentId], Profile]
    settings: Callable[[], ResidencySettings]
    measurements: Measurements
    sleepers: Sleepers
    wall_clock: Callable[[], float]

    def cache_s(self, resident: ResidentId) -> float:
        """Return what a resident's cache has saved lately, in seconds, where that survives sleep and no stop."""
        settings, speeds = self.settings(), self.measurements.speeds
        if not settings.traits(resident).cache_sleeps:
            return 0.0
        return speeds.saved_s(resident, settings.resident_of, self.wall_clock())

    def prefers_sleep(self, domain: Domain, task: ResidentTask) -> bool:
        """Tell whether a resident that has to go should sleep rather than be stopped.

        Once it sleeps: whether it may go on, since what its sleep has brought is known then.
        """
        measured, cache_s = self.measurements.of(task.resident), self.cache_s(task.resident)
        if task.wanted is None or not cache_s:
            return measured.prefers_sleep(task.missing, cache_s=cache_s)
        rest: dict[str, float] = {}
        for pool, size_bytes in (task.missing or {}).items():
            rest[pool] = size_bytes - (measured.shares.get(pool, measured).sleep_freed_bytes or 0)
        relief = self.relief(domain, rest, sparing=(task.resident, task.wanted))
        rest_s = math.inf if relief is None else relief.cost_s
        return measured.prefers_sleep(task.missing, cache_s=cache_s, rest_s=rest_s)

    def relief(
        self, domain: Domain, missing: Mapping[str, float], sparing: Iterable[ResidentId]
    ) -> Relief | None:
        """Return the cheapest way to bring what is missing of each pool; None where there is none that is known.

        Args:
            sparing: residents that must not go for it.
        """
        spared = set(sparing)
        candidates = (*self._asleep(domain, missing), *self._idle(domain, missing))
        return cheapest_relief(missing, [one for one in candidates if one.resident not in spared])

    def sleepers_in(self, domain: Domain, pools: Iterable[str]) -> list[ResidentId]:
        """Return those that sleep and may hold something of some pools."""
        return [candidate.resident for candidate in self._asleep(domain, pools)]

    def _asleep(self, domain: Domain, pools: Iterable[str]) -> Iterator[Candidate]:
        """Yield the sleepers whose end would bring something, as far as is known."""
        now = trio.current_time()
        for resident, status in self.sleepers.all.items():
            needs = {pool: self._brings(domain, resident, status, pool) for pool in pools}
            if any(needs.values()):
                cost_s = sleeper_cost_s(
                    self.measurements.of(resident), self.cache_s(resident), now - status.since
                )
                yield Candidate(resident, needs, cost_s * self.profile(resident).evict_cost, is_asleep=True)

    def _brings(self, domain: Domain, resident: ResidentId, status: SleepStatus, pool: str) -> float:
        """Return the bytes of a pool that the end of a sleeper would bring, about."""
        if pool in status.kept:
            # Where it was not measured: no more than lets it sleep.
            guess = (1 - SLEEP_SHARE) * (self.profile(resident).need_in(pool) or 0)
            return status.kept[pool] or max(1.0, guess)
        if domain.pools[pool].memory.gauge.name == _GPU_GAUGE:
            return 0
        return self.measurements.of(resident).sleep_freed_bytes or 0  # its weights are parked there, at most

    def _idle(self, domain: Domain, pools: Iterable[str]) -> Iterator[Candidate]:
        """Yield the idle residents that the ledger would have go."""
        now, budget = trio.current_time(), domain.ledger.budget
        counted = [pool for pool in pools if budget.capacities[pool].budget_bytes is not None]
        for state in domain.ledger.states:
            needs = {pool: state.needs[pool] for pool in counted if pool in state.needs}
            if needs and state.is_idle and not (state.pinned or state.is_always_there):
                cost_s = domain.ledger.costs.eviction_cost(state, now)
                yield Candidate(state.resident, needs, cost_s, is_asleep=False)
