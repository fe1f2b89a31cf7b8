"""Memory of a process tree: the most that it can hold, as a cross-check of what a gauge saw come or go.

A gauge sees all of a machine, so whatever another program took during a start looks as if the engine had taken it. Where
the kernel tells what a server and its descendants hold, they cannot have taken more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil
import trio

_PROC: Final = Path("/proc")
# Devices through which a process takes memory that the kernel does not count as its own.
_GPU_DEVICES: Final = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/nvhost", "/dev/nvmap", "/dev/accel")
# Page tables, stacks of the kernel, sockets: what is not in the figures of a process.
_KERNEL_SHARE: Final = 0.05
_KERNEL_BYTES: Final = 16 * 1024 * 1024


async def most_held_by(pid: int, port: int) -> int | None:
    """Return the most bytes of main memory that a server's process and its descendants can hold.

    None where that cannot be told: not on Linux, one of them may not be looked at or has a GPU open, or whoever listens
    on the port is none of them (the client of a container's daemon, for one). Reads files in a thread; cancellation
    leaves that thread until it is done.
    """
    if not sys.platform.startswith("linux"):
        return None
    return await trio.to_thread.run_sync(_most_held_by, pid, port, abandon_on_cancel=True)


def _most_held_by(pid: int, port: int) -> int | None:
    try:
        head = psutil.Process(pid)
        pids = [pid, *(child.pid for child in head.children(recursive=True))]
        listens = any(_listens(psutil.Process(each), port) for each in pids)
        return most_held(pids) if listens else None
    except (psutil.Error, OSError, ValueError):
        return None


def _listens(process: psutil.Process, port: int) -> bool:
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr.port == port
        for one in process.net_connections(kind="tcp")
    )


def most_held(pids: Iterable[int], proc: Path = _PROC) -> int | None:
    """Return the most bytes that processes can hold together; None where one of them has a GPU open.

    Source: `smaps_rollup`, proc_pid_smaps(5); memory that several of them share is counted once (Pss).

    Raises:
        OSError: one of them cannot be looked at.
        ValueError: its figures cannot be read.
    """
    held = 0
    for pid in pids:
        if any(path.startswith(_GPU_DEVICES) for path in _open_files(proc / str(pid))):
            return None
        held += _figure((proc / str(pid) / "smaps_rollup").read_text(), "Pss")
    return held + int(held * _KERNEL_SHARE) + _KERNEL_BYTES


def _open_files(folder: Path) -> Iterator[str]:
    for name in os.listdir(folder / "fd"):  # noqa: PTH208 - names are all that is needed
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(folder / "fd" / name)  # noqa: PTH115 - what is no path is wanted too


def _figure(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"no {name} in smaps_rollup")
