"""The process tree of an engine: signalled as a whole, and dead only as a whole.

One seam for what differs by platform. On Linux and macOS it is a process group of its own, plus (on
Linux) whoever left the group but carries the tree's marker in its environment; the `Guardian` kills it
if the router dies. On Windows it is a job object that dies with the router's handle.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Protocol

import psutil
import trio

from engine_router.engines.process import guardian
from engine_router.engines.process.descriptors import DescriptorReserve
from engine_router.engines.process.guardian import MARKER_VARIABLE, carriers
from engine_router.engines.started.resources import lacks_resources
from engine_router.guards.masking import own_environment

logger = logging.getLogger(__name__)

# Seconds until what failed for lack of something is tried again.
RETRY_S = 0.5
# Seconds that the end of the program waits at most for its last processes.
LAST_S = 1.0
# Seconds that the end of the program waits at most for the ends of its processes.
LAST_S = 1.0

_unreaped: list[trio.Process] = []
# Routers may run in several threads of one program, and two of them must not look at one process at a time.
_reaping = threading.Lock()


def reap_later(process: trio.Process) -> None:
    """Take care of a process that was killed without waiting for its end: see `reap`."""
    with _reaping:
        _unreaped.append(process)
    reap()


def reap() -> None:
    """Collect the processes that have ended by now: until then the kernel keeps a zombie of each."""
    with _reaping:
        _unreaped[:] = [process for process in _unreaped if process.poll() is None]


async def _until_reaped() -> None:
    with trio.move_on_after(LAST_S):
        reap()
        while _unreaped:
            await trio.sleep(0.005)
            reap()


@atexit.register
def _reap_last() -> None:
    """Collect what was killed at the end of the program, and the guardian, which is about to go."""
    if _unreaped:
        trio.run(_until_reaped)


class ProcessTree(Protocol):
    """A started process and all that descend from it."""

    @property
    def pid(self) -> int:
        """Id of the process that was started."""
        ...

    async def signal(self, name: str) -> None:
        """Send a signal to all of it; silent when nobody is left."""
        ...

    async def kill(self) -> None:
        """End all of it at once; silent when nobody is left."""
        ...

    def abandon(self) -> None:
        """End all of it at once, without waiting: for whoever is cancelled, and is not there any more to see it."""
        ...

    async def is_alive(self) -> bool:
        """Tell whether any of it still runs. A zombie holds no memory: it is dead."""
        ...

    def members(self) -> Sequence[int]:
        """List the processes of it, as far as the platform tells; looks at the process table, so in a thread.

        Raises:
            OSError: it may not be looked at.
        """
        ...

    def mark_dead(self) -> None:
        """Note that all of it is dead. Its ids may belong to strangers from now on, so none is signalled again."""
        ...


class Guardian:
    """The line to the guardian program: which trees it has to kill when the router is gone.

    `run` keeps one guardian alive; `watch` and `forget` never wait.

    Attributes:
        reserve: for what it starts, and for the engines.
    """

    def __init__(self) -> None:
        self._line: int | None = None
        self._watched: dict[int, str] = {}  # what has to be told of each
        self._commands = 0
        self._run = uuid.uuid4().hex
        self.reserve = DescriptorReserve()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the guardian, and start it again should it end. Cancellation lets it finish its work and go."""
        announced = is_reported = False
        try:
            while True:
                try:
                    process, line = await self._start()
                except OSError as error:
                    # Nothing is to end for this: what lacks now may be there in a moment.
                    if not is_reported:
                        logger.warning(
                            "the guardian program cannot be started (%s); it is tried again", error
                        )
                    is_reported = True
                    if not lacks_resources(error):
                        raise
                    await trio.sleep(RETRY_S)
                    continue
                is_reported = False
                try:
                    self._line = line
                    for lines in self._watched.values():
                        self._write(lines)
                    if not announced:
                        task_status.started()
                        announced = True
                    try:
                        await process.wait()
                    finally:
                        reap_later(process)
                finally:
                    self._line = None
                    os.close(line)
                await trio.sleep(0.1)
        finally:
            self.reserve.close()

    async def _start(self) -> tuple[trio.Process, int]:
        """Start a guardian; return it and our end of its line."""
        argv = [sys.executable, "-I", "-S", str(Path(guardian.__file__)), self._run]
        with self.reserve.lent():
            reading, writing = os.pipe()
            try:
                process = await trio.lowlevel.open_process(
                    argv,
                    stdin=reading,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env=own_environment(),
                )
            except BaseException:
                os.close(writing)
                raise
            finally:
                os.close(reading)
        return process, writing

    def new_marker(self) -> str:
        """Return a marker for a process tree; whoever carries it is killed when the router is gone."""
        return f"{self._run}.{uuid.uuid4().hex}"

    def watch(self, group: int) -> None:
        """Have a process group killed when the router is gone."""
        self._watched[group] = f"+{group}\n"
        self._write(self._watched[group])

    def run_at_end(self, group: int, argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
        """Have a command run, too, when the router is gone before that group is."""
        if group in self._watched:
            line = _command_line(group, argv, env, cwd)
            self._watched[group] = f"+{group}\n{line}"
            self._write(line)

    def run_at_death(self, argv: Sequence[str]) -> int:
        """Have a command run when the router is gone; return the key by which it is forgotten."""
        self._commands += 1
        key = -self._commands  # no process group has such a number
        self._watched[key] = _command_line(key, argv, {}, None)
        self._write(self._watched[key])
        return key

    def forget(self, group: int) -> None:
        """Note that a process group is dead, or that a command need not be run any more."""
        if self._watched.pop(group, None) is not None:
            self._write(f"-{group}\n")

    def _write(self, line: str) -> None:
        if self._line is not None:
            # A line is far shorter than a pipe's buffer, and the guardian reads at once: this never waits.
            with contextlib.suppress(OSError):
                os.write(self._line, line.encode())


def _command_line(key: int, argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> str:
    return f"*{key} {json.dumps([list(argv), dict(env), cwd]).encode().hex()}\n"


class ProcessGroup:
    """A process tree on Linux and macOS."""

    def __init__(self, pid: int, marker: str, watcher: Guardian | None) -> None:
        self.pid = pid
        self._marker = marker
        self._watcher = watcher
        self._is_dead = False
        if watcher is not None:
            watcher.watch(pid)

    def __repr__(self) -> str:
        return f"<ProcessGroup {self.pid}{' dead' if self._is_dead else ''}>"

    async def signal(self, name: str) -> None:
        """Send a signal to the group and to whoever left it."""
        if not self._is_dead:
            self._signal_group(Signals[name])
            # Walking the process table takes milliseconds: not in the event loop.
            await trio.to_thread.run_sync(self._signal_others, Signals[name])

    async def kill(self) -> None:
        """Kill the group and whoever left it."""
        await self.signal("SIGKILL")

    def abandon(self) -> None:
        """Kill the group at once, and in a thread whoever left it; the program ends after that thread."""
        if not self._is_dead:
            self._signal_group(SIGKILL)
            threading.Thread(target=self._signal_others, args=(SIGKILL,), name="kill").start()

    def _signal_group(self, number: Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _signal_others(self, number: Signals) -> None:
        for pid in carriers({self._marker}):
            if _group_of(pid) != self.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    async def is_alive(self) -> bool:
        """Tell whether any of it still runs."""
        if self._is_dead:
            return False
        return await trio.to_thread.run_sync(self._has_living, abandon_on_cancel=True)

    def mark_dead(self) -> None:
        """Note that all of it is dead."""
        self._is_dead = True
        if self._watcher is not None:
            self._watcher.forget(self.pid)

    def members(self) -> Sequence[int]:
        """List the processes of the group, and on Linux whoever left it."""
        try:
            os.killpg(self.pid, 0)
            members = [pid for pid in psutil.pids() if _group_of(pid) == self.pid]
        except ProcessLookupError:
            members = []
        return list({*members, *carriers({self._marker})})

    def _has_living(self) -> bool:
        try:
            return any(_is_living(pid) for pid in self.members())
        except PermissionError:
            return True


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


async def start_tree(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str | None, watcher: Guardian | None
) -> tuple[trio.Process, ProcessTree]:
    """Start a process as the head of a tree of its own, its output on one pipe.

    Raises:
        OSError: it cannot be run.

    Cancellation: either nothing was started, or the tree is returned.
    """
    marker = uuid.uuid4().hex if watcher is None else watcher.new_marker()
    reap()
    surroundings = {**own_environment(), **env, MARKER_VARIABLE: marker}
    if sys.platform == "win32":
        from engine_router.engines.process.windows import JobTree  # noqa: PLC0415 - exists on Windows only

        return await JobTree.start(argv, env=surroundings, cwd=cwd)
    with contextlib.nullcontext() if watcher is None else watcher.reserve.lent():
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=surroundings,
            start_new_session=True,
        )
    return process, ProcessGroup(process.pid, marker, watcher)
