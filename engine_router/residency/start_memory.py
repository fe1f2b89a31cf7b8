"""The look at free memory before a start: it waits until there is enough, and has something done about what is missing."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define

from engine_router.engines.base import ResidentId
from engine_router.errors import NotEnoughMemory
from engine_router.residency import messages
from engine_router.residency.pool import Pool
from engine_router.residency.resident_task import ResidentTask
from engine_router.residency.rules import Profile
from engine_router.residency.sleepers import Sleepers

# Seconds between two looks whether there is enough memory for a start.
SHORT_INTERVAL_S = 0.05


@define(eq=False, kw_only=True, repr=False)
class StartMemory:
    """The memory that starts wait for.

    Attributes:
        profile: returns what is known of a resident.
        clear_away: has a sleeper stopped, in a task of its own.
    """

    profile: Callable[[ResidentId], Profile]
    sleepers: Sleepers
    clear_away: Callable[[ResidentId], None]

    async def wait(self, pool: Pool, task: ResidentTask, timeout_s: float) -> None:
        """Wait until there is memory enough for a start. It ends early where the start is not wanted any more.

        Raises:
            NotEnoughMemory: there was too little until the end.
        """
        need_bytes, least_bytes = self._needs(pool, task.resident)
        deadline = trio.current_time() + timeout_s
        while True:
            free = await pool.memory.free_before_start(task)
            missing = 0 if need_bytes is None else int(max(0.0, need_bytes - _slack(need_bytes) - free))
            if missing <= 0 or task.supervision.stop_asked.is_set():
                pool.memory.starts(task, free, need_bytes or 0)
                return
            if trio.current_time() >= deadline and least_bytes is not None and free >= least_bytes:
                pool.memory.starts(task, free, least_bytes)
                return
            if trio.current_time() >= deadline:
                raise NotEnoughMemory(task.resident.engine, need_bytes or 0, int(free), timeout_s)
            self._make_room(pool, task, missing)
            await trio.sleep(SHORT_INTERVAL_S)

    def _needs(self, pool: Pool, resident: ResidentId) -> tuple[int | None, int | None]:
        """Return what has to be free for a start, in bytes, and what it needs for certain where that is a guess.

        None where that is not known, or nobody counts.
        """
        state, profile = pool.ledger.state(resident), self.profile(resident)
        least_bytes = profile.least_bytes if profile.is_guessed else None
        if state is None or pool.capacity.is_exclusive or profile.need_bytes is None:
            return None, least_bytes
        return int(state.need_bytes), least_bytes

    def _make_room(self, pool: Pool, task: ResidentTask, missing_bytes: int) -> None:
        """Have something done about memory that is missing for a start."""
        sleepers = self.sleepers.take_others(task.resident)
        if not sleepers:
            pool.tell(messages.Short(task.resident, missing_bytes))
        for sleeper in sleepers:  # they hold something still, and it is missing now
            self.clear_away(sleeper)


def _slack(need_bytes: int) -> int:
    """Return what may be missing all the same: figures are never exact, and hosts drift."""
    return max(64 * 2**20, need_bytes // 20)
