"""Memory of a process tree: the most that it can hold, as a cross-check of what a gauge saw come or go.

A gauge sees all of a machine, so whatever another program took during a start looks as if the engine had taken it. Where
the kernel tells what a server and its descendants hold, they cannot have taken more.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
import trio

from engine_router.memory.host import MeminfoGauge
from engine_router.memory.reading import Gauge

_PROC: Final = Path("/proc")
# Devices through which a process takes memory that the kernel does not count as its own.
_GPU_DEVICES: Final = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/nvhost", "/dev/nvmap", "/dev/accel")
# Page tables, stacks of the kernel, sockets: what is not in the figures of a process.
_KERNEL_SHARE: Final = 0.05
_KERNEL_BYTES: Final = 16 * 1024 * 1024


async def most_taken(gauge: Gauge, pid: int | None, base_url: str) -> float:
    """Return the most bytes of a gauge's memory that a server and its descendants can have taken; infinity if unknown.

    It is known where the gauge reads `MemAvailable`, for a process that listens at the URL, itself or a descendant (the
    client of a container's daemon does not), if none of them has a GPU open. Reads files in a thread, which a
    cancellation leaves behind until it is done.
    """
    if pid is None or not isinstance(gauge, MeminfoGauge) or gauge.field != "MemAvailable":
        return math.inf
    held = await trio.to_thread.run_sync(most_held_by, pid, urlsplit(base_url).port, abandon_on_cancel=True)
    return math.inf if held is None else held


def most_held_by(pid: int, port: int | None) -> int | None:
    """Return the most bytes that a server and its descendants hold; None where that is not known, as on a GPU. Blocks.

    Args:
        port: at which one of them listens, as proof that it is the server.
    """
    try:
        head = psutil.Process(pid)
        pids = [pid, *(child.pid for child in head.children(recursive=True))]
        listens = any(_listens(psutil.Process(each), port) for each in pids)
        return most_held(pids) if listens else None
    except (psutil.Error, OSError, ValueError):
        return None


def _listens(process: psutil.Process, port: int | None) -> bool:
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
        held += _held((proc / str(pid) / "smaps_rollup").read_text())
    return held + int(held * _KERNEL_SHARE) + _KERNEL_BYTES


def _open_files(folder: Path) -> Iterator[str]:
    for name in os.listdir(folder / "fd"):  # noqa: PTH208 - names are all that is needed
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(folder / "fd" / name)  # noqa: PTH115 - what is no path is wanted too


def _held(text: str) -> int:
    lines = (line.partition(":") for line in text.splitlines())
    figures = {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith("kB")}
    if "Pss" not in figures:
        raise ValueError("no Pss in smaps_rollup")
    return sum(figures.get(key, 0) for key in ("Pss", "Private_Hugetlb", "Shared_Hugetlb"))
