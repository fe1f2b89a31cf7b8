"""The init process of a container: forwards signals to the router, and reaps every process that lost its parent.

Whose parent has died becomes a child of process 1. A router that is process 1 itself cannot wait for just any
child without taking the exit statuses that its own subprocesses are waited for with, so it runs as a child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Final

if sys.platform == "linux":
    # A fault of this process's own comes at once, and must not be put off.
    FAULTS: Final = {
        signal.SIGSEGV,
        signal.SIGILL,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
    # A terminal sends these to the router itself, too: it is in the same process group.
    FROM_TERMINALS: Final = {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
    }


def run_below_init() -> None:
    """Return in a child if this is process 1 of a container, which stays behind as the init process.

    The init process never returns from here. Must be called before any thread is started.

    Raises:
        SystemExit: in the init process, with the child's exit code, or 128 and the signal that killed it.
    """
    if sys.platform == "linux" and os.getpid() == 1:
        _fork()


if sys.platform == "linux":

    def _fork() -> None:
        # As long as they are blocked, process 1 gets those signals, too, that the kernel would not deliver to it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS)
        try:
            child = os.fork()
        except OSError:  # out of processes: better a router that leaves zombies than none
            child = 0
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return
        code = _attend(child)
        if code > 128:
            _await_guardian()
        raise SystemExit(code)

    def _attend(child: int) -> int:
        """Forward signals and reap until the child has ended. Returns its exit code."""
        awaited = signal.valid_signals() - FAULTS
        while True:
            received = signal.sigwaitinfo(awaited)
            if received.si_signo == signal.SIGCHLD:
                for pid, status in _reaped():
                    if pid == child:
                        code = os.waitstatus_to_exitcode(status)
                        return code if code >= 0 else 128 - code
            elif received.si_code <= 0 or received.si_signo not in FROM_TERMINALS:
                os.kill(child, received.si_signo)

    def _reaped() -> list[tuple[int, int]]:
        """Reap every child that has ended by now."""
        found: list[tuple[int, int]] = []
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                found.append(ended)
        return found

    def _await_guardian() -> None:
        """Let the guardian of a killed router finish: whatever is left then dies with this process."""
        from engine_router.engines.process.guardian import COMMANDS_S  # noqa: PLC0415 - the init process stays small

        give_up_at = time.monotonic() + COMMANDS_S
        while _has_children() and (left := give_up_at - time.monotonic()) > 0:
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}, left)
            if received is None or received.si_signo != signal.SIGCHLD:
                return

    def _has_children() -> bool:
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return False
        return True
