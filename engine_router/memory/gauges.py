"""The gauges that a pool can have, and how each is made.

Which number is the right one depends on what the next engine will look at before it loads: engines on
the CPU ask for `MemAvailable`, CUDA on a machine with unified memory counts the page cache as used
(`MemFree`), a discrete GPU has its own memory (NVML), and other systems have psutil.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from engine_router.memory.command import CommandGauge
from engine_router.memory.host import MeminfoGauge, PsutilGauge
from engine_router.memory.nvml import NvmlGauge
from engine_router.memory.reading import Gauge, MemoryReading

GAUGE_KINDS: Final = ("auto", "memavailable", "memfree", "psutil", "nvml", "command", "none")
"""The kinds that `make_gauge` accepts."""


@attrs.frozen(eq=False, repr=False)
class NullGauge:
    """The gauge of pools whose memory is not ours to read, like a remote machine's: never anything to wait for."""

    @property
    def name(self) -> str:
        """The name for logs and messages."""
        return "none"

    async def read(self) -> MemoryReading:
        """Give the stand-in reading at once."""
        await trio.lowlevel.checkpoint()
        return MemoryReading(0, None, measured=False)


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
