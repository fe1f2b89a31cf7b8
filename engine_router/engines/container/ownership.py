"""Labels that tell which router a container belongs to, and whether that router still lives."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Final

import psutil
from attrs import asdict, frozen

from engine_router.engines.container.daemon import Daemon, DaemonError
from engine_router.upstream.control_answers import json_or_none

OWNER: Final = "engine-router.owner"
"""The label of every container that a router starts."""
ENGINE: Final = "engine-router.engine"
MODEL: Final = "engine-router.model"

# How far the beginning of one process may seem to move, in seconds: clocks are set right.
_SAME_S: Final = 3.0
# Daemons mount these files from a folder that has the id of the container as its name.
_OWN_CONTAINER: Final = re.compile(
    r"^\S+ \S+ \S+ \S*/([0-9a-f]{64})/\S* /etc/(?:hostname|hosts|resolv\.conf) ", re.MULTILINE
)


@frozen
class Owner:
    """The router that started a container.

    Attributes:
        pid: its process, in the process table that `table` names.
        began_at: when that began, in seconds since 1970.
        table: the process table, and the boot, where the platform tells them; "" elsewhere.
        container: id of the container that it runs in itself; "" in none.
        ticks: when it began by the kernel's own clock, which nobody sets; 0 where that is not told.
    """

    pid: int
    began_at: float
    table: str = ""
    container: str = ""
    ticks: int = 0

    @classmethod
    def this(cls) -> Owner:
        """Return this program. Blocks for a moment: it looks at /proc."""
        process = psutil.Process()
        table, ticks = _process_table(), _ticks_of(process.pid)
        return cls(process.pid, process.create_time(), table, own_container(), ticks)

    @classmethod
    def of(cls, label: str) -> Owner | None:
        """Read a label; None where no router of ours wrote it."""
        found = json_or_none(label)
        try:
            return cls(
                int(found["pid"]),
                float(found["began_at"]),
                str(found["table"]),
                str(found["container"]),
                int(found.get("ticks", 0)),
            )
        except (TypeError, KeyError, ValueError):
            return None

    def label(self) -> str:
        """Return the label of what it starts."""
        return json.dumps(asdict(self))

    async def is_gone(self, here: Owner, daemon: Daemon) -> bool:
        """Tell whether it lives no more, for certain.

        Args:
            here: this program.
        """
        if self.table.partition(" ")[0] == here.table.partition(" ")[0]:
            return self.table != here.table or not self._is_alive()
        if not self.container:
            return False  # it is outside of the container that this program is in: nothing of it can be seen
        try:
            return not (await daemon.state(self.container)).is_running
        except DaemonError as error:
            if error.is_missing:
                return True
            raise

    def _is_alive(self) -> bool:
        # In a container it is always process 1, and the kernel gives numbers of process tables again: one that was started
        # anew within seconds differs by this alone.
        ticks = _ticks_of(self.pid)
        if self.ticks and ticks and ticks != self.ticks:
            return False
        return _is_alive(self.pid, self.began_at)


def own_container() -> str:
    """Return the id of the container that this program runs in; "" in none, or where that is not told."""
    try:
        found = _OWN_CONTAINER.search(Path("/proc/self/mountinfo").read_text("utf-8", "replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def _process_table() -> str:
    """Name the table that a process id belongs to: that of a container or of the machine, and its boot."""
    try:
        table = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - the link is followed
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
    return f"{table} {boot}"


def _ticks_of(pid: int) -> int:
    """Return when a process began, in ticks since the boot; 0 where Linux does not say so."""
    try:
        # The name before the last parenthesis may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_alive(pid: int, began_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - began_at) < _SAME_S and began_at < time.time() + _SAME_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


async def leftovers(daemon: Daemon, here: Owner) -> list[str]:
    """Return the ids of the containers whose router lives no more.

    Raises:
        DaemonError: the daemon did not say.
    """
    found: list[str] = []
    for container, label in await daemon.labelled(OWNER):
        owner = Owner.of(label)
        if owner is not None and await owner.is_gone(here, daemon):
            found.append(container)
    return found
