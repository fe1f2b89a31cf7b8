"""The gauge of one discrete NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from engine_router.memory.reading import GaugeUnreadable, MemoryReading


class NvmlMemory(Protocol):
    """The memory of one GPU as NVML tells it, in bytes."""

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


@attrs.define(eq=False, repr=False)
class NvmlGauge:
    """The gauge of one discrete NVIDIA GPU's free memory, as its driver tells it.

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
        """The name for logs and messages."""
        return f"nvml:{self.index}"

    async def read(self) -> MemoryReading:
        """Ask the driver in a thread, which a cancellation abandons."""
        return await trio.to_thread.run_sync(
            self._read_blocking, abandon_on_cancel=True, limiter=self._one_thread
        )

    def _read_blocking(self) -> MemoryReading:
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
        return MemoryReading(int(memory.free), int(memory.total))

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
