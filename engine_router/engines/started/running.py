"""A running server with all that belongs to it, as the engine that started it knows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from attrs import frozen

from engine_router.config import StartedConfig
from engine_router.engines.base import Ended, LogRing

T = TypeVar("T")

# A start that nobody wants any more has nothing to save: it gets less time than a serving engine.
ABORT_GRACE_S = 2.0
# Seconds that output may still be on its way after the process that wrote it has gone.
OUTPUT_GRACE_S = 0.05
# How much of `stop_timeout_s` may pass at most before SIGKILL, so that it has time to work.
GRACE_SHARE = 0.75


class RunningServer(Protocol):
    """A running server: what it writes is read, and it ends as a whole."""

    @property
    def config(self) -> StartedConfig:
        """The configuration that it was started with."""
        ...

    @property
    def log(self) -> LogRing:
        """The log of what it writes."""
        ...

    @property
    def log_start(self) -> int:
        """The number of lines that the log had before its start."""
        ...

    @property
    def base_url(self) -> str:
        """The address where it listens."""
        ...

    @property
    def pid(self) -> int | None:
        """Id of its first process, where that is known."""
        ...

    @property
    def is_ours(self) -> bool:
        """True where the router started it."""
        ...

    async def begin(self) -> None:
        """Do what is left to do until it runs; it may take as long as an image takes to be pulled.

        Raises:
            EngineStartFailed: it cannot be started; `clean_up` takes away what there is of it.
        """
        ...

    def wait(self) -> Awaitable[object]:
        """Wait for its end. Cancellation leaves it as it is."""
        ...

    def ended_how(self) -> str:
        """Say in words how it ended."""
        ...

    async def while_read(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do some work with it, while all that it writes is read; see `beside`."""
        ...

    async def serves(self) -> None:
        """Note that it is ready."""
        ...

    async def end(self, grace_s: float) -> Ended:
        """Ask it to end, and kill what is left after `grace_s` seconds.

        Raises:
            EngineStopFailed: some of it is left after `stop_timeout_s`.
        """
        ...

    async def clean_up(self) -> None:
        """Kill what is left of it after it has ended, or was to be killed.

        Raises:
            EngineStopFailed: some of it is left after `stop_timeout_s`.
        """
        ...

    async def kill_until_gone(self) -> None:
        """Kill what is left of it until nothing is, however long that takes."""
        ...

    def abandon(self) -> None:
        """Kill what is left of what the router started, without waiting, and close what was opened for it."""
        ...


@frozen(eq=False, repr=False)
class SleepingServer:
    """A sleeping server; see `SleepingResident`. One that the router did not start is left as it is when it goes."""

    running: RunningServer

    @property
    def is_ours(self) -> bool:
        """True where the router started it."""
        return self.running.is_ours

    async def watch(self) -> str:
        """Read what it writes until it dies."""
        return await self.running.while_read(self._die)

    async def end(self) -> None:
        """Stop it as if it were awake."""
        try:
            await self.running.while_read(lambda: self.running.end(self.running.config.grace_s))
        finally:
            self.running.abandon()

    def kill(self) -> None:
        """Kill it, if the router started it."""
        self.running.abandon()

    async def _die(self) -> str:
        await self.running.wait()
        await self.running.kill_until_gone()
        return self.running.ended_how()
