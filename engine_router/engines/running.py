"""A process at work, with all that it started: what it writes is read, and it ends as a whole."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable
from io import FileIO
from typing import TypeVar

import trio
from attrs import define, field, frozen

from engine_router.config import ProcessConfig
from engine_router.config.values import expanded
from engine_router.engines.base import Ended, LogRing
from engine_router.engines.descriptors import is_lack
from engine_router.engines.family import Family, reap_later
from engine_router.engines.spawning import out_of_resources
from engine_router.errors import EngineError, EngineStartFailed, EngineStopFailed

T = TypeVar("T")

# Seconds that output may still be on its way after the process that wrote it has gone.
OUTPUT_GRACE_S = 0.05
# How much of `stop_timeout_s` may pass at most before SIGKILL, so that it has time to work.
GRACE_SHARE = 0.75


@define(eq=False, kw_only=True)
class Running:
    """A family at work.

    Attributes:
        name: the engine's.
        log_start: how many lines the log had before its start.
        wait: waits for the end of its head.
        process: its head, where the router started it.
        file: what its output is appended to.
    """

    name: str
    config: ProcessConfig
    log: LogRing
    log_start: int
    base_url: str
    family: Family
    wait: Callable[[], Awaitable[object]]
    process: trio.Process | None = None
    file: FileIO | None = None
    _output_ended: trio.Event = field(factory=trio.Event)

    @property
    def is_ours(self) -> bool:
        """Whether the router started it."""
        return self.process is not None

    def ended_how(self) -> str:
        """Say in words how its head ended."""
        return "ended" if self.process is None else _exit_words(self.process.returncode)

    async def attended(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do some work with it, while all that it writes is read. The work must not raise, but for cancellation."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_output)
            result = await work()
            nursery.cancel_scope.cancel()
        return result

    def abandon(self) -> None:
        """Kill what is left of what the router started, without waiting, and close what was opened for it."""
        if self.process is None:
            return
        self.family.abandon()  # a family that is known to be dead is buried, and this does nothing
        reap_later(self.process)
        self.log.flush()
        if self.file is not None:
            self.file.close()

    # Its end.

    async def end(self, grace_s: float) -> Ended | EngineStopFailed:
        """Ask it to end, and kill what is left after `grace_s` seconds."""
        family = self.family
        grace_s = min(grace_s, self.config.stop_timeout_s * GRACE_SHARE)
        with trio.move_on_after(self.config.stop_timeout_s):
            await family.signal(self.config.stop_signal)
            with trio.move_on_after(grace_s) as patience:
                await self.wait()
                await _until_dead(family)
            if patience.cancelled_caught and await family.is_alive():
                self.log.write(
                    f"[engine-router] still there {grace_s:g} s after {self.config.stop_signal}: killed"
                )
            await self.put_down()
            return Ended(stopped=True, message=self.ended_how())
        return self._still_there()

    async def bury(self) -> EngineStopFailed | None:
        """See that nobody is left of a family whose head has gone or was killed, however long that may take."""
        with trio.move_on_after(self.config.stop_timeout_s):
            await self.put_down()
            return None
        return self._still_there()

    async def put_down(self) -> None:
        """Kill what is left of a family until nothing is, and read its last words."""
        await _until_dead(self.family, kill=True)
        await self.wait()
        self.family.bury()
        with trio.move_on_after(OUTPUT_GRACE_S):
            await self._output_ended.wait()
        self.log.flush()

    def _still_there(self) -> EngineStopFailed:
        return EngineStopFailed(
            self.name,
            f"is still there {self.config.stop_timeout_s:g} s after its stop (pid {self.family.pid}), even after SIGKILL",
        )

    # Its output.

    async def _read_output(self) -> None:
        """Read what the family writes until nobody can write any more."""
        if self.process is not None and self.process.stdout is not None:
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in self.process.stdout:
                    await self._keep(bytes(data))
        self._output_ended.set()

    async def _keep(self, data: bytes) -> None:
        self.log.feed(data)
        if self.file is not None:
            try:
                await trio.to_thread.run_sync(self.file.write, data)
            except OSError as error:
                self.log.write(f"[engine-router] the log_file cannot be written any more: {error}")
                self.file.close()
                self.file = None


@frozen
class SleepingProcess:
    """A family that sleeps; see `Sleeper`. One that the router did not start is left as it is when it goes."""

    running: Running

    @property
    def is_ours(self) -> bool:
        """Whether the router started it."""
        return self.running.is_ours

    async def watch(self) -> str:
        """Read what it writes until it dies."""
        return await self.running.attended(self._die)

    async def end(self) -> None:
        """Stop it as if it were awake."""
        try:
            outcome = await self.running.attended(lambda: self.running.end(self.running.config.grace_s))
        finally:
            self.running.abandon()
        if isinstance(outcome, EngineError):
            raise outcome

    def kill(self) -> None:
        """Kill it, if the router started it."""
        self.running.abandon()

    async def _die(self) -> str:
        await self.running.wait()
        await self.running.put_down()
        return self.running.ended_how()


async def open_log_file(name: str, config: ProcessConfig) -> FileIO | None:
    """Open the log file, if one is configured.

    Raises:
        EngineStartFailed: it cannot be written.
    """
    if config.log_file is None:
        return None
    path = expanded(config.log_file)
    try:
        # Unbuffered: what a full disk refused once must not be refused again by the closing.
        opened = await trio.open_file(path, "ab", buffering=0)
    except OSError as error:
        if is_lack(error):
            raise out_of_resources(name, error) from None
        message = f"cannot be started: its log_file {path} cannot be written: {error.strerror or error}"
        raise EngineStartFailed(name, message) from None
    return opened.wrapped


async def _until_dead(family: Family, *, kill: bool = False) -> None:
    """Wait until nobody of a family lives. With `kill`, kill whoever is found, and who was born meanwhile."""
    interval = 0.002
    while await family.is_alive():
        if kill:
            await family.kill()
        await trio.sleep(interval)
        interval = min(interval * 2, 0.05)


def _exit_words(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
