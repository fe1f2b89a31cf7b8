"""The use and the temperature of NVIDIA GPUs, as their driver tells them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs
import trio

_ASK_AGAIN_S: Final = 600.0  # where there is no driver, or it does not answer
_ANSWER_S: Final = 2.0
_MOST_GPUS: Final = 32


class NvmlUtilization(Protocol):
    """The use of one GPU as NVML tells it."""

    @property
    def gpu(self) -> int:
        """Percent of the time in which it did something."""


class NvmlSensors(Protocol):
    """The part of the module `pynvml` that is used here, under pynvml's own names."""

    @property
    def NVMLError(self) -> type[Exception]:  # noqa: N802
        """Base of all its errors."""

    @property
    def NVML_TEMPERATURE_GPU(self) -> int:  # noqa: N802
        """The sensor on the chip."""

    def nvmlInit(self) -> None:  # noqa: N802
        """Load the driver's library."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Count the GPUs."""

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        """Find a GPU."""

    def nvmlDeviceGetUtilizationRates(self, handle: object, /) -> NvmlUtilization:  # noqa: N802
        """Read a GPU's use."""

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int, /) -> int:  # noqa: N802
        """Read a GPU's temperature, in degrees Celsius."""


def load_sensors() -> NvmlSensors:
    """Import `pynvml`, of the optional package nvidia-ml-py.

    Raises:
        ImportError: it is not installed.
    """
    import pynvml  # noqa: PLC0415 - optional, and only those with a GPU of NVIDIA's need it

    module: NvmlSensors = pynvml
    return module


@attrs.frozen
class GpuReading:
    """One look at a GPU. None: it does not tell."""

    use_percent: int | None
    temperature_c: int | None


@attrs.define(eq=False, repr=False)
class GpuActivity:
    """The GPUs of this machine. NVML is initialised once and never shut down: others in this process may use it too."""

    load: Callable[[], NvmlSensors] = load_sensors
    _library: NvmlSensors | None = attrs.field(init=False, default=None)
    _ask_again_at: float = attrs.field(init=False, default=-math.inf)
    # As for the gauge: the driver can hang for minutes.
    _one_thread: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    async def read(self) -> Mapping[int, GpuReading]:
        """Ask the driver in a thread. Returns nothing where there is no GPU, driver or library to ask, or no answer yet.

        Cancellation leaves a thread behind until its call returns.
        """
        if trio.current_time() < self._ask_again_at:
            return {}
        with trio.move_on_after(_ANSWER_S):
            found = await trio.to_thread.run_sync(
                self._read_blocking, abandon_on_cancel=True, limiter=self._one_thread
            )
            if found is not None:
                return found
        self._ask_again_at = trio.current_time() + _ASK_AGAIN_S
        return {}

    def _read_blocking(self) -> Mapping[int, GpuReading] | None:
        nvml = self._library
        try:
            if nvml is None:
                nvml = self.load()
        except ImportError:
            return None
        try:
            if self._library is None:
                nvml.nvmlInit()
                self._library = nvml
            count = min(nvml.nvmlDeviceGetCount(), _MOST_GPUS)
            return {index: _reading(nvml, index) for index in range(count)} or None
        except nvml.NVMLError:
            self._library = None  # a driver that was reloaded knows nothing of before
            return None


def _reading(nvml: NvmlSensors, index: int) -> GpuReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    use = temperature = None
    with contextlib.suppress(nvml.NVMLError):  # not every GPU tells
        use = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with contextlib.suppress(nvml.NVMLError):
        temperature = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return GpuReading(use, temperature)
