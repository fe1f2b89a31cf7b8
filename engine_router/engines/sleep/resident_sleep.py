"""The sleep of residents: how one falls asleep and is woken, whether its process is the router's or not."""

from __future__ import annotations

import enum
import functools
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field, frozen

from engine_router.config import SleepConfig
from engine_router.engines.base import Ended, LogRing, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.engines.remote.client import EngineClient, NotListening
from engine_router.engines.sleep.calls import SleepClient, SleepFailed
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.sleep.verification import WakeVerification
from engine_router.errors import EngineError

logger = logging.getLogger(__name__)

# A wake is always given so long, in seconds, even where the start was faster.
MIN_WAKE_S: Final = 2.0
# Seconds for the news of a process's death, which comes a moment after the connection that it breaks.
DEATH_NEWS_S: Final = 1.0

ASLEEP: Final = Ended(stopped=True, message="sleeps", asleep=True)
"""The end of a run whose resident was put to sleep."""

Wait = Callable[[], Awaitable[object]]


class WakeResult(enum.Enum):
    """The end of an attempt to wake a resident."""

    AWAKE = "awake"
    DIED = "died"
    """It had died while it slept, or did while it was woken."""
    FAILED = "failed"
    """It may be asleep, awake or in between, and is not to sleep again."""
    STOP_ASKED = "stop asked"
    """A stop was asked for meanwhile; it may be in between."""


@define(eq=False, repr=False)
class EngineSleep:
    """The sleep of one engine's residents, and what is known of how they slept before.

    Attributes:
        name: the engine's.
        config: None where it cannot sleep.
        registry: where its residents sleep; while it is not open, nobody does.
        log_of: returns a resident's log.
    """

    name: str
    config: SleepConfig | None
    registry: SleepRegistry
    log_of: Callable[[ResidentId], LogRing]
    _start_s: dict[ResidentId, float] = field(factory=dict)
    _sleepless: set[ResidentId] = field(factory=set)
    _verifications: dict[ResidentId, WakeVerification] = field(factory=dict)

    def of(self, resident: ResidentId, client: EngineClient) -> ResidentSleep | None:
        """Return the sleep of a resident whose server is called by a client; None where it cannot sleep."""
        if self.config is None or not self.registry.is_open:
            return None
        model = resident.model or ""
        verification = None
        if self.config.verify:
            verification = self._verifications.setdefault(resident, WakeVerification(model))
        return ResidentSleep(
            self, resident, client, SleepClient(client, self.config, {"model": model}), verification
        )

    async def is_asleep(self, client: EngineClient) -> bool:
        """Tell whether a server says that it sleeps."""
        sleep = self.of(ResidentId(self.name), client)
        return sleep is not None and await sleep.client.is_asleep() is True

    def started(self, resident: ResidentId, seconds: float) -> None:
        """Note how long a start took, in seconds: to wake it may take as long."""
        self._start_s[resident] = seconds
        if (verification := self._verifications.get(resident)) is not None:
            verification.restarted()

    def may_sleep(self, resident: ResidentId) -> bool:
        """Tell whether it may be put to sleep: not where that, or a wake, has ever failed."""
        return self.registry.is_open and resident not in self._sleepless

    def give_up(self, resident: ResidentId, fault: str) -> None:
        """Let a resident never sleep again: what failed once costs time, and would cost it every time."""
        self._sleepless.add(resident)
        self.log_of(resident).write(f"[engine-router] {fault}")
        logger.warning("engine '%s' %s; from now on it is stopped instead of put to sleep", self.name, fault)

    def wake_limit_s(self, resident: ResidentId, start_timeout_s: float) -> float:
        """Return how long a wake may take: as long as a start, for then a start is better. Seconds."""
        return max(MIN_WAKE_S, self._start_s.get(resident, start_timeout_s))


@frozen(eq=False, repr=False)
class ResidentSleep:
    """The sleep of one resident.

    What differs between a process of the router's and a server elsewhere is `death`: it waits for the death of the
    process. Without one, a server that no longer accepts connections counts as dead.

    Attributes:
        verification: None where its wakes are not to be verified.
    """

    engine: EngineSleep
    resident: ResidentId
    server: EngineClient
    client: SleepClient
    verification: WakeVerification | None

    async def fall_asleep(self, supervision: Supervision, *, death: Wait | None = None) -> bool:
        """Put the resident to sleep where that is possible and wanted. Returns whether it sleeps."""
        if supervision.for_good.is_set() or not self.engine.may_sleep(self.resident):
            return False

        async def fall_asleep() -> None:
            if self.verification is not None:
                await self.verification.before_sleep(self.server)
            await self.client.fall_asleep()

        happened, fault = await self._attempt(fall_asleep, death, supervision.for_good)
        if happened == "done" and fault is not None:
            self.engine.give_up(self.resident, fault.summary)
        return happened == "done" and fault is None

    async def wake(
        self,
        supervision: Supervision,
        until_ready: Wait,
        *,
        start_timeout_s: float,
        death: Wait | None = None,
    ) -> WakeResult:
        """Wake the resident, in no more time than its start took.

        Args:
            until_ready: waits until it can serve, once it is awake.
            start_timeout_s: limit in seconds where it was not started here.
        """
        limit_s = self.engine.wake_limit_s(self.resident, start_timeout_s)

        async def wake() -> None:
            await self.client.wake()
            await until_ready()

        happened, fault = await self._attempt(wake, death, supervision.stop_asked, limit_s)
        if happened == "deadline" and fault is None:
            fault = SleepFailed(
                self.engine.name, f"did not wake up within {limit_s:.1f} s, in which it could be started"
            )
        if happened == "done" and fault is None and self.verification is not None:
            verify = functools.partial(self.verification.after_wake, self.server)
            happened, fault = await self._attempt(verify, death, supervision.stop_asked)
        if happened == "died":
            return WakeResult.DIED
        if happened == "stop_asked":
            return WakeResult.STOP_ASKED
        if fault is None:
            return WakeResult.AWAKE
        if death is None and isinstance(fault.__cause__, NotListening):
            self.engine.log_of(self.resident).write(f"{fault.summary}; it has died while it slept")
            return WakeResult.DIED
        self.engine.give_up(self.resident, fault.summary)
        return WakeResult.FAILED

    async def _attempt(
        self, work: Wait, death: Wait | None, stop: trio.Event, limit_s: float = math.inf
    ) -> tuple[str, EngineError | None]:
        """Do some work until something else happens; return what happened first, and the error of the work."""
        faults: list[EngineError] = []

        async def attempt() -> None:
            try:
                await work()
            except EngineError as error:
                faults.append(error)
                if death is not None:
                    await trio.sleep(DEATH_NEWS_S)

        happened = await first_of(
            died=death or trio.sleep_forever,
            stop_asked=stop.wait,
            done=attempt,
            deadline=lambda: trio.sleep(limit_s),
        )
        return happened, next(iter(faults), None)
