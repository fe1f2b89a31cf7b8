"""The hardware of this machine: its memory, its GPUs, and whether these use the main memory."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import psutil
from attrs import frozen

from engine_router.config.unified import is_unified_machine
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_NAME_FILE_BYTES
from engine_router.memory.nvml import Nvml

_DRIVER: Final = "proc/driver/nvidia"
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_BOARDS: Final = ("sys/class/dmi/id/product_name", "proc/device-tree/model")
_DISPLAY: Final = "0x03"  # the class of a PCI device that draws or computes
_MOST_GPUS: Final = 64


@frozen
class Gpu:
    """A graphics card, or what stands for one.

    Attributes:
        name: as its driver calls it.
        index: in NVML's order, which the gauge `nvml` goes by; None for what NVML does not know.
        memory_bytes: memory of its own; None where it has none, or does not tell.
    """

    name: str
    index: int | None = None
    memory_bytes: int | None = None


@frozen
class Hardware:
    """The hardware of a machine.

    Attributes:
        machine: what it is called; empty where it does not tell.
        memory_bytes: main memory.
        gpus: its GPUs.
        is_unified: the GPU uses the main memory.
        is_cuda_unified: so it does, and CUDA counts the page cache as used: GB10, Jetson.
        unknown: what could not be found out, and how it can be.
    """

    machine: str
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    is_unified: bool
    is_cuda_unified: bool
    unknown: tuple[str, ...]


class NvmlInventory(Nvml, Protocol):
    """The part of the module `pynvml` that counts GPUs as well, under pynvml's own names."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Count the GPUs."""

    def nvmlDeviceGetName(self, handle: object, /) -> str | bytes:  # noqa: N802
        """Return a GPU's name."""


def load_nvml() -> NvmlInventory:
    """Import `pynvml`, of the optional package nvidia-ml-py.

    Raises:
        ImportError: it is not installed.
    """
    import pynvml  # noqa: PLC0415 - optional

    module: NvmlInventory = pynvml
    return module


def find_hardware(
    system: str = sys.platform,
    processor: str | None = None,
    root: Path = Path("/"),
    load: Callable[[], NvmlInventory] = load_nvml,
    memory_bytes: Callable[[], int] = lambda: psutil.virtual_memory().total,
) -> Hardware:
    """Return the hardware of this machine, and what of it could not be found out. Blocks: a driver may take its time.

    Args:
        system: as `sys.platform` names it.
        processor: as `platform.machine()` names it.
        root: where the system's files are.
        load: imports NVML's binding.
        memory_bytes: tells the size of the main memory.
    """
    processor = platform.machine() if processor is None else processor
    unified = is_unified_machine(system, processor, root)
    gpus, unknown = _nvidia(root, system, load)
    gpus += [gpu for gpu in _other_cards(root) if not (gpus and gpu.name.startswith("NVIDIA"))]
    if system == "darwin" and processor == "arm64":
        gpus.append(Gpu("Apple GPU"))
    elif not gpus and system != "linux":
        unknown.append("GPUs other than NVIDIA's cannot be looked for on this system")
    return Hardware(
        machine=next(filter(None, (_text(root / place) for place in _BOARDS)), ""),
        memory_bytes=memory_bytes(),
        gpus=tuple(gpus),
        is_unified=unified,
        is_cuda_unified=unified and system == "linux",
        unknown=tuple(unknown),
    )


def _nvidia(root: Path, system: str, load: Callable[[], NvmlInventory]) -> tuple[list[Gpu], list[str]]:
    """Return NVIDIA's GPUs as NVML tells them; as the driver's files do, and what is missing, where that fails."""
    has_driver = (root / _DRIVER).is_dir() or system == "win32"
    try:
        nvml = load()
    except ImportError:
        cards = _driver_cards(root)
        if not cards:
            return [], []
        remedy = "pip install 'engine-router[nvidia]'"
        return cards, [f"how much memory the NVIDIA GPU has: that needs {remedy}"]
    try:
        nvml.nvmlInit()
        return [_card(nvml, index) for index in range(min(nvml.nvmlDeviceGetCount(), _MOST_GPUS))], []
    except nvml.NVMLError as error:
        cards = _driver_cards(root)
        if cards or (has_driver and system == "linux"):
            return cards, [
                f"what the NVIDIA driver says of its GPUs: {shown(str(error))}; does nvidia-smi work?"
            ]
        return [], []


def _card(nvml: NvmlInventory, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    words = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    try:
        total: int | None = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # GB10 and Jetson: there is no memory of its own
        total = None
    return Gpu(shown(words), index, total)


def _driver_cards(root: Path) -> list[Gpu]:
    """Return NVIDIA's GPUs as its driver lists them in /proc."""
    found = []
    for path in sorted((root / _DRIVER / "gpus").glob("*/information"))[:_MOST_GPUS]:
        lines = dict(line.partition(":")[::2] for line in _text(path, lines=True).splitlines())
        found.append(Gpu(shown(lines.get("Model", "").strip() or "NVIDIA GPU")))
    return found


def _other_cards(root: Path) -> Iterator[Gpu]:
    """Yield the cards that the kernel draws with, as /sys tells of them."""
    for device in sorted((root / "sys/class/drm").glob("card[0-9]*/device"))[:_MOST_GPUS]:
        vendor = _VENDORS.get(_text(device / "vendor"))
        if vendor is None or not _text(device / "class").startswith(_DISPLAY):
            continue
        size = _text(device / "mem_info_vram_total")
        yield Gpu(f"{vendor} GPU", None, int(size) if size.isdigit() and int(size) else None)


def _text(path: Path, *, lines: bool = False) -> str:
    """Return what a file of the system says; empty where it does not."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_NAME_FILE_BYTES).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""
    return text if lines else shown(text)
