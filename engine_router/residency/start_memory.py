"""The look at free memory before a start: it waits until there is enough, and has something done about what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import trio
from attrs import define, frozen

from engine_router.engines.base import ResidentId
from engine_router.errors import NotEnoughMemory
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.other_programs import in_words
from engine_router.residency.pool import Pool
from engine_router.residency.pool_memory import LATE_MEMORY_S
from engine_router.residency.reclaim import Reclaim
from engine_router.residency.resident_state import Phase
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.tenants import Tenants

# Seconds between two looks whether there is enough memory for a start.
SHORT_INTERVAL_S = 0.05


@frozen
class _Need:
    """What has to be free in one pool for a start.

    Attributes:
        need_bytes: None where that is not known, or nobody counts.
        least_bytes: what it needs for certain, where the other is a guess.
    """

    need_bytes: int | None
    least_bytes: int | None

    def missing(self, free_bytes: float) -> int:
        """Return how much less is free."""
        if self.need_bytes is None:
            return 0
        return int(max(0.0, self.need_bytes - _slack(self.need_bytes) - free_bytes))

    def is_enough(self, free_bytes: float) -> bool:
        """Tell whether a start may be tried though less is free than was guessed."""
        return self.least_bytes is not None and free_bytes >= self.least_bytes


@define(eq=False, kw_only=True, repr=False)
class StartMemory:
    """The memory that starts wait for.

    Attributes:
        reclaim: chooses what goes for memory that is missing.
        spawn: runs a function in a task of its own.
        tenants: the other programs that can be asked for memory.
    """

    reclaim: Reclaim
    spawn: Callable[..., None]
    tenants: Tenants
    _clearing: int = 0
    _look_again_at: float = -math.inf

    async def wait(self, domain: Domain, task: ResidentTask, timeout_s: float) -> None:
        """Wait until there is memory enough for a start. It ends early where the start is not wanted any more.

        Raises:
            NotEnoughMemory: there was too little until the end.
            EngineStopFailed: it sleeps in other pools, and could not be ended there.
        """
        await self.reclaim.sleepers.leave(task.resident, task.shares)
        try:
            await self._wait(domain, task, timeout_s)
        finally:
            task.supervision.tell(None)

    async def _wait(self, domain: Domain, task: ResidentTask, timeout_s: float) -> None:
        pools = [pool for pool, _ in domain.shares(task)]
        needs = {pool.name: self._needs(domain, pool, task.resident) for pool in pools}
        deadline = trio.current_time() + timeout_s
        asked, is_told = set[str](), False
        while True:
            is_asked = any(self.tenants.asked_now(pool) is not None for pool in pools)
            if is_asked and not task.supervision.stop_asked.is_set():
                await trio.sleep(SHORT_INTERVAL_S)
                deadline += SHORT_INTERVAL_S
                continue
            free = {
                pool.name: await pool.memory.free_before_start(share) for pool, share in domain.shares(task)
            }
            missing = {
                name: missing_bytes
                for name, need in needs.items()
                if (missing_bytes := need.missing(free[name])) > 0
            }
            is_late = trio.current_time() >= deadline
            if not missing or task.supervision.stop_asked.is_set():
                self._begin(domain, task, free, {name: need.need_bytes or 0 for name, need in needs.items()})
                return
            if is_late and all(needs[name].is_enough(free[name]) for name in missing):
                least = {
                    name: needs[name].least_bytes if name in missing else needs[name].need_bytes
                    for name in needs
                }
                self._begin(domain, task, free, {name: size or 0 for name, size in least.items()})
                return
            if is_late:
                raise await self._too_little(domain, task, needs, free, timeout_s, next(iter(missing)))
            if is_told and self._is_at_rest(domain):
                for pool in pools:
                    if pool.name in missing:
                        self._ask_tenants(pool, task, missing[pool.name], asked)
            self._make_room(domain, task, missing)
            is_told = True
            await trio.sleep(SHORT_INTERVAL_S)

    @staticmethod
    def _begin(
        domain: Domain, task: ResidentTask, free: Mapping[str, float], needs: Mapping[str, int]
    ) -> None:
        for pool, share in domain.shares(task):
            pool.memory.starts(share, free[pool.name], needs[pool.name])

    @staticmethod
    async def _too_little(
        domain: Domain,
        task: ResidentTask,
        needs: Mapping[str, _Need],
        free: Mapping[str, float],
        waited_s: float,
        short: str,
    ) -> NotEnoughMemory:
        return NotEnoughMemory(
            task.resident.engine,
            needs[short].need_bytes or 0,
            int(free[short]),
            waited_s,
            in_words(await domain.pools[short].others.look()),
            pool=short if len(needs) > 1 else None,
        )

    def _needs(self, domain: Domain, pool: Pool, resident: ResidentId) -> _Need:
        state, profile = domain.ledger.state(resident), self.reclaim.profile(resident)
        kept_bytes = self.reclaim.sleepers.kept(resident).get(pool.name, 0)  # a wake takes only the rest
        least_bytes = max(0, profile.least_in(pool.name) - kept_bytes) if profile.is_guessed else None
        if state is None or profile.need_bytes is None:
            return _Need(None, least_bytes)
        need_bytes: float | None = state.needs[pool.name]
        if domain.ledger.budget.capacities[pool.name].is_exclusive:
            # There is no budget to keep, but others may be in the way.
            need_bytes = profile.need_in(pool.name) if self.tenants.of(pool) else None
        return _Need(None if need_bytes is None else max(0, int(need_bytes) - kept_bytes), least_bytes)

    def _make_room(self, domain: Domain, task: ResidentTask, missing: Mapping[str, int]) -> None:
        """Have something done about memory that is missing for a start: what costs least goes, asleep or idle."""
        if self._clearing or trio.current_time() < self._look_again_at:
            return  # what is cleared away now may be enough
        coming = _coming(domain)
        still = {pool: size - coming.get(pool, 0) for pool, size in missing.items()}
        asleep = [
            resident for resident in self.reclaim.sleepers_in(domain, missing) if resident != task.resident
        ]
        short: Mapping[str, float] = missing
        if asleep and max(still.values()) > 0:
            relief = self.reclaim.relief(domain, still, sparing=(task.resident,))
            # Where it is not known what would be enough, all that sleep go.
            asleep = asleep if relief is None else list(relief.sleepers)
            left = {} if relief is None else relief.short
            short = {pool: size + coming.get(pool, 0) for pool, size in left.items()}
            self.reclaim.sleepers.take(asleep)
            for sleeper in asleep:
                self.spawn(self._clear_away, sleeper)
        for pool, size_bytes in short.items():
            domain.tell(messages.Short(task.resident, math.ceil(size_bytes), pool))

    async def _clear_away(self, sleeper: ResidentId) -> None:
        self._clearing += 1
        try:
            await self.reclaim.sleepers.clear_away(sleeper)
        finally:
            self._clearing -= 1
            self._look_again_at = trio.current_time() + LATE_MEMORY_S

    def _ask_tenants(self, pool: Pool, task: ResidentTask, missing_bytes: int, asked: set[str]) -> None:
        """Ask a tenant for what is missing, and tell what is waited for.

        Args:
            asked: the names of those that were asked for this start already.
        """
        name = self.tenants.ask_next(pool, missing_bytes, asked)
        if name is not None:
            asked.add(name)
            task.supervision.tell(f"asking {name} to free {missing_bytes / 2**30:.1f} GiB of memory")
        else:
            task.supervision.tell(
                f"waiting for {missing_bytes / 2**30:.1f} GiB of memory that other programs hold"
            )

    def _is_at_rest(self, domain: Domain) -> bool:
        """Tell whether no resident or sleeper is left that is about to give memory back."""
        is_leaving = any(state.phase is Phase.STOPPING for state in domain.ledger.states)
        return not (self._clearing or domain.behind or domain.ledger.settling or is_leaving)


def _coming(domain: Domain) -> dict[str, float]:
    """Return the bytes of each pool that those who leave, or have left, are about to give back."""
    coming: dict[str, float] = {}
    leaving = [state.needs for state in domain.ledger.states if state.is_leaving]
    for needs in (*leaving, *domain.ledger.budget.settling.values()):
        for pool, size_bytes in needs.items():
            coming[pool] = coming.get(pool, 0) + size_bytes
    return coming


def _slack(need_bytes: int) -> int:
    """Return what may be missing all the same: figures are never exact, and hosts drift."""
    return max(64 * 2**20, need_bytes // 20)
