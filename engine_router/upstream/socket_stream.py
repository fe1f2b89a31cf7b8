"""A connected socket on trio without the layers between: the cheapest stream that is still an ordinary one.

trio's own SocketStream costs about ten times the system call for each operation. Here a send is tried at once, and
waits by trio's `wait_writable` only where it would block. Whoever receives waits in the poll that all sockets share.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable

import trio

from engine_router.guards.limits import SLOWEST_BYTES_PER_S
from engine_router.upstream.socket_poll import SocketPoll, current_poll

RECEIVE_BYTES = 65536
Sendable = bytes | bytearray | memoryview
_WOULD_BLOCK = (BlockingIOError, InterruptedError)


def moved_on(quiet_since: float, count: int) -> float:
    """Return since when a client that has sent so many bytes counts as quiet, by the clock of trio."""
    return min(trio.current_time(), quiet_since + count / SLOWEST_BYTES_PER_S)


class ConnectionLost(Exception):
    """The peer reset the connection, or it was closed here while somebody waited on it."""


def _nothing() -> None:
    """Do nothing."""


class RawStream:
    """A connected, non-blocking TCP socket. One task may receive while another one sends.

    Cancellation of `receive` loses nothing; cancellation of `send_all` leaves it unknown how much was sent.

    Attributes:
        on_readable: for the poll that waits for the socket.
    """

    __slots__ = (
        "_closed",
        "_descriptor",
        "_ended",
        "_error",
        "_kept",
        "_poll",
        "_take",
        "_task",
        "on_readable",
        "sock",
    )

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._closed = False
        self._poll: SocketPoll | None = None  # where it waits for the socket, by the descriptor
        self._descriptor = -1
        self._take: Callable[[bytes], bool] = bool
        self._ended: Callable[[Exception | None], object] | None = (
            None  # is told when nothing is handed over any more
        )
        self._task: trio.lowlevel.Task | None = None  # the one that waits
        self._kept: bytes | None = None
        self._error: Exception | None = None  # that ended the wait
        self.on_readable: Callable[[], object] = _nothing

    def __repr__(self) -> str:
        return f"<RawStream {'closed' if self._closed else self.sock.fileno()}>"

    async def receive(self, until: float = math.inf) -> bytes | None:
        """Return what came in, at least one byte; nothing once the peer has ended its side.

        None if nothing has come by `until` (the clock of trio).

        Raises:
            ConnectionLost: the connection was reset, or closed here.
        """
        await self._wait(self._keep, until)
        data, self._kept = self._kept, None
        return data

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Hand each piece that comes in to `take`, until it returns False; nothing once the peer has ended its side.

        No task wakes for a piece.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
            Exception: whatever `take` has raised.
        """
        await self._wait(take)

    def listen(self, take: Callable[[bytes], bool], ended: Callable[[Exception | None], object]) -> None:
        """Have each piece that comes in handed to `take`, as `receive_each` does, without a task that waits.

        Args:
            ended: called, once, when no more is handed over, with what `receive_each` would raise; but not by `release`.

        Raises:
            ConnectionLost: the connection was closed here, or the system cannot wait for it.
        """
        if self._ended is not None:
            raise trio.BusyResourceError("another one receives already")
        if (descriptor := self.sock.fileno()) < 0:
            raise ConnectionLost("closed")
        if self._poll is None:
            poll = current_poll()
            try:
                poll.add(self.sock, self)
            except OSError as error:  # the system waits for no further socket
                raise ConnectionLost(str(error)) from error
            self._poll, self._descriptor = poll, descriptor
        self._take, self._ended = take, ended
        self.on_readable = self._pass_on

    def release(self) -> None:
        """Stop listening, and wait for the socket no more: it is for another one to receive from now on."""
        self._ended = None
        self._end()
        self._leave_poll()

    async def _wait(self, take: Callable[[bytes], bool], until: float = math.inf) -> None:
        """Have what comes in handed to `take`, until that returns False, or the time is up.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
            Exception: whatever `take` has raised.
        """
        self.listen(take, self._wake)
        self._task = trio.lowlevel.current_task()
        if until < math.inf and self._poll is not None:
            self._poll.timeouts.add(self, until)
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wake(self, error: Exception | None) -> None:
        task, self._task, self._error = self._task, None, error
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _keep(self, data: bytes) -> bool:
        self._kept = data
        return False

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        self._end()
        return trio.lowlevel.Abort.SUCCEEDED

    def _leave_poll(self) -> None:
        """Have the poll wait no more: what comes while nobody wants it would be told again and again."""
        self.on_readable = _nothing
        if self._poll is not None:
            self._poll.remove(self.sock, self._descriptor, self)
            self._poll = None

    def _end(self, error: Exception | None = None) -> None:
        """Hand nothing over any more, and tell so where somebody wants to know."""
        ended, self._ended, self._take = self._ended, None, bool
        self.on_readable = self._leave_poll
        if self._poll is not None:
            self._poll.timeouts.discard(self)
        if ended is not None:
            ended(error)

    def expire(self) -> None:
        """See `Wait`."""
        self._end()

    def _pass_on(self) -> None:
        try:
            if not self._take(self.sock.recv(RECEIVE_BYTES)):
                self._end()
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self._end(ConnectionLost(str(error)))
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self._end(error)

    def send_now(self, data: Sendable) -> Sendable:
        """Send what goes out without a wait; return the rest.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
        """
        try:
            sent = self.sock.send(data)
        except _WOULD_BLOCK:
            return data
        except (OSError, ValueError) as error:
            raise ConnectionLost(str(error)) from error
        return b"" if sent == len(data) else memoryview(data)[sent:]

    async def send_all(self, data: Sendable) -> None:
        """Send everything. Waits, and checks for cancellation, only where the peer reads too slowly.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
        """
        rest = self.send_now(data)
        while rest:
            try:
                await trio.lowlevel.wait_writable(self.sock)
                rest = memoryview(rest)[self.sock.send(rest) :]
            except _WOULD_BLOCK:
                continue
            except (OSError, trio.ClosedResourceError, ValueError) as error:
                raise ConnectionLost(str(error)) from error

    def peer(self) -> str | None:
        """Return the address at the other end; None where it is not known, or has left already."""
        try:
            name = self.sock.getpeername()
        except OSError:
            return None
        return str(name[0]) if isinstance(name, tuple) else None

    def park(self) -> None:
        """Close the connection as soon as something comes on it, its end above all: nobody has asked for anything.

        Whoever receives again ends that. It holds only where something has been received before.
        """
        self.on_readable = self.close

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and nothing has come on it."""
        if self._closed or (self._poll is not None and self.on_readable == self.close):
            return not self._closed
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except _WOULD_BLOCK:
            return True
        except (OSError, ValueError):
            return False
        return False

    def close(self) -> None:
        """Close the connection now; whoever waits on it gets ConnectionLost. May be called again."""
        if not self._closed:
            self._closed = True
            try:
                self._end(ConnectionLost("closed"))
                self._leave_poll()
            finally:  # a defect must not leave it open: the peer waits for its end
                if self.sock.fileno() >= 0:
                    trio.lowlevel.notify_closing(self.sock)
                    self.sock.close()

    def finish(self) -> None:
        """Tell the peer that nothing more will be sent."""
        with contextlib.suppress(OSError, ValueError):
            self.sock.shutdown(socket.SHUT_WR)
