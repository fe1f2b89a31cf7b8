"""Ports: a free one to start on, and who owns one that is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import psutil
import trio


def free_port() -> int:
    """Return a port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_of(base_url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    url = urlsplit(base_url)
    return url.hostname or "127.0.0.1", url.port or (443 if url.scheme == "https" else 80)


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


def lineage(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield a process and its ancestors, nearest first, as far as they can be seen."""
    yield process
    try:
        yield from process.parents()
    except psutil.Error:
        return


def runs(process: psutil.Process, argv: Sequence[str]) -> bool:
    """Tell whether a process was started with this very command.

    All arguments must be the same, and the program's name too. In front of it there may be an interpreter,
    which a script's first line puts there.
    """
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    if len(words) < len(argv) or words[len(words) - len(argv) + 1 :] != list(argv[1:]):
        return False
    return os.path.basename(words[len(words) - len(argv)]) == os.path.basename(argv[0])  # noqa: PTH119 - no file here
