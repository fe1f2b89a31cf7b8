"""The look at free memory before a start: it waits until there is enough, and has something done about what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio
from attrs import define, frozen

from engine_router.engines.base import ResidentId
from engine_router.errors import NotEnoughMemory
from engine_router.residency import messages
from engine_router.residency.domain import Domain
from engine_router.residency.other_programs import in_words
from engine_router.residency.pool import Pool
from engine_router.residency.resident_state import Phase
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.rules import Profile
from engine_router.residency.sleepers import Sleepers
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
        profile: returns what is known of a resident.
        spawn: runs a function in a task of its own.
        tenants: the other programs that can be asked for memory.
    """

    profile: Callable[[ResidentId], Profile]
    sleepers: Sleepers
    spawn: Callable[..., None]
    tenants: Tenants
    _clearing: int = 0

    async def wait(self, domain: Domain, task: ResidentTask, timeout_s: float) -> None:
        """Wait until there is memory enough for a start. It ends early where the start is not wanted any more.

        Raises:
            NotEnoughMemory: there was too little until the end.
        """
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
        state, profile = domain.ledger.state(resident), self.profile(resident)
        kept_bytes = self.sleepers.kept(resident).get(pool.name, 0)  # a wake takes only the rest
        least_bytes = max(0, profile.least_in(pool.name) - kept_bytes) if profile.is_guessed else None
        if state is None or profile.need_bytes is None:
            return _Need(None, least_bytes)
        need_bytes: float | None = state.needs[pool.name]
        if domain.ledger.budget.capacities[pool.name].is_exclusive:
            # There is no budget to keep, but others may be in the way.
            need_bytes = profile.need_in(pool.name) if self.tenants.of(pool) else None
        return _Need(None if need_bytes is None else max(0, int(need_bytes) - kept_bytes), least_bytes)

    def _make_room(self, domain: Domain, task: ResidentTask, missing: Mapping[str, int]) -> None:
        """Have something done about memory that is missing for a start."""
        sleepers = self.sleepers.take_others(task.resident, missing)
        if not sleepers:
            for pool, missing_bytes in missing.items():
                domain.tell(messages.Short(task.resident, missing_bytes, pool))
        for sleeper in sleepers:  # they hold something still, and it is missing now
            self.spawn(self._clear_away, sleeper)

    async def _clear_away(self, sleeper: ResidentId) -> None:
        self._clearing += 1
        try:
            await self.sleepers.clear_away(sleeper)
        finally:
            self._clearing -= 1

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


def _slack(need_bytes: int) -> int:
    """Return what may be missing all the same: figures are never exact, and hosts drift."""
    return max(64 * 2**20, need_bytes // 20)
