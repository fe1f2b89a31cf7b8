"""What systemd is told of the router: that it serves, that it is alive, that it ends (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import Final

import trio
from attrs import frozen

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PER_DEADLINE: Final = 3
"""Signs of life in the time after which systemd would start the router again."""


@frozen
class ServiceNotifier:
    """The socket on which a service manager listens; without one nothing is told to anybody.

    Attributes:
        address: of the socket; None where no service manager asks.
        alive_s: seconds between two signs of life; None where none are wanted.
    """

    address: str | None = None
    alive_s: float | None = None

    def tell(self, words: str) -> None:
        """Tell the service manager something, such as `READY=1`. Never waits; a manager that is gone is no fault."""
        if self.address is None or sys.platform == "win32":
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.address)
            sock.send(words.encode())

    async def keep_alive(self) -> None:
        """Give a sign of life as often as is wanted, for as long as the event loop turns; runs until cancelled."""
        while self.alive_s is not None:
            self.tell("WATCHDOG=1")
            await trio.sleep(self.alive_s)


def take_notifier(
    environ: MutableMapping[str, str] = os.environ, *, pid: int | None = None
) -> ServiceNotifier:
    """Return the notifier that the environment names, and take it out: engines are not the service."""
    named, usec, whose = (environ.pop(name, "") for name in _VARIABLES)
    if not named.startswith(("/", "@")):
        return ServiceNotifier()
    address = f"\0{named[1:]}" if named.startswith("@") else named
    is_meant = not whose or whose == str(os.getpid() if pid is None else pid)
    if not (is_meant and usec.isascii() and usec.isdigit() and int(usec)):
        return ServiceNotifier(address)
    return ServiceNotifier(address, int(usec) / 1e6 / _PER_DEADLINE)
