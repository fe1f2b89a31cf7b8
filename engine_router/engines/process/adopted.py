"""A process tree that the router did not start but found running."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import psutil
import trio

POLL_INTERVAL_S = 0.25


class AdoptedTree:
    """A process that runs an engine's very command, and its descendants.

    psutil pins the process by its start time, so that a reused id is never signalled. A group is signalled
    only where the process is its head: the group of a shell, or of the router itself, stays untouched.

    It looks at the process table, from the beginning on: it is made in a thread, and does its work in threads.
    """

    def __init__(self, head: psutil.Process) -> None:
        self.pid = head.pid
        self._head = head
        self._known: list[psutil.Process] = [head]
        self._look()

    def __repr__(self) -> str:
        return f"<AdoptedTree {self.pid}>"

    async def wait(self) -> None:
        """Wait until the head has ended. Cancellation leaves it as it is."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(self.pid)
                try:
                    while self._head.is_running() and self._head.status() != psutil.STATUS_ZOMBIE:
                        await trio.lowlevel.wait_readable(descriptor)
                except psutil.NoSuchProcess:
                    pass
                finally:
                    os.close(descriptor)
                return
        while self._is_living(self._head):
            await trio.sleep(POLL_INTERVAL_S)

    async def signal(self, name: str) -> None:
        """Send a signal to the group that the process heads, else to the process alone."""
        await trio.to_thread.run_sync(self._signal, name)

    async def kill(self) -> None:
        """Kill the process and its descendants."""
        await trio.to_thread.run_sync(self._kill)

    def abandon(self) -> None:
        """Leave it: what the router did not start stays when the router goes."""

    async def is_alive(self) -> bool:
        """Tell whether any of it still runs."""
        return await trio.to_thread.run_sync(self._has_living, abandon_on_cancel=True)

    def _has_living(self) -> bool:
        return any(self._is_living(process) for process in self._known)

    def _signal(self, name: str) -> None:
        self._look()
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.name == "posix" and self._head.is_running() and self._has_own_group():
                os.killpg(self.pid, signal.Signals[name])
            else:
                self._head.send_signal(signal.Signals[name])

    def _kill(self) -> None:
        self._look()
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def members(self) -> Sequence[int]:
        """List the process and its descendants."""
        self._look()
        return [process.pid for process in self._known]

    def mark_dead(self) -> None:
        """Note that all of it is dead."""
        self._known = []

    def _has_own_group(self) -> bool:
        group = os.getpgid(self.pid)
        return group == self.pid and group != os.getpgrp()

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._known = list({*self._known, *self._head.children(recursive=True)})

    @staticmethod
    def _is_living(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
