"""The process tree on Windows: a job object whose members die with the last handle to it, the router's.

Written from the documentation of job objects; it runs on Windows only. The three calls of kernel32 stand
behind `Jobs`, so that the rest is tested with injected ones.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import trio

_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMIT_INFORMATION = 9
_BASIC_ACCOUNTING_INFORMATION = 1
_CREATE_NEW_PROCESS_GROUP = 0x200


class Jobs(Protocol):
    """The calls on job objects that are needed."""

    def create(self) -> int:
        """Create a job that kills its members when its handle closes. Returns the handle."""
        ...

    def assign(self, job: int, process: int) -> None:
        """Put a process, by its handle, into a job."""
        ...

    def terminate(self, job: int) -> None:
        """Kill every member."""
        ...

    def members(self, job: int) -> int:
        """Count the living members."""
        ...

    def close(self, job: int) -> None:
        """Close the handle, which kills whoever is still a member."""
        ...


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class _Accounting(ctypes.Structure):
    _fields_ = (
        ("TotalUserTime", ctypes.c_int64),
        ("TotalKernelTime", ctypes.c_int64),
        ("ThisPeriodTotalUserTime", ctypes.c_int64),
        ("ThisPeriodTotalKernelTime", ctypes.c_int64),
        ("TotalPageFaultCount", ctypes.c_uint32),
        ("TotalProcesses", ctypes.c_uint32),
        ("ActiveProcesses", ctypes.c_uint32),
        ("TotalTerminatedProcesses", ctypes.c_uint32),
    )


class KernelJobs:
    """Job objects through kernel32. `kernel32` is injected where the code is tested elsewhere."""

    def __init__(self, kernel32: Any) -> None:
        self._kernel32 = kernel32

    def create(self) -> int:
        """Create a job that kills its members when its handle closes."""
        self._kernel32.CreateJobObjectW.restype = ctypes.c_void_p  # a handle may be wider than an int
        job = int(self._checked(self._kernel32.CreateJobObjectW(None, None)))
        limits = _ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
        self._checked(
            self._kernel32.SetInformationJobObject(
                ctypes.c_void_p(job), _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
            )
        )
        return job

    def assign(self, job: int, process: int) -> None:
        """Put a process into a job."""
        self._checked(self._kernel32.AssignProcessToJobObject(ctypes.c_void_p(job), ctypes.c_void_p(process)))

    def terminate(self, job: int) -> None:
        """Kill every member."""
        self._kernel32.TerminateJobObject(ctypes.c_void_p(job), 1)

    def members(self, job: int) -> int:
        """Count the living members."""
        accounting = _Accounting()
        self._checked(
            self._kernel32.QueryInformationJobObject(
                ctypes.c_void_p(job),
                _BASIC_ACCOUNTING_INFORMATION,
                ctypes.byref(accounting),
                ctypes.sizeof(accounting),
                None,
            )
        )
        return int(accounting.ActiveProcesses)

    def close(self, job: int) -> None:
        """Close the handle, which kills whoever is still a member."""
        self._kernel32.CloseHandle(ctypes.c_void_p(job))

    @staticmethod
    def _checked(result: Any) -> Any:
        if not result:
            raise OSError("a call on a job object failed")
        return result


class JobTree:
    """A process tree on Windows. There are no signals to a group: whatever is asked, all of it is ended at once."""

    def __init__(self, pid: int, job: int, jobs: Jobs) -> None:
        self.pid = pid
        self._job = job
        self._jobs = jobs
        self._is_dead = False

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, env: Mapping[str, str], cwd: str | None, jobs: Jobs | None = None
    ) -> tuple[trio.Process, JobTree]:
        """Start a process in a job of its own, its output on one pipe.

        Raises:
            OSError: it cannot be run, or not put into a job.
        """
        jobs = jobs or KernelJobs(ctypes.WinDLL("kernel32", use_last_error=True))  # type: ignore[attr-defined,unused-ignore]
        process = await trio.lowlevel.open_process(  # type: ignore[call-overload,unused-ignore]
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            creationflags=_CREATE_NEW_PROCESS_GROUP,
        )
        job: int | None = None
        try:
            job = jobs.create()
            jobs.assign(job, int(process._proc._handle))  # type: ignore[attr-defined,unused-ignore]  # noqa: SLF001
        except BaseException:
            process.kill()
            if job is not None:
                jobs.close(job)
            raise
        return process, cls(process.pid, job, jobs)

    async def signal(self, name: str) -> None:  # noqa: ARG002 - the seam's signature
        """End all of it."""
        self.abandon()

    async def kill(self) -> None:
        """End all of it."""
        self.abandon()

    def abandon(self) -> None:
        """End all of it."""
        if not self._is_dead:
            self._jobs.terminate(self._job)

    async def is_alive(self) -> bool:
        """Tell whether any of it still runs."""
        return not self._is_dead and self._jobs.members(self._job) > 0

    def members(self) -> Sequence[int]:
        """List none: what members leave behind is looked for on Linux only."""
        return ()

    def mark_dead(self) -> None:
        """Note that all of it is dead. The job's handle is closed."""
        if not self._is_dead:
            self._is_dead = True
            self._jobs.close(self._job)
