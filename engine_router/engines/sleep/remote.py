"""Sleep for residents that are controlled from outside: how `lead` puts them to sleep and wakes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio
from attrs import define, frozen

from engine_router.config import SleepConfig
from engine_router.engines.base import Ended, Endpoint, LogRing, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.engines.remote.client import EngineClient, NotListening
from engine_router.engines.remote.lifecycle import RemoteLifecycle, Stop, unless
from engine_router.engines.sleep.plan import Sleep, SleepHistory, noting
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.errors import EngineError


@define(eq=False, kw_only=True)
class RemoteSleep:
    """How one resident sleeps; implements `engines.common.life.Rest`."""

    resident: ResidentId
    sleep: Sleep
    sleep_history: SleepHistory
    sleep_registry: SleepRegistry

    @property
    def is_in_bed(self) -> bool:
        """Whether this router has put it to sleep, and it was not woken since."""
        return self.resident in self.sleep_registry.residents

    def started(self, seconds: float) -> None:
        """Note how long a start took, in seconds: to wake it may take as long."""
        self.sleep_history.start_s[self.resident] = seconds

    async def wake(
        self, life: RemoteLifecycle, supervision: Supervision
    ) -> Endpoint | Literal[Stop.ASKED] | None:
        """Wake it if it sleeps. Returns None where it does not, or could not be woken and was ended.

        Whoever has put it to sleep: a server that says that it sleeps is woken.

        Raises:
            EngineStopFailed: it could neither be woken nor ended.
        """
        sleeper = await self.sleep_registry.take(self.resident, _SleepingResident)
        if sleeper is None and await self.sleep.is_asleep() is not True:
            return None
        limit_s = self.sleep_history.wake_limit_s(self.resident, life.config.start_timeout_s)
        fault = f"did not wake up within {limit_s:.1f} s, in which it could be started"
        try:
            with trio.move_on_after(limit_s):
                woken = await unless(supervision.stop_asked, lambda: self._wake(life))
                if not isinstance(woken, Ended):
                    return woken
                life.log.write(f"{woken.message}, while it slept")
                return None
        except EngineError as error:
            fault = error.summary
            if isinstance(error.__cause__, NotListening):
                life.log.write(f"{fault}; it has died while it slept")
                fault = ""
        if fault:
            self.sleep_history.give_up(self.resident, fault)
        await life.end(aborted=False)
        return None

    async def fall_asleep(self, life: RemoteLifecycle, supervision: Supervision, *, adopted: bool) -> bool:
        """Put it to sleep where that is possible and wanted. Returns whether it sleeps."""
        is_possible = self.sleep_registry.is_open and self.sleep_history.may_sleep(self.resident)
        if supervision.for_good.is_set() or not is_possible:
            return False
        faults: list[str] = []
        happened = await first_of(
            for_good=supervision.for_good.wait, done=lambda: noting(self.sleep.fall_asleep, faults)
        )
        if faults:
            self.sleep_history.give_up(self.resident, faults[0])
        if happened != "done" or faults:
            return False
        self.sleep_registry.put(self.resident, _SleepingResident(life, not adopted))
        return True

    async def _wake(self, life: RemoteLifecycle) -> Endpoint | Ended:
        await self.sleep.wake()
        life.log.write("awake")
        return await life.adopt()


class RemoteSleeps:
    """How the residents of one server sleep; the whole server does, whichever of them it is.

    Args:
        config: None where it cannot sleep.
        dormitory: without one nobody sleeps either.
    """

    def __init__(
        self,
        server: EngineClient,
        config: SleepConfig | None,
        log_of: Callable[[ResidentId], LogRing],
        sleep_registry: SleepRegistry | None,
    ) -> None:
        self._server = server
        self._config = config
        self._dormitory = sleep_registry
        self._habits = SleepHistory(server.name, log_of)

    def of(self, resident: ResidentId) -> RemoteSleep | None:
        """Return how a resident sleeps; None where it cannot."""
        if self._config is None or self._dormitory is None:
            return None
        sleep = Sleep(self._server, self._config, {"model": resident.model or ""})
        return RemoteSleep(
            resident=resident, sleep=sleep, sleep_history=self._habits, sleep_registry=self._dormitory
        )

    async def is_asleep(self) -> bool:
        """Tell whether the server says that it sleeps."""
        if self._config is None or self._dormitory is None:
            return False
        return await Sleep(self._server, self._config, {}).is_asleep() is True


@frozen
class _SleepingResident:
    """A resident that sleeps, of a server that is not the router's; see `Sleeper`."""

    life: RemoteLifecycle
    is_ours: bool

    async def watch(self) -> str:
        """Wait: whether it is still there shows when it is woken."""
        await trio.sleep_forever()

    async def end(self) -> None:
        """End it as if it were awake."""
        await self.life.end(aborted=False)

    def kill(self) -> None:
        """Leave it: it is not the router's process."""
