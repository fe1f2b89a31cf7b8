"""The poll of all sockets whose bytes are passed on as they come, without a task that wakes for each piece.

To wait for a socket costs a task a system call and a way through everything that awaits it: of a piece of a paced stream,
that is more than half of the work. Here one task waits for all of them together, and calls what takes the bytes.

On Linux, by epoll; elsewhere tasks wait for their sockets themselves.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable
from typing import Final

import trio

# Looks at the sockets before other tasks get their turn, and how many are attended to at each: while one is attended
# to, others become ready.
_LOOKS: Final = 8
_MOST_AT_ONCE: Final = 32


class SocketPoll:
    """The sockets that are waited for, each with what is called when there is something to receive.

    There is one for each run of trio, from the first time that it is needed: see `current_poll`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def __repr__(self) -> str:
        return f"<SocketPoll of {len(self._calls)}>"

    def add(self, sock: socket.socket, call: Callable[[], None]) -> int:
        """Call `call` whenever a socket has something to receive, until it is removed. It must not wait, nor raise.

        Returns:
            the socket's descriptor, to remove it by.
        """
        descriptor = sock.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._calls[descriptor] = call
        return descriptor

    def remove(self, descriptor: int, sock: socket.socket, call: Callable[[], None]) -> None:
        """Wait for a socket no more. Where it has been closed, its descriptor may be another one's by now."""
        if self._calls.get(descriptor) is call:
            del self._calls[descriptor]
        if sock.fileno() == descriptor:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Attend to the sockets until cancelled."""
        epoll, calls = self._epoll, self._calls
        try:
            while True:
                await trio.lowlevel.wait_readable(epoll.fileno())
                for _ in range(_LOOKS):
                    if not (ready := epoll.poll(0, _MOST_AT_ONCE)):
                        break
                    for descriptor, _ in ready:
                        # An earlier one of these may have had this one removed.
                        if (call := calls.get(descriptor)) is not None:
                            call()
        finally:
            epoll.close()


_current: Final[trio.lowlevel.RunVar[SocketPoll]] = trio.lowlevel.RunVar("socket_poll")


def current_poll() -> SocketPoll | None:
    """Return the poll of this run of trio; None where the platform has none."""
    if sys.platform != "linux":
        return None
    try:
        return _current.get()
    except LookupError:
        poll = SocketPoll()
        _current.set(poll)
        trio.lowlevel.spawn_system_task(poll.run, name="socket poll")
        return poll
