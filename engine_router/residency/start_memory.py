"""The look at free memory before a start: it waits until there is enough, and has something done about what is missing."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define

from engine_router.engines.base import ResidentId
from engine_router.errors import NotEnoughMemory
from engine_router.residency import messages
from engine_router.residency.other_programs import in_words
from engine_router.residency.pool import Pool
from engine_router.residency.resident_state import Phase
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.rules import Profile
from engine_router.residency.sleepers import Sleepers
from engine_router.residency.tenants import Tenants

# Seconds between two looks whether there is enough memory for a start.
SHORT_INTERVAL_S = 0.05


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

    async def wait(self, pool: Pool, task: ResidentTask, timeout_s: float) -> None:
        """Wait until there is memory enough for a start. It ends early where the start is not wanted any more.

        Raises:
            NotEnoughMemory: there was too little until the end.
        """
        try:
            await self._wait(pool, task, timeout_s)
        finally:
            task.supervision.tell(None)

    async def _wait(self, pool: Pool, task: ResidentTask, timeout_s: float) -> None:
        need_bytes, least_bytes = self._needs(pool, task.resident)
        deadline = trio.current_time() + timeout_s
        asked, is_told = set[str](), False
        while True:
            if self.tenants.asked_now(pool) is not None and not task.supervision.stop_asked.is_set():
                await trio.sleep(SHORT_INTERVAL_S)
                deadline += SHORT_INTERVAL_S
                continue
            free = await pool.memory.free_before_start(task)
            missing = 0 if need_bytes is None else int(max(0.0, need_bytes - _slack(need_bytes) - free))
            if missing <= 0 or task.supervision.stop_asked.is_set():
                pool.memory.starts(task, free, need_bytes or 0)
                return
            if trio.current_time() >= deadline and least_bytes is not None and free >= least_bytes:
                pool.memory.starts(task, free, least_bytes)
                return
            if trio.current_time() >= deadline:
                raise NotEnoughMemory(
                    task.resident.engine,
                    need_bytes or 0,
                    int(free),
                    timeout_s,
                    in_words(await pool.others.look()),
                )
            if is_told and self._is_at_rest(pool):
                self._ask_tenants(pool, task, missing, asked)
            self._make_room(pool, task, missing)
            is_told = True
            await trio.sleep(SHORT_INTERVAL_S)

    def _needs(self, pool: Pool, resident: ResidentId) -> tuple[int | None, int | None]:
        """Return what has to be free for a start, in bytes, and what it needs for certain where that is a guess.

        None where that is not known, or nobody counts.
        """
        state, profile = pool.ledger.state(resident), self.profile(resident)
        least_bytes = profile.least_bytes if profile.is_guessed else None
        if state is None or profile.need_bytes is None:
            return None, least_bytes
        if pool.capacity.is_exclusive:  # there is no budget to keep, but others may be in the way
            return profile.need_bytes if self.tenants.of(pool) else None, least_bytes
        return int(state.need_bytes), least_bytes

    def _make_room(self, pool: Pool, task: ResidentTask, missing_bytes: int) -> None:
        """Have something done about memory that is missing for a start."""
        sleepers = self.sleepers.take_others(task.resident)
        if not sleepers:
            pool.tell(messages.Short(task.resident, missing_bytes))
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

    def _is_at_rest(self, pool: Pool) -> bool:
        """Tell whether no resident or sleeper is left that is about to give memory back."""
        is_leaving = any(state.phase is Phase.STOPPING for state in pool.ledger.states)
        return not (self._clearing or pool.behind or pool.ledger.settling or is_leaving)


def _slack(need_bytes: int) -> int:
    """Return what may be missing all the same: figures are never exact, and hosts drift."""
    return max(64 * 2**20, need_bytes // 20)
