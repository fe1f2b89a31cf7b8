"""Gauges of the host's memory: /proc/meminfo on Linux, psutil elsewhere; less where a control group has a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

import attrs
import psutil
import trio

from engine_router.memory.cgroup import Allowance, ControlGroups
from engine_router.memory.reading import GaugeUnreadable, MemoryReading

# More digits are no amount of memory, whatever stands in for /proc/meminfo.
_MAX_DIGITS: Final = 19


@attrs.frozen(eq=False, repr=False)
class MeminfoGauge:
    """The gauge of one line of /proc/meminfo, on Linux.

    Where /proc/meminfo is not the kernel's own but a FUSE file (as lxcfs mounts it in containers), its
    server may stall; choose `psutil` there, which reads in a thread.
    """

    field: Literal["MemAvailable", "MemFree"] = "MemAvailable"
    path: Path = attrs.field(default=Path("/proc/meminfo"), converter=Path)
    groups: ControlGroups = attrs.field(factory=ControlGroups)
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return self.field.lower()

    async def read(self) -> MemoryReading:
        """Read the line and the total. Takes some 50 microseconds; a cancellation is seen before it.

        Where a control group has a limit, what it uses is read in a thread, which a cancellation abandons.
        """
        await trio.lowlevel.checkpoint()
        # On the event loop on purpose: the kernel writes these files from numbers that it holds in
        # memory, so no disk is touched, and a thread would cost more than the read itself.
        host = self._of_host()
        if self.groups.limit() is None:
            return host
        allowed = await trio.to_thread.run_sync(
            self.groups.allowance, abandon_on_cancel=True, limiter=self._one_thread
        )
        return _within(host, allowed, with_cache=self.field == "MemAvailable")

    def read_now(self) -> MemoryReading:
        """Read the line and the total, for callers that are in a thread.

        Raises:
            GaugeUnreadable: nothing could be read.
        """
        return _within(self._of_host(), self.groups.allowance(), with_cache=self.field == "MemAvailable")

    def _of_host(self) -> MemoryReading:
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise GaugeUnreadable(f"cannot read {self.path}: {error.strerror or error}") from error
        available = _meminfo_bytes(lines, self.field)
        if available is None:
            raise GaugeUnreadable(f"{self.path} has no readable {self.field} line")
        return MemoryReading(available, _meminfo_bytes(lines, "MemTotal"))


def _within(host: MemoryReading, allowed: Allowance | None, *, with_cache: bool) -> MemoryReading:
    """Return what this process may have of the host's memory."""
    if allowed is None:
        return host
    available = allowed.available_bytes if with_cache else allowed.free_bytes
    total = allowed.limit_bytes if host.total_bytes is None else min(host.total_bytes, allowed.limit_bytes)
    return MemoryReading(min(host.available_bytes, available), total)


def _meminfo_bytes(lines: Sequence[bytes], field: str) -> int | None:
    prefix = field.encode() + b":"
    for line in lines:
        if line.startswith(prefix):
            words = line.split()
            # The kernel's "kB" are units of 1024 bytes.
            is_number = len(words) > 1 and words[1].isdigit() and len(words[1]) < _MAX_DIGITS
            return int(words[1]) * 1024 if is_number else None
    return None


class VirtualMemory(Protocol):
    """The part of psutil's answer that is used."""

    @property
    def available(self) -> int:
        """Bytes."""

    @property
    def total(self) -> int:
        """Bytes."""


@attrs.frozen(eq=False, repr=False)
class PsutilGauge:
    """The gauge of what psutil calls available, on macOS, Windows and the rest."""

    ask: Callable[[], VirtualMemory] = psutil.virtual_memory
    groups: ControlGroups = attrs.field(factory=ControlGroups)
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return "psutil"

    async def read(self) -> MemoryReading:
        """Ask psutil in a thread, which a cancellation abandons."""
        return await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True, limiter=self._one_thread)

    def _ask(self) -> MemoryReading:
        try:
            memory = self.ask()
        except (psutil.Error, OSError, RuntimeError) as error:
            raise GaugeUnreadable(f"psutil cannot read the host's memory: {error}") from error
        return _within(
            MemoryReading(memory.available, memory.total), self.groups.allowance(), with_cache=True
        )
