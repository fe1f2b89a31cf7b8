"""A connected socket on trio without the layers between: the cheapest stream that is still an ordinary one.

trio's own SocketStream costs about ten times the system call for each operation. Here an operation is tried
at once, and only what would block waits, on trio's `wait_readable` and `wait_writable`: the same code on
every platform.
"""

from __future__ import annotations

import contextlib
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


class _Reception:
    """The reception of what comes in on a socket, without a task."""

    __slots__ = ("_call", "_descriptor", "_poll", "_sock", "_take", "error", "over")

    def __init__(self, sock: socket.socket, take: Callable[[bytes], bool], poll: SocketPoll) -> None:
        self._sock = sock
        self._take = take
        self._poll = poll
        self.over = trio.Event()
        self.error: Exception | None = None
        self._call = self._pass_on
        self._descriptor = poll.add(sock, self._call)

    def _pass_on(self) -> None:
        try:
            if not self._take(self._sock.recv(RECEIVE_BYTES)):
                self.end()
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self.fail(ConnectionLost(str(error)))
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.over.is_set():
            self.error = error
        self.end()

    def end(self) -> None:
        """End it; may be called again."""
        if not self.over.is_set():
            self._poll.remove(self._descriptor, self._sock, self._call)
            self.over.set()


class RawStream:
    """A connected, non-blocking TCP socket. One task may receive while another one sends.

    Cancellation of `receive` loses nothing; cancellation of `send_all` leaves it unknown how much was sent.
    """

    __slots__ = ("_closed", "_reception", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._closed = False
        self._reception: _Reception | None = None

    def __repr__(self) -> str:
        return f"<RawStream {'closed' if self._closed else self.sock.fileno()}>"

    async def receive(self) -> bytes:
        """Return what came in, at least one byte; nothing once the peer has ended its side.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
        """
        while True:
            try:
                await trio.lowlevel.wait_readable(self.sock)
                return self.sock.recv(RECEIVE_BYTES)
            except _WOULD_BLOCK:
                continue
            except (OSError, trio.ClosedResourceError, ValueError) as error:
                raise ConnectionLost(str(error)) from error

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Hand each piece that comes in to `take`, until it returns False; nothing once the peer has ended its side.

        No task wakes for a piece where the platform can do without.

        Raises:
            ConnectionLost: the connection was reset, or closed here.
            Exception: whatever `take` has raised.
        """
        poll = current_poll()
        if poll is None:
            while take(await self.receive()):
                pass
            return
        if self.sock.fileno() < 0:
            raise ConnectionLost("closed")
        self._reception = reception = _Reception(self.sock, take, poll)
        try:
            await reception.over.wait()
        finally:
            self._reception = None
            reception.end()
        if reception.error is not None:
            raise reception.error

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

    def is_quiet(self) -> bool:
        """Tell whether the connection is open and nothing has come on it."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except _WOULD_BLOCK:
            return not self._closed
        except (OSError, ValueError):
            return False
        return False

    def close(self) -> None:
        """Close the connection now; whoever waits on it gets ConnectionLost. May be called again."""
        if not self._closed:
            self._closed = True
            if self._reception is not None:
                self._reception.fail(ConnectionLost("closed"))
            if self.sock.fileno() >= 0:
                trio.lowlevel.notify_closing(self.sock)
                self.sock.close()

    def finish(self) -> None:
        """Tell the peer that nothing more will be sent."""
        with contextlib.suppress(OSError, ValueError):
            self.sock.shutdown(socket.SHUT_WR)
