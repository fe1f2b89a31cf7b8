"""A running process with all that it started: what it writes is read, and it ends as a whole."""

from __future__ import annotations

import logging
import platform
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psutil
import trio
from attrs import define, field

from engine_router.config import ProcessConfig
from engine_router.engines.base import Ended, LogRing
from engine_router.engines.beside import beside
from engine_router.engines.ports import ClaimedPort, described, is_taken, owner_of
from engine_router.engines.process.end_commands import EndCommands
from engine_router.engines.process.process_tree import ProcessTree, reap_later
from engine_router.engines.process.shared_memory import SharedMemory
from engine_router.engines.process.wired_memory import least_grace_s
from engine_router.engines.started.output import EngineOutput
from engine_router.engines.started.running import GRACE_SHARE, OUTPUT_GRACE_S
from engine_router.errors import EngineStopFailed
from engine_router.guards.masking import masked_argv
from engine_router.upstream.address import address_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The kernel counts the beginnings of processes in hundredths of a second.
_TICK_S = 0.02


@define(eq=False, kw_only=True, repr=False)
class RunningProcess:
    """A running process with all that it started.

    Attributes:
        name: the engine's.
        log_start: how many lines the log had before its start.
        wait: waits for the end of its head.
        process: its head, where the router started it.
        port: the one that was claimed for it.
        output: where its output goes.
        commands: what is run at its end.
        shared: the shared memory that it must not leave behind.
        has_served: it was ready, so that whoever listens at its address is it, or came after it.
    """

    name: str
    config: ProcessConfig
    log: LogRing
    log_start: int
    base_url: str
    tree: ProcessTree
    wait: Callable[[], Awaitable[object]]
    process: trio.Process | None = None
    port: ClaimedPort | None = None
    output: EngineOutput
    commands: EndCommands
    shared: SharedMemory
    has_served: bool = False
    _is_dead: bool = False
    _still: str | None = None  # what goes on after its death, in words
    _output_ended: trio.Event = field(factory=trio.Event)

    @property
    def pid(self) -> int:
        """Id of its head."""
        return self.tree.pid

    @property
    def is_ours(self) -> bool:
        """True where the router started it."""
        return self.process is not None

    def ended_how(self) -> str:
        """Say in words how its head ended."""
        return "ended" if self.process is None else _exit_words(self.process.returncode)

    async def while_read(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do some work with it, while all that it writes is read.

        Raises:
            EngineError: as the work raised it.
        """
        return await beside(self._read_output, work)

    async def begin(self) -> None:
        """Do nothing: it runs already."""
        await trio.lowlevel.checkpoint()

    async def serves(self) -> None:
        """Note that it is ready, and which shared memory it has."""
        self.has_served = True
        await self.shared.note(self.tree.members)

    def abandon(self) -> None:
        """Kill what is left of what the router started, without waiting, and close what was opened for it."""
        if self.process is None:
            return
        self.tree.abandon()  # does nothing where the whole tree is known to be dead
        if not self._is_dead:
            self.commands.kill_detached()
        reap_later(self.process)
        self.log.flush()
        self.output.close()
        if self.port is not None:
            self.port.release()

    # Its end.

    async def end(self, grace_s: float) -> Ended:
        """Ask it to end, and kill what is left after `grace_s` seconds, or later where that would cost memory.

        Raises:
            EngineStopFailed: some of it is left after `stop_timeout_s`, which is extended like `grace_s`.
        """
        tree = self.tree
        grace_s = min(grace_s, self.config.stop_timeout_s * GRACE_SHARE)
        more_s = max(0.0, least_grace_s() - grace_s)
        grace_s += more_s
        is_asked = False
        with trio.move_on_after(self.config.stop_timeout_s + more_s):
            await self.shared.note(tree.members)
            with trio.move_on_after(grace_s) as grace:
                if self.commands.stop is not None:
                    is_asked = await self._run(self.commands.stop)
                await tree.signal(self.config.stop_signal)
                await self.wait()
                await _until_dead(tree)
            if grace.cancelled_caught and await tree.is_alive():
                self.log.write(
                    f"[engine-router] still there {grace_s:g} s after {self.config.stop_signal}: killed"
                )
            await self.kill_until_gone(is_asked=is_asked and not grace.cancelled_caught)
            return Ended(stopped=True, message=self.ended_how())
        raise self._still_there()

    async def clean_up(self) -> None:
        """Kill what is left of the tree after its head has gone or was to be killed.

        Raises:
            EngineStopFailed: some of it is left after `stop_timeout_s`.
        """
        with trio.move_on_after(self.config.stop_timeout_s):
            await self.shared.note(self.tree.members)  # some of it may still live
            await self.kill_until_gone()
            return
        raise self._still_there()

    async def kill_until_gone(self, *, is_asked: bool = False) -> None:
        """Kill what is left of the tree until nothing is, and read its last words.

        Args:
            is_asked: what a daemon held for it was told to end, and did.
        """
        await _until_dead(self.tree, kill=True)
        await self.wait()
        died_at = _now_of_processes()
        self._still = "what it left is still being removed"
        if self.commands.kill is not None and not is_asked:
            self._still = "its kill_command still runs"
            await self._run(self.commands.kill)
        if self.has_served:
            await self._until_silent(died_at)
        for words in await self.shared.clear():
            self.log.write(f"[engine-router] {words}")
            logger.info("engine '%s': %s", self.name, words)
        self.tree.mark_dead()
        self._is_dead = True
        with trio.move_on_after(OUTPUT_GRACE_S):
            await self._output_ended.wait()
        self.output.end()

    async def _run(self, argv: tuple[str, ...]) -> bool:
        """Run a command for its end; return whether that worked."""
        self.log.write(f"[engine-router] running {' '.join(masked_argv(argv))}")
        done = await self.commands.run(argv, self.config.stop_timeout_s)
        if done.code != 0:
            self.log.write(f"[engine-router] {argv[0]}: {done.complaint}")
        return done.code == 0

    async def _until_silent(self, died_at: float) -> None:
        """Wait until nobody listens where it did: what a daemon runs for it is not seen among its processes.

        A process that began after its death is not waited for.
        """
        interval = 0.01
        owner = None
        while await is_taken(self.base_url):
            if owner is None:
                # Said before the owner is looked for, which may take longer than there is time on a busy machine.
                self._still = f"{described(None)} still accepts connections at {self.base_url}"
            owner = await owner_of(address_of(self.base_url)[1])
            if owner is not None and await trio.to_thread.run_sync(began_at, owner) > died_at - _TICK_S:
                return
            self._still = f"{described(owner)} still accepts connections at {self.base_url}"
            await trio.sleep(interval)
            interval = min(interval * 2, 0.5)

    def _still_there(self) -> EngineStopFailed:
        late = f"{self.config.stop_timeout_s:g} s after its stop"
        if self._still is None:
            return EngineStopFailed(
                self.name, f"is still there {late} (pid {self.tree.pid}), even after SIGKILL"
            )
        remedy = "; where a daemon runs it (a container), give its stop_command and kill_command"
        has_commands = self.commands.stop is not None and self.commands.kill is not None
        return EngineStopFailed(
            self.name, f"has ended, but {self._still} {late}{'' if has_commands else remedy}"
        )

    # Its output.

    async def _read_output(self) -> None:
        """Read what it writes until nobody can write any more."""
        if self.process is not None and self.process.stdout is not None:
            await self.output.read(self.process.stdout)
        self._output_ended.set()


def _now_of_processes() -> float:
    """Return the time by the clock that the beginning of a process is told by: from the boot on, on Linux."""
    if platform.system() == "Linux":
        return psutil.boot_time() + time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


def began_at(process: psutil.Process) -> float:
    """Return when a process began, in seconds since 1970; the distant past where that cannot be seen."""
    try:
        return process.create_time()
    except psutil.Error:
        return 0.0


async def _until_dead(tree: ProcessTree, *, kill: bool = False) -> None:
    """Wait until nobody of a tree lives. With `kill`, kill whoever is found, and what was started meanwhile."""
    interval = 0.002
    while await tree.is_alive():
        if kill:
            await tree.kill()
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
