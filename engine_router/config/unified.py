"""Unified memory: machines whose GPU uses their main memory.

It matters twice: what an engine parks in main memory is not freed there, and CUDA counts the page cache as
used.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Final

from engine_router.guards.limits import MAX_NAME_FILE_BYTES

# Where Linux tells what machine this is: the board's name of a PC or server, the name in a device tree, and
# what NVIDIA's driver calls each GPU.
_PLACES: Final = (
    "sys/class/dmi/id/product_name",
    "proc/device-tree/model",
    "sys/firmware/devicetree/base/model",
)
_GPUS: Final = "proc/driver/nvidia/gpus"
_NAMES: Final = ("dgx spark", "dgx_spark", "gb10", "jetson", "tegra")


def is_unified_machine(
    system: str = sys.platform, machine: str | None = None, root: Path = Path("/")
) -> bool:
    """Tell whether this is a machine that is known to have one memory for all: Apple silicon, GB10, Jetson.

    Others, such as AMD's APUs, cannot be told from those with a card of their own: the configuration says so.

    Args:
        system: as `sys.platform` names it.
        machine: as `platform.machine()` names it.
        root: where the system's files are.

    Reads a few lines that the kernel holds in memory.
    """
    if system == "darwin":
        return (platform.machine() if machine is None else machine) == "arm64"
    if system != "linux":
        return False
    said = [_read(root / place) for place in _PLACES]
    said += [_read(path) for path in sorted((root / _GPUS).glob("*/information"))]
    return any(name in text for text in said for name in _NAMES)


def is_unified(configured: object, gauge: str, *, machine: bool | None = None) -> bool:
    """Tell whether the memory of a pool is main memory that a GPU uses.

    Args:
        configured: what the configuration says: True, False, or `auto`.
        gauge: kind of the pool's gauge. `memfree` is for such machines only; `nvml` reads a card of its own, and
            `kubernetes`, `command` and `none` what may be anywhere.
        machine: whether this machine has one memory for all; found out when None.
    """
    if isinstance(configured, bool):
        return configured
    if gauge == "memfree":
        return True
    if gauge in ("nvml", "kubernetes", "command", "none"):
        return False
    return is_unified_machine() if machine is None else machine


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NAME_FILE_BYTES).decode("utf-8", "replace").lower()
    except OSError:
        return ""
