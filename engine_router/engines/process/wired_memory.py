"""The time that macOS needs to take wired memory back, without which a process must not be killed.

A process that is killed with a large model in wired memory may leave that memory behind in the kernel until the machine
is restarted; one that ends by itself gives it back within seconds. Source: jundot/omlx issue 2184 (414 GiB lost).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import psutil

BYTES_PER_S: Final = 10e9
"""Wired memory for which a process gets one second. 400 GB took 11 s by that report; this is four times as long."""


def _wired_bytes() -> int:
    return int(getattr(psutil.virtual_memory(), "wired", 0))  # only macOS and BSD have it


def least_grace_s(platform: str = sys.platform, wired_bytes: Callable[[], int] = _wired_bytes) -> float:
    """Return the seconds that a process gets to end, whatever else is configured; 0 but on macOS.

    What is wired is known of the whole machine only; next to a model the rest is small.
    """
    return wired_bytes() / BYTES_PER_S if platform == "darwin" else 0.0
