"""The programs that hold a pool's memory: NVML tells them for a GPU, the system's process table for the main memory."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

import attrs
import psutil
import trio

from engine_router.guards.foreign_text import shown
from engine_router.memory.host import MeminfoGauge, PsutilGauge
from engine_router.memory.nvml import NvmlGauge
from engine_router.memory.reading import Gauge

LISTED: Final = 8
"""The programs that are listed, those that hold most."""

# Whoever holds less is not worth a line.
_LEAST_BYTES: Final = 128 * 2**20
# More processes than this are not looked at.
_MOST_PROCESSES: Final = 20_000
_COMMAND_CHARS: Final = 2_000


@attrs.frozen(kw_only=True)
class RunningProcess:
    """A process as the system's table has it.

    Attributes:
        held_bytes: main memory that it alone has; None where the system does not tell.
        command: its command line, as far as it may be seen.
    """

    pid: int
    parent: int | None = None
    name: str = ""
    command: str = ""
    held_bytes: int | None = None


@attrs.frozen(kw_only=True)
class Holder:
    """A program that holds memory of a pool.

    Attributes:
        name: of its process.
        command: its command line, by which it can be recognised; shown to nobody, since it may hold secrets.
        held_bytes: None where its share is not told, as for a GPU under Windows.
    """

    pid: int
    name: str
    command: str = attrs.field(default="", repr=False)
    held_bytes: int | None = None


class NvmlProcess(Protocol):
    """A process on a GPU, as NVML tells it."""

    @property
    def pid(self) -> int:
        """Its id, in the system's own process table."""

    @property
    def usedGpuMemory(self) -> int | None:  # noqa: N802
        """Bytes; None where the driver does not tell."""


class NvmlProcesses(Protocol):
    """The part of the module `pynvml` that lists processes, under pynvml's own names."""

    @property
    def NVMLError(self) -> type[Exception]:  # noqa: N802
        """Base of all its errors."""

    def nvmlInit(self) -> None:  # noqa: N802
        """Load the driver's library; counts how often."""

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        """Find a GPU."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object, /) -> Iterable[NvmlProcess]:  # noqa: N802
        """List those that compute."""

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: object, /) -> Iterable[NvmlProcess]:  # noqa: N802
        """List those that draw."""


def _load_pynvml() -> NvmlProcesses:
    import pynvml  # noqa: PLC0415 - optional, and only those with a GPU of NVIDIA's need it

    module: NvmlProcesses = pynvml
    return module


def running_processes() -> Iterator[RunningProcess]:
    """Yield the processes of this machine, as far as they may be seen. Blocks."""
    wanted = ["pid", "ppid", "name", "memory_info"]
    for process in itertools.islice(psutil.process_iter(wanted), _MOST_PROCESSES):
        memory = process.info["memory_info"]
        # What is shared is page cache as a rule, which the system takes back when it needs it. Only Linux tells.
        held = None if memory is None else max(0, memory.rss - getattr(memory, "shared", 0))
        yield RunningProcess(
            pid=process.pid, parent=process.info["ppid"], name=process.info["name"] or "", held_bytes=held
        )


def command_of(pid: int) -> str:
    """Return the command line of a process; empty where it may not be seen. Blocks."""
    with contextlib.suppress(psutil.Error, OSError):
        return " ".join(psutil.Process(pid).cmdline())[:_COMMAND_CHARS]
    return ""


def listeners(ports: Collection[int]) -> set[int]:
    """Return the processes that listen on TCP ports of this machine, as far as they may be seen. Blocks."""
    with contextlib.suppress(psutil.Error, OSError):
        return {
            one.pid
            for one in psutil.net_connections(kind="tcp")
            if one.pid is not None
            and one.status == psutil.CONN_LISTEN
            and one.laddr
            and one.laddr.port in ports
        }
    return set()


@attrs.frozen(kw_only=True)
class Own:
    """The router's own: processes that count, with their descendants, as the router's or a resident's.

    Attributes:
        pids: the processes that are known.
        ports: ports of this machine on which residents listen whose process is not known.
    """

    pids: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()

    @classmethod
    def of(cls, endpoints: Iterable[tuple[int | None, str]]) -> Own:
        """Return what belongs to this router and to residents.

        Args:
            endpoints: the process of each resident, where that is known, and its address.
        """
        pids, ports = {os.getpid()}, set[int]()
        for pid, url in endpoints:
            parts = urlsplit(url)
            if pid is not None:
                pids.add(pid)
            elif parts.port is not None and parts.hostname in {"127.0.0.1", "::1", "localhost"}:
                ports.add(parts.port)
        return cls(pids=frozenset(pids), ports=frozenset(ports))


@attrs.define(eq=False, repr=False)
class MemoryHolders:
    """The programs beside the router's own that hold the memory of a gauge.

    Attributes:
        processes: yields the processes of this machine.
        command_of: returns the command line of one.
        listeners: returns the processes that listen on some ports.
        load: imports NVML.
    """

    gauge: Gauge
    processes: Callable[[], Iterable[RunningProcess]] = running_processes
    command_of: Callable[[int], str] = command_of
    listeners: Callable[[Collection[int]], set[int]] = listeners
    load: Callable[[], NvmlProcesses] = _load_pynvml
    _library: NvmlProcesses | None = attrs.field(init=False, default=None)
    # As for the gauge: a driver can hang for minutes.
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def can_tell(self) -> bool:
        """Whether it can be told who holds this memory."""
        return isinstance(self.gauge, (NvmlGauge, MeminfoGauge, PsutilGauge))

    async def read(self, own: Own) -> tuple[Holder, ...] | None:
        """Look in a thread, which a cancellation abandons; None where nothing can be told.

        Returns those that hold most, the largest first.
        """
        if not self.can_tell:
            return None
        return await trio.to_thread.run_sync(
            self._read_blocking, own, abandon_on_cancel=True, limiter=self._one_thread
        )

    def _read_blocking(self, own: Own) -> tuple[Holder, ...] | None:
        try:
            processes = {process.pid: process for process in self.processes()}
        except (psutil.Error, OSError):
            return None
        held = self._held(processes)
        if held is None:
            return None
        ours = _family(processes, own.pids | (self.listeners(own.ports) if own.ports else set()))
        others = [
            (pid, size)
            for pid, size in held.items()
            if pid not in ours and (size is None or size >= _LEAST_BYTES)
        ]
        others.sort(key=lambda entry: (-(entry[1] or 0), entry[0]))
        return tuple(
            Holder(
                pid=pid,
                name=shown(processes[pid].name if pid in processes else "") or "another process",
                command=self.command_of(pid),
                held_bytes=size,
            )
            for pid, size in others[:LISTED]
        )

    def _held(self, processes: Mapping[int, RunningProcess]) -> dict[int, int | None] | None:
        """Return what each process holds, in bytes."""
        if isinstance(self.gauge, NvmlGauge):
            return self._held_on_gpu(self.gauge.index)
        return {
            pid: process.held_bytes for pid, process in processes.items() if process.held_bytes is not None
        }

    def _held_on_gpu(self, index: int) -> dict[int, int | None] | None:
        try:
            nvml = self._library or self.load()
        except ImportError:
            return None
        found: dict[int, int | None] = {}
        try:
            if self._library is None:
                nvml.nvmlInit()
                self._library = nvml
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            # A program that does both is in both lists, with the same figure.
            for listed in (
                nvml.nvmlDeviceGetComputeRunningProcesses(handle),
                nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
            ):
                for process in itertools.islice(listed, _MOST_PROCESSES):
                    size = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
                    if found.get(process.pid) is None:
                        found[process.pid] = size
        except nvml.NVMLError:
            self._library = None  # a driver that was reloaded knows nothing of before
            return None
        return found


def _family(processes: Mapping[int, RunningProcess], heads: Collection[int]) -> set[int]:
    """Return processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        if process.parent is not None:
            children.setdefault(process.parent, []).append(process.pid)
    found, ahead = set[int](), list(heads)
    while ahead:
        if (pid := ahead.pop()) not in found:
            found.add(pid)
            ahead += children.get(pid, ())
    return found
