"""One container of the router's, from its creation to its removal."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from attrs import define, field

from engine_router.config import ContainerConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import Ended, LogRing
from engine_router.engines.beside import beside
from engine_router.engines.container.daemon import ContainerState, Daemon, DaemonError
from engine_router.engines.container.removal import remove
from engine_router.engines.ports import ClaimedPort
from engine_router.engines.started.output import EngineOutput
from engine_router.engines.started.running import GRACE_SHARE
from engine_router.errors import EngineStopFailed

T = TypeVar("T")

# Seconds that a container's last words may take after its end.
_LAST_WORDS_S: Final = 1.0
# Seconds for which a container may still be made, though it is not there: its creation was given up on the way.
_UNSURE_S: Final = 2.0
# Seconds for the end of a container that was killed; then it is removed by force.
_KILL_S: Final = 5.0
_SHELL_SIGNALS: Final = 128
_SIGKILL: Final = 9  # in the container, whatever this platform is


@define(eq=False, kw_only=True, repr=False)
class RunningContainer:
    """One container.

    Attributes:
        engine: the engine's name.
        name: its own, which no other has had.
        prepare: makes and starts it; called by `begin` only, which see.
        stop_signal: what asks it to end, as far as it is known.
        guard: has it removed when the router dies; what it returns is called once it is gone.
        pid: of its first process, where that is one of this machine: the daemon may be in another, or this router in a
            container itself.
    """

    engine: str
    config: ContainerConfig
    name: str
    log: LogRing
    log_start: int
    base_url: str
    daemon: Daemon
    output: EngineOutput
    prepare: Callable[[RunningContainer], Awaitable[None]]
    guard: Callable[[], Callable[[], None]]
    port: ClaimedPort | None = None
    stop_signal: str = "SIGTERM"
    pid: int | None = None
    _unguard: Callable[[], None] | None = None
    _is_made: bool = False
    _is_gone: bool = False
    _was_killed: bool = False
    _ended: ContainerState | None = None
    _still: str | None = None  # why it is not gone, in words
    _begun: trio.Event = field(factory=trio.Event)
    _output_ended: trio.Event = field(factory=trio.Event)

    is_ours: Final = True

    # Its beginning.

    async def begin(self) -> None:
        """Make and start it.

        Raises:
            EngineStartFailed: it cannot be; `clean_up` takes away what there is of it.
        """
        await self.prepare(self)
        self._begun.set()

    async def create(self, body: Mapping[str, Any]) -> None:
        """Make it and start it.

        Raises:
            DaemonError: the daemon refused, or did not answer.
        """
        self._unguard = self.guard()
        try:
            container = await self.daemon.create(self.name, body)
        except DaemonError as error:
            if error.status is not None and error.status < 500:  # it was certainly not made
                self._unguard()
                self._unguard = None
            raise
        self._is_made = True
        await self.daemon.start(self.name)
        pid = (await self.daemon.state(self.name)).pid
        if pid is not None and await trio.to_thread.run_sync(_runs_in, pid, container):
            self.pid = pid

    async def serves(self) -> None:
        """Note that it is ready."""

    # Its life.

    async def wait(self) -> None:
        """Wait until it does not run any more. While the daemon does not answer, nothing is known, and this waits."""
        await self._begun.wait()
        backoff = Backoff()
        while self._ended is None:
            try:
                await self.daemon.wait(self.name)
                state = await self.daemon.state(self.name)
                if not state.is_running:
                    self._ended = state
                    return
            except DaemonError as error:
                if error.is_missing:
                    self._ended = ContainerState(is_running=False, error="was removed by somebody else")
                    return
            await backoff.pause()

    def ended_how(self) -> str:
        """Say in words how it ended."""
        state = self._ended
        if state is None:
            return "ended"
        if state.is_out_of_memory:
            return "was killed by the kernel for want of memory (OOMKilled)"
        if state.exit_code is None:
            return state.error or "ended"
        code = state.exit_code
        by = f" (signal {code - _SHELL_SIGNALS})" if code > _SHELL_SIGNALS else ""
        if code == _SHELL_SIGNALS + _SIGKILL and not self._was_killed:
            by = " (SIGKILL of somebody else's: was there too little memory?)"
        return f"exited with code {code}{by}{': ' + state.error if state.error else ''}"

    async def while_read(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do some work with it, while all that it writes is read.

        Raises:
            EngineError: as the work raised it.
        """
        return await beside(self._read_output, work)

    async def _read_output(self) -> None:
        await self._begun.wait()
        since, backoff = 0.0, Backoff()
        while True:
            asked_at = time.time()
            try:
                await self.daemon.output(self.name, since, self.output.take)
            except DaemonError as error:
                if error.status is not None:
                    self.log.write(f"[engine-router] its output cannot be read: {error}")
                    break
            else:
                if not await self._runs():
                    break
            since = asked_at if since == 0.0 and self.log.count == self.log_start else time.time()
            await backoff.pause()
        self.output.end()
        self._output_ended.set()

    async def _runs(self) -> bool:
        """Tell whether it runs, as far as is known: its output may end because the daemon does."""
        try:
            return (await self.daemon.state(self.name)).is_running
        except DaemonError as error:
            return error.status is None

    # Its end.

    async def end(self, grace_s: float) -> Ended:
        """Ask it to end, and kill it after `grace_s` seconds.

        Raises:
            EngineStopFailed: it is still there after `stop_timeout_s`.
        """
        if self._unguard is None:
            return Ended(stopped=True, message="was not started")
        grace_s = min(grace_s, self.config.stop_timeout_s * GRACE_SHARE)
        with trio.move_on_after(self.config.stop_timeout_s):
            if self._begun.is_set():
                with trio.move_on_after(grace_s) as grace:
                    await self._signal(self.stop_signal)
                    await self.wait()
                if grace.cancelled_caught:
                    self.log.write(
                        f"[engine-router] still there {grace_s:g} s after {self.stop_signal}: killed"
                    )
            await self.kill_until_gone()
            return Ended(stopped=True, message=self.ended_how())
        raise self._still_there()

    async def clean_up(self) -> None:
        """Remove it, in whatever state it is.

        Raises:
            EngineStopFailed: it is still there after `stop_timeout_s`.
        """
        with trio.move_on_after(self.config.stop_timeout_s):
            await self.kill_until_gone()
            return
        raise self._still_there()

    async def kill_until_gone(self) -> None:
        """Kill it, read its last words, and remove it."""
        if self._is_gone or self._unguard is None:
            return
        if self._begun.is_set():
            if self._ended is None:
                with trio.move_on_after(_KILL_S):
                    await self._signal("SIGKILL")
                    await self.wait()
            with trio.move_on_after(_LAST_WORDS_S):
                await self._output_ended.wait()
        self.output.end()
        await self._remove()
        self._is_gone = True
        self._unguard()

    async def _signal(self, name: str) -> None:
        self._was_killed = self._was_killed or name == "SIGKILL"
        self._still = f"the daemon at {self.daemon.socket} does not answer"
        try:
            await self.daemon.signal(self.name, name)
        except DaemonError as error:
            self.log.write(f"[engine-router] {name}: {error}")

    async def _remove(self) -> None:
        """Remove it until it is not there."""
        began, backoff = trio.current_time(), Backoff()
        while True:
            is_unsure = not self._is_made and trio.current_time() - began < _UNSURE_S
            self._still = f"the daemon at {self.daemon.socket} does not answer"
            try:
                await self.daemon.remove(self.name)
            except DaemonError as error:
                if error.is_missing and not is_unsure:
                    return
                self._still = str(error)
            else:
                # Podman may remove what it still makes, and have it all the same in the end.
                if not is_unsure:
                    return
            await backoff.pause()

    def abandon(self) -> None:
        """Remove what is left of it, without waiting for it; the program ends after that."""
        if self._unguard is not None and not self._is_gone:
            threading.Thread(
                target=self._remove_detached, args=(self._unguard,), name="remove container"
            ).start()
        self.log.flush()
        self.output.close()
        if self.port is not None:
            self.port.release()

    def _remove_detached(self, unguard: Callable[[], None]) -> None:
        if remove(self.daemon.socket, self.name, 0.0 if self._is_made else _UNSURE_S):
            unguard()

    def _still_there(self) -> EngineStopFailed:
        late = f"{self.config.stop_timeout_s:g} s after its stop"
        why = f": {self._still}" if self._still else ""
        return EngineStopFailed(self.engine, f"is still there {late} (container {self.name}){why}")


def _runs_in(pid: int, container: str) -> bool:
    """Tell whether a process of this machine is one of a container."""
    try:
        return container in Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace")
    except OSError:
        return False
