"""Stalls for want of memory, as Linux tells them (PSI): the share of time in which programs wait for memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engine_router.memory.host import MeminfoGauge, PsutilGauge
from engine_router.memory.reading import Gauge

_PATH: Final = Path("/proc/pressure/memory")
_SOME: Final = re.compile(r"^some avg10=(\d{1,3}\.\d+) ", re.MULTILINE)

Stalls = Callable[[], float | None]
"""Returns the percent of the last 10 s in which some program waited for memory; None where that is not told."""


def linux_stalls(path: Path = _PATH) -> float | None:
    """Read /proc/pressure/memory; None where the kernel has none. Takes some microseconds: no disk is touched."""
    try:
        found = _SOME.search(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else float(found[1])


def no_stalls() -> float | None:
    """Tell nothing: of a GPU's memory, and of systems other than Linux, nobody knows."""
    return None


def stalls_of(gauge: Gauge, platform: str) -> Stalls:
    """Return what tells the stalls for want of the memory that a gauge shows."""
    is_main = isinstance(gauge, (MeminfoGauge, PsutilGauge))
    return linux_stalls if is_main and platform == "linux" else no_stalls
