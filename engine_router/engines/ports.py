"""Ports: a free one to start on, and who owns one that is taken."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
from collections.abc import Iterator, Sequence

import psutil
import trio

from engine_router.upstream.address import address_of

# Below those that Linux, macOS and Windows give to outgoing connections, any of which could be in an engine's way.
_PORTS = range(20_000, 32_768)
_TRIES = 100
_INTERPRETER = re.compile(r"(python|pypy|node|bun|bash|dash|sh|zsh|perl|ruby)[\d.]*(\.exe)?")


class ClaimedPort:
    """A TCP port on loopback that nobody used when it was claimed, and that no other router claims meanwhile.

    An engine takes seconds until it listens. Another router must not give the port to an engine of its own in that
    time: whose engine came first would get the requests of both. A UDP socket of the same number, which nobody
    else wants, tells the routers of all users of this machine, and is gone with whoever held it.

    Attributes:
        number: the port.

    Raises:
        OSError: none is free.
    """

    def __init__(self) -> None:
        for number in random.sample(_PORTS, _TRIES):
            self._claim = socket.socket(type=socket.SOCK_DGRAM)
            try:
                self._claim.bind(("127.0.0.1", number))
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
            except OSError:
                self._claim.close()
                continue
            self.number = number
            return
        raise OSError(errno.EADDRINUSE, f"no port from {_PORTS[0]} to {_PORTS[-1]} is free")

    def __repr__(self) -> str:
        return f"<ClaimedPort {self.number}>"

    def release(self) -> None:
        """Leave the port to others."""
        self._claim.close()


async def is_taken(base_url: str) -> bool:
    """Tell whether somebody accepts connections there."""
    host, port = address_of(base_url)
    with trio.move_on_after(2):
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError:
            return False
        await stream.aclose()
    return True


async def owner_of(port: int) -> psutil.Process | None:
    """Find the process that listens on a local port; None where it cannot be seen (another user's)."""
    return await trio.to_thread.run_sync(_owner_of, port, abandon_on_cancel=True)


def _owner_of(port: int) -> psutil.Process | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            address = connection.laddr
            if (
                connection.status == psutil.CONN_LISTEN
                and address
                and address.port == port
                and connection.pid
            ):
                return psutil.Process(connection.pid)
    except psutil.Error:
        return None
    return None


def described(process: psutil.Process | None) -> str:
    """Name a process for a message."""
    if process is None:
        return "another program"
    try:
        return f"{process.name()} (pid {process.pid})"
    except psutil.Error:
        return f"pid {process.pid}"


async def head_of(port: int, argv: Sequence[str]) -> psutil.Process | None:
    """Find who runs a command whose port is owned by that process or by one that it started.

    Where it has started itself again (a master and its workers), the first of them. Never this program
    nor one that it descends from. None where nobody, or nobody who can be seen, runs that command there.
    """
    return await trio.to_thread.run_sync(_head_of, port, argv, abandon_on_cancel=True)


def _head_of(port: int, argv: Sequence[str]) -> psutil.Process | None:
    owner = _owner_of(port)
    if owner is None:
        return None
    own = {process.pid for process in lineage(psutil.Process())}
    head: psutil.Process | None = None
    for process in lineage(owner):
        if process.pid in own:
            break
        if head is None:
            head = process if runs(process, argv) else None
        elif _words(process) == _words(head):
            head = process
        else:
            break
    return head


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def lineage(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield a process and its ancestors, nearest first, as far as they can be seen."""
    yield process
    try:
        yield from process.parents()
    except psutil.Error:
        return


def runs(process: psutil.Process, argv: Sequence[str]) -> bool:
    """Tell whether a process was started with this very command.

    All arguments must be the same, and the program's name too. In front of it there may be an interpreter
    with its flags, which a script's first line puts there; nothing else, for `tmux new llama-server` is not
    llama-server, and to stop it would stop whatever else runs in that tmux.
    """
    words = _words(process)
    extra = len(words) - len(argv)
    if extra < 0 or words[extra + 1 :] != list(argv[1:]):
        return False
    if extra and not (
        _INTERPRETER.fullmatch(_basename(words[0])) and all(word.startswith("-") for word in words[1:extra])
    ):
        return False
    return _basename(words[extra]) == _basename(argv[0])


def _basename(word: str) -> str:
    return os.path.basename(word)  # noqa: PTH119 - no file here
