"""The sleep of process engines: their families are put to sleep, and woken, by calls to the server that they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import trio

from engine_router.config import ProcessConfig
from engine_router.engines.base import Ended, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.engines.process.running_process import ABORT_GRACE_S, RunningProcess
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.sleep.plan import Sleep, SleepHistory, noting
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.errors import EngineError

# Seconds for the news of a death, which comes a moment after the connection that it breaks.
DEATH_NEWS_S = 1.0


class ProcessSleep:
    """How the residents of one process engine sleep.

    Args:
        dormitory: while it is not open, nobody may sleep.
    """

    def __init__(
        self,
        config: ProcessConfig,
        client: httpx.AsyncClient,
        sleep_registry: SleepRegistry,
        sleep_history: SleepHistory,
    ) -> None:
        self._config = config
        self._client = client
        self._dormitory = sleep_registry
        self._habits = sleep_history

    def started(self, resident: ResidentId, seconds: float) -> None:
        """Note how long a start took, in seconds: to wake it may take as long."""
        self._habits.start_s[resident] = seconds

    async def is_asleep(self, resident: ResidentId) -> bool:
        """Tell whether the server at the configured address says that it sleeps."""
        sleep = None if self._config.base_url is None else self._of(resident, self._config.base_url)
        return sleep is not None and await sleep.is_asleep() is True

    async def fall_asleep(
        self, resident: ResidentId, supervision: Supervision, running: RunningProcess
    ) -> bool:
        """Put a family to sleep where that is possible and wanted. Returns whether it sleeps."""
        sleep = self._of(resident, running.base_url)
        if sleep is None or supervision.for_good.is_set() or not self._habits.may_sleep(resident):
            return False
        faults: list[str] = []

        async def fall_asleep() -> None:
            await noting(sleep.fall_asleep, faults)
            if faults:
                await trio.sleep(DEATH_NEWS_S)

        happened = await first_of(exited=running.wait, for_good=supervision.for_good.wait, done=fall_asleep)
        if faults and happened == "done":
            self._habits.give_up(resident, faults[0])
        if happened != "done" or faults:
            return False
        running.log.write("[engine-router] sleeps")
        return True

    async def woken_life(
        self,
        resident: ResidentId,
        supervision: Supervision,
        running: RunningProcess,
        *,
        until_ready: Callable[[], Awaitable[object]],
        serve: Callable[[], Awaitable[Ended | EngineError]],
    ) -> Ended | EngineError | None:
        """Wake a family, and let it serve to its end. Returns None where it could not be woken, and is gone.

        To wake it may take as long as to start it took.
        """
        config = self._config
        sleep = self._of(resident, running.base_url)
        if sleep is None or supervision.stop_asked.is_set():
            return await running.end(config.grace_s)
        if running.config != config:  # it was started before a change of the configuration
            ended = await running.end(config.grace_s)
            return None if isinstance(ended, Ended) else ended
        limit_s = self._habits.wake_limit_s(resident, config.start_timeout_s)
        faults: list[str] = []

        async def wake() -> None:
            await noting(sleep.wake, faults)
            await (trio.sleep(DEATH_NEWS_S) if faults else until_ready())

        happened = await first_of(
            exited=running.wait,
            stop_asked=supervision.stop_asked.wait,
            done=wake,
            deadline=lambda: trio.sleep(limit_s),
        )
        if happened == "done" and not faults:
            running.log.write("[engine-router] awake")
            return await serve()
        if happened == "exited":
            running.log.write(f"[engine-router] {running.ended_how()} while it slept")
            return await running.mark_dead()
        if happened == "deadline":
            faults.append(f"did not wake up within {limit_s:.1f} s, in which it could be started")
        if faults and happened != "stop_asked":
            self._habits.give_up(resident, faults[0])
        ended = await running.end(min(ABORT_GRACE_S, config.grace_s))
        is_wanted = not supervision.stop_asked.is_set()
        return None if is_wanted and isinstance(ended, Ended) else ended

    def _of(self, resident: ResidentId, base_url: str) -> Sleep | None:
        """Return how the server of a resident sleeps; None where it cannot."""
        if self._config.sleep is None or not self._dormitory.is_open:
            return None
        server = EngineClient(resident.engine, self._config, base_url, self._client)
        return Sleep(server, self._config.sleep, {"model": resident.model or ""})
