"""Gauges: each reads the free memory of one pool, in bytes.

Which number is the right one depends on what the next engine will look at before it loads: engines on
the CPU ask for `MemAvailable`, CUDA on a machine with unified memory counts the page cache as used
(`MemFree`), a discrete GPU has its own memory (NVML), and other systems have psutil.

A gauge that cannot read raises `GaugeUnreadable`. It never returns a number that it did not measure:
a zero or an old value in place of an error would look like memory that was taken or freed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal, Protocol

import attrs
import psutil
import trio

GAUGE_KINDS: Final = ("auto", "memavailable", "memfree", "psutil", "nvml", "command", "none")
"""What `make_gauge` accepts."""


class GaugeUnreadable(Exception):
    """The free memory could not be read; the message says of what, why, and where known the remedy.

    It means that nothing is known, never that memory is free or taken. The next read may succeed.
    """


@attrs.frozen
class Reading:
    """One look at a pool's memory."""

    available_bytes: int
    """What a new engine could take now, in bytes."""
    total_bytes: int | None = None
    """The size of the whole pool in bytes; None where the gauge cannot tell."""
    measured: bool = True
    """False for the stand-in of a pool that is not measured: its numbers mean nothing."""


class Gauge(Protocol):
    """Reads the free memory of one pool."""

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""

    async def read(self) -> Reading:
        """Read the memory now.

        Raises:
            GaugeUnreadable: nothing could be read.

        Cancelling it leaves nothing behind except, for a gauge that asks in a thread, that thread
        until its call returns.
        """


def footprint(before: Reading, after: Reading) -> int:
    """Give the bytes taken between two readings, 0 where memory grew or was not measured.

    Made for the readings just before an engine's start and once it is ready. For the bytes that a stop
    gave back, swap the arguments.
    """
    if not (before.measured and after.measured):
        return 0
    return max(0, before.available_bytes - after.available_bytes)


# --- the host's memory ---------------------------------------------------------------------------------


@attrs.frozen
class MeminfoGauge:
    """Linux: one line of /proc/meminfo.

    Where /proc/meminfo is not the kernel's own but a FUSE file (as lxcfs mounts it in containers), its
    server may stall; choose `psutil` there, which reads in a thread.
    """

    field: Literal["MemAvailable", "MemFree"] = "MemAvailable"
    path: Path = attrs.field(default=Path("/proc/meminfo"), converter=Path)

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""
        return self.field.lower()

    async def read(self) -> Reading:
        """Read the line and the total. Takes some 20 microseconds; a cancellation is seen before it."""
        await trio.lowlevel.checkpoint()
        # On the event loop on purpose: the kernel writes this file from counters that it holds in
        # memory, so no disk is touched, and a thread would cost more than the read itself.
        return self.read_now()

    def read_now(self) -> Reading:
        """Read the line and the total, for callers that are in a thread.

        Raises:
            GaugeUnreadable: nothing could be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise GaugeUnreadable(f"cannot read {self.path}: {error.strerror or error}") from error
        available = _meminfo_bytes(lines, self.field)
        if available is None:
            raise GaugeUnreadable(f"{self.path} has no readable {self.field} line")
        return Reading(available, _meminfo_bytes(lines, "MemTotal"))


def _meminfo_bytes(lines: Sequence[bytes], field: str) -> int | None:
    prefix = field.encode() + b":"
    for line in lines:
        if line.startswith(prefix):
            words = line.split()
            # The kernel's "kB" are units of 1024 bytes.
            return int(words[1]) * 1024 if len(words) > 1 and words[1].isdigit() else None
    return None


class VirtualMemory(Protocol):
    """The part of psutil's answer that is used."""

    @property
    def available(self) -> int:
        """Bytes."""

    @property
    def total(self) -> int:
        """Bytes."""


@attrs.frozen
class PsutilGauge:
    """macOS, Windows and the rest: what psutil calls available."""

    ask: Callable[[], VirtualMemory] = psutil.virtual_memory
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""
        return "psutil"

    async def read(self) -> Reading:
        """Ask psutil in a thread, which a cancellation abandons."""
        try:
            memory = await trio.to_thread.run_sync(self.ask, abandon_on_cancel=True, limiter=self._one_thread)
        except (psutil.Error, OSError, RuntimeError) as error:
            raise GaugeUnreadable(f"psutil cannot read the host's memory: {error}") from error
        return Reading(memory.available, memory.total)


# --- one GPU -------------------------------------------------------------------------------------------


class NvmlMemory(Protocol):
    """What NVML tells about one GPU's memory, in bytes."""

    @property
    def free(self) -> int:
        """Bytes."""

    @property
    def total(self) -> int:
        """Bytes."""


class Nvml(Protocol):
    """The part of the module `pynvml` that is used, under pynvml's own names."""

    @property
    def NVMLError(self) -> type[Exception]:  # noqa: N802
        """Base of all its errors."""

    @property
    def NVMLError_NotSupported(self) -> type[Exception]:  # noqa: N802
        """This GPU has no such number."""

    def nvmlInit(self) -> None:  # noqa: N802
        """Load the driver's library."""

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        """Find a GPU."""

    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> NvmlMemory:  # noqa: N802
        """Read a GPU's memory."""


def load_pynvml() -> Nvml:
    """Import `pynvml`, of the optional package nvidia-ml-py.

    Raises:
        ImportError: it is not installed.
    """
    import pynvml  # noqa: PLC0415 - optional, and only those with a GPU of NVIDIA's need it

    module: Nvml = pynvml
    return module


@attrs.define
class NvmlGauge:
    """The free memory of one discrete NVIDIA GPU, as its driver tells it.

    NVML is initialised once and never shut down: others in this process may use it too.
    """

    index: int = 0
    """Which GPU, in NVML's order (that of nvidia-smi)."""
    load: Callable[[], Nvml] = load_pynvml
    _library: Nvml | None = attrs.field(init=False, default=None)
    _handle: object = attrs.field(init=False, default=None)
    # The driver can hang for minutes. One thread at a time then waits for it, not one for every sample.
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""
        return f"nvml:{self.index}"

    async def read(self) -> Reading:
        """Ask the driver in a thread, which a cancellation abandons."""
        return await trio.to_thread.run_sync(
            self._read_blocking, abandon_on_cancel=True, limiter=self._one_thread
        )

    def _read_blocking(self) -> Reading:
        nvml = self._loaded()
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self.index)
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except nvml.NVMLError_NotSupported as error:
            raise GaugeUnreadable(
                f"GPU {self.index} has no memory of its own to read (NVML: {error}); "
                "where it shares the host's memory use the gauge memfree or memavailable"
            ) from error
        except nvml.NVMLError as error:
            # A driver that was reloaded or a GPU that was reset knows the old handle no more.
            self._library = self._handle = None
            raise GaugeUnreadable(f"GPU {self.index} cannot be read (NVML: {error})") from error
        return Reading(int(memory.free), int(memory.total))

    def _loaded(self) -> Nvml:
        if self._library is not None:
            return self._library
        try:
            nvml = self.load()
        except ImportError as error:
            raise GaugeUnreadable(
                "the nvml gauge needs the package nvidia-ml-py: pip install 'engine-router[nvidia]'"
            ) from error
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise GaugeUnreadable(f"no NVIDIA driver to ask (NVML: {error})") from error
        self._library = nvml
        return nvml


# --- whatever a command says ---------------------------------------------------------------------------

_UNITS: Final = {
    "": 1,
    "B": 1,
    "bytes": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# A unit may stand apart ("12 MiB"); whatever else touches the number belongs to it and is checked, so
# that "12Gi" or "93%" is refused instead of being read as 12 or 93 bytes.
_NUMBER: Final = re.compile(
    r"(?<![\w.-])(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    r"(?:[ \t]+(?P<apart>[KMGT]iB|[kMGT]B|bytes|B)\b|(?P<attached>[^\s,;|]*))"
)
_MAX_BYTES: Final = 2**63


def _number_of_bytes(text: str) -> int:
    """Give the last number in `text` in bytes.

    Raises:
        ValueError: there is none, or it is no amount of memory.
    """
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        raise ValueError("it printed no number")
    found = numbers[-1]
    factor = _UNITS.get(found["apart"] or found["attached"] or "")
    amount = Decimal(found["number"])
    # Compared before it is multiplied or made an integer: 1e999999999 would be one of a gigabyte.
    if factor is None or not 0 <= amount < _MAX_BYTES:
        raise ValueError(f"it printed {found[0]!r}, which is no number of bytes")
    return int(amount * factor)


def _words(argv: Iterable[str]) -> tuple[str, ...]:
    return tuple(argv)


async def _kill_with_children(process: trio.Process) -> None:
    # At once: a command that only looks has nothing to tidy up, and run_process waits, shielded, until
    # it is gone. The whole group, because a shell's own death would leave its pipeline running.
    await trio.lowlevel.checkpoint()
    if process.returncode is not None:
        return
    with contextlib.suppress(OSError):  # it ended meanwhile, or runs as another user
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


@attrs.frozen
class CommandGauge:
    """The last number that a command prints: bytes, or with a unit behind it.

    Units are KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000) and B.
    `nvidia-smi --query-gpu=memory.free --format=csv,noheader -i 0` fits as it is.
    """

    argv: tuple[str, ...] = attrs.field(converter=_words)
    limit_s: float = 5.0
    """Seconds that the command may take before it is killed, with all that it started."""

    def __attrs_post_init__(self) -> None:
        if not self.argv:
            raise ValueError("the command gauge needs a command")

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""
        return f"command {self.argv[0]}"

    async def read(self) -> Reading:
        """Run the command. A cancellation kills it, with all that it started, and waits for its end."""
        result = None
        try:
            with trio.move_on_after(self.limit_s):
                result = await trio.run_process(
                    self.argv,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    deliver_cancel=_kill_with_children,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise GaugeUnreadable(f"{self.name} cannot be run: {error}") from error
        if result is None:
            raise GaugeUnreadable(f"{self.name} took more than {self.limit_s:g} s")
        return self._understand(result)

    def _understand(self, result: subprocess.CompletedProcess[bytes]) -> Reading:
        if result.returncode != 0:
            said = result.stderr.decode(errors="replace").strip()[-200:]
            raise GaugeUnreadable(
                f"{self.name} ended with status {result.returncode}" + (f": {said}" if said else "")
            )
        try:
            return Reading(_number_of_bytes(result.stdout.decode(errors="replace")))
        except ValueError as error:
            raise GaugeUnreadable(f"{self.name}: {error}") from error


# --- nothing -------------------------------------------------------------------------------------------


@attrs.frozen
class NullGauge:
    """For pools whose memory is not ours to read, like a remote machine's: never anything to wait for."""

    @property
    def name(self) -> str:
        """What is read, for logs and messages."""
        return "none"

    async def read(self) -> Reading:
        """Give the stand-in reading at once."""
        await trio.lowlevel.checkpoint()
        return Reading(0, None, measured=False)


def make_gauge(
    kind: str, *, gpu: int = 0, command: Sequence[str] = (), platform: str = sys.platform
) -> Gauge:
    """Build the gauge that a pool's configuration asks for. Nothing is read or imported yet.

    Args:
        kind: one of `GAUGE_KINDS`; `auto` is `memavailable` on Linux and `psutil` elsewhere.
        gpu: the GPU that `nvml` reads.
        command: what `command` runs.
        platform: what `auto` decides by.

    Raises:
        ValueError: an unknown kind, or `command` without a command.
    """
    if kind == "auto":
        kind = "memavailable" if platform == "linux" else "psutil"
    makers: dict[str, Callable[[], Gauge]] = {
        "memavailable": MeminfoGauge,
        "memfree": lambda: MeminfoGauge("MemFree"),
        "psutil": PsutilGauge,
        "nvml": lambda: NvmlGauge(gpu),
        "command": lambda: CommandGauge(command),
        "none": NullGauge,
    }
    if kind not in makers:
        raise ValueError(f"unknown gauge {kind!r}; known are {', '.join(GAUGE_KINDS)}")
    return makers[kind]()
