"""What Linux tells about processes: their CPU time to the nanosecond, their memory, and where they may run."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RESET_PEAK = "5"  # for clear_refs: see proc(5)


@dataclass(frozen=True)
class Cores:
    """Where the load side and the proxy run; the same set where there is only one core."""

    load: frozenset[int]
    proxy: frozenset[int]

    @property
    def are_apart(self) -> bool:
        """Tell whether the load side cannot take time from the proxy."""
        return not self.load & self.proxy


def cores() -> Cores:
    """Choose one core for the load side and one for the proxy."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(allowed[:1]), frozenset(allowed[-1:]))


@contextlib.contextmanager
def on(chosen: frozenset[int]) -> Iterator[None]:
    """Start what is started in the block on these cores: children inherit where they may run."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """Return how many files may be open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name before the last parenthesis may hold anything.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds, user and system, that processes have used in all their threads."""
    return sum(map(_cpu_of, pids))


def _cpu_of(pid: int) -> float:
    # A process's own clock (clock_getcpuclockid): nanoseconds, where /proc counts hundredths of a second.
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        pass
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def programs_s(cores: frozenset[int]) -> float:
    """Return the seconds that programs, and others on the same hardware, have had of cores; counted in ticks, so roughly.

    What the kernel does by itself, for the network above all, is not among them.
    """
    ticks = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (PROC / "stat").read_text().splitlines():
            name, *fields = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _idle, _waits, _hard, _soft, stolen = map(int, fields[:8])
                ticks += user + nice + system + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pids: Sequence[int]) -> float:
    """Return the resident memory of processes now, in MB."""
    return sum(_status_kb(pid, "VmRSS") for pid in pids) / 1024


def peak_mb(pids: Sequence[int]) -> float:
    """Return the largest resident memory since `reset_peak`, in MB."""
    return sum(_status_kb(pid, "VmHWM") for pid in pids) / 1024


def reset_peak(pids: Sequence[int]) -> bool:
    """Begin a new peak. False where the kernel does not let us: then the peak is that of the whole life."""
    try:
        for pid in pids:
            (PROC / str(pid) / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _status_kb(pid: int, key: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def described() -> dict[str, str | int | float]:
    """Return what the figures depend on, and nothing that names this machine."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }
