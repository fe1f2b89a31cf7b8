"""The poll of all sockets whose bytes are passed on as they come, without a task that wakes for each piece.

To wait for a socket costs a task a system call and a way through everything that awaits it: of a piece of a paced stream,
that is more than half of the work. Here one task waits for all of them together, and calls what takes the bytes.

On Linux, by epoll; elsewhere a task of trio's own kind waits for each socket, and calls the same.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol

import trio

logger = logging.getLogger(__name__)

# Looks at the sockets before other tasks get their turn, and how many are attended to at each: while some are attended
# to, others become ready.
_LOOKS: Final = 8
_MOST_AT_ONCE: Final = 32


class Watched(Protocol):
    """What has a socket that is waited for."""

    @property
    def on_readable(self) -> Callable[[], object]:
        """What is called whenever there is something to receive; looked up each time. It must not wait, nor raise."""
        ...

    def close(self) -> None:
        """End the connection: what came on it could not be handled."""
        ...


class Wait(Protocol):
    """A wait that has an end."""

    def expire(self) -> None:
        """End it: its time is up. It must not wait, nor raise."""
        ...


class SocketPoll(Protocol):
    """The sockets that are waited for, each with what is called when there is something to receive.

    There is one for each run of trio, from the first time that it is needed: see `current_poll`.

    Attributes:
        timeouts: of those that wait for one of the sockets.
    """

    timeouts: Timeouts

    def add(self, sock: socket.socket, watched: Watched) -> None:
        """Wait for a socket until it is removed: while there is something to receive, that is told again and again."""
        ...

    def remove(self, sock: socket.socket, descriptor: int, watched: Watched) -> None:
        """Wait for a socket no more. Where it has been closed, its descriptor may be another one's by now."""
        ...

    async def run(self) -> None:
        """Attend to the sockets until cancelled."""
        ...


class EpollPoll(trio.abc.Instrument):
    """A `SocketPoll` by one task for all sockets.

    As a rule it looks at the sockets before that task gets its turn, as soon as trio itself has waited: so the task of
    whoever gets what came runs in that very turn of trio's loop, and not in the next one.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._has_looked = False
        self.timeouts = Timeouts()

    def __repr__(self) -> str:
        return f"<EpollPoll of {len(self._watched)}>"

    def add(self, sock: socket.socket, watched: Watched) -> None:
        """See `SocketPoll`."""
        descriptor = sock.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._watched[descriptor] = watched

    def remove(self, sock: socket.socket, descriptor: int, watched: Watched) -> None:
        """See `SocketPoll`."""
        if self._watched.get(descriptor) is watched:
            del self._watched[descriptor]
        if sock.fileno() == descriptor and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """See `SocketPoll`."""
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                # Trio had not to wait, or calls us no more, as after a defect of ours.
                if not self._has_looked:
                    self.after_io_wait(math.inf)
                self._has_looked = False
        finally:
            trio.lowlevel.remove_instrument(self)
            self._epoll.close()

    def after_io_wait(self, timeout: float) -> None:
        """Look at the sockets, where trio has waited; called by trio."""
        if not timeout:
            return
        epoll, watched = self._epoll, self._watched
        for _ in range(_LOOKS):
            ready = epoll.poll(0, _MOST_AT_ONCE)
            for descriptor, _ in ready:
                # An earlier one of these may have had this one removed.
                if (one := watched.get(descriptor)) is not None:
                    try:
                        one.on_readable()
                    except Exception as error:  # noqa: BLE001 - it is logged
                        _break_off(one, error)
            if len(ready) <= 1:
                break
        self._has_looked = True


class TaskPoll:
    """A `SocketPoll` by a task for each socket."""

    def __init__(self) -> None:
        self._scopes: dict[Watched, trio.CancelScope] = {}
        self.timeouts = Timeouts()

    def __repr__(self) -> str:
        return f"<TaskPoll of {len(self._scopes)}>"

    def add(self, sock: socket.socket, watched: Watched) -> None:
        """See `SocketPoll`."""
        self._scopes[watched] = scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._watch, sock, watched, scope, name="wait for a socket")

    def remove(self, sock: socket.socket, descriptor: int, watched: Watched) -> None:  # noqa: ARG002 - the task has the socket
        """See `SocketPoll`."""
        if (scope := self._scopes.pop(watched, None)) is not None:
            scope.cancel()

    async def run(self) -> None:
        """See `SocketPoll`."""
        await trio.sleep_forever()

    async def _watch(self, sock: socket.socket, watched: Watched, scope: trio.CancelScope) -> None:
        with scope:
            while not scope.cancel_called:
                try:
                    if not await _is_readable(sock):  # receiving fails, too, and tells it
                        self.remove(sock, -1, watched)
                    watched.on_readable()
                except Exception as error:  # noqa: BLE001 - it is logged
                    _break_off(watched, error)
                    self.remove(sock, -1, watched)
                    return


async def _is_readable(sock: socket.socket) -> bool:
    """Wait until there is something to receive. Returns False where that cannot be waited for."""
    # Trio fails at a closed one, but notes that somebody waits for it, and has nobody wait for another closed one then.
    if sock.fileno() < 0:
        return False
    try:
        await trio.lowlevel.wait_readable(sock)
    except (OSError, ValueError, trio.ClosedResourceError):
        return False
    return True


def _break_off(one: Watched, error: Exception) -> None:
    """End a connection whose defect would end the poll, and all others with it."""
    logger.error("what came on a connection could not be handled", exc_info=error)
    try:
        one.close()
    except Exception:
        logger.exception("a connection could not be closed")


class Timeouts:
    """The waits that have an end, by one task for all: a cancel scope for each costs as much as the rest of a wait.

    Most are over long before. So the task looks at the earliest end that it knew of when it last looked, and a new one
    wakes it only where that is earlier still.
    """

    def __init__(self) -> None:
        self._ends: dict[Wait, float] = {}
        self._looks_at = math.inf
        self._sooner = trio.Event()

    def add(self, wait: Wait, until: float) -> None:
        """Have a wait expire at a time of trio's clock, unless it is discarded before."""
        self._ends[wait] = until
        if until < self._looks_at:
            self._looks_at = until
            self._sooner.set()

    def discard(self, wait: Wait) -> None:
        """Let a wait go on without an end; nothing where it had none."""
        self._ends.pop(wait, None)

    async def run(self) -> None:
        """Let waits expire until cancelled."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._looks_at):
                await self._sooner.wait()
            now = trio.current_time()
            if now < self._looks_at:
                continue
            for wait in [wait for wait, end in self._ends.items() if end <= now]:
                if self._ends.pop(wait, None) is not None:  # an earlier one may have ended this one
                    self._expire(wait)
            self._looks_at = min(self._ends.values(), default=math.inf)

    @staticmethod
    def _expire(wait: Wait) -> None:
        try:
            wait.expire()
        except Exception:  # a defect of one is no other one's concern
            logger.exception("the end of a wait could not be handled")


_current: Final[trio.lowlevel.RunVar[SocketPoll]] = trio.lowlevel.RunVar("socket_poll")


def make_poll() -> SocketPoll:
    """Return what the platform has."""
    return EpollPoll() if sys.platform == "linux" else TaskPoll()


def current_poll() -> SocketPoll:
    """Return the poll of this run of trio."""
    try:
        return _current.get()
    except LookupError:
        poll = make_poll()
        _current.set(poll)
        trio.lowlevel.spawn_system_task(poll.run, name="socket poll")
        trio.lowlevel.spawn_system_task(poll.timeouts.run, name="timeouts of sockets")
        return poll
