"""The gauges: what each reads, and that a failure is never a number."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import Literal

import attrs
import psutil
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine_router.memory import (
    GAUGE_KINDS,
    CommandGauge,
    Gauge,
    GaugeUnreadable,
    MeminfoGauge,
    MemoryReading,
    NullGauge,
    NvmlGauge,
    PsutilGauge,
    footprint,
    make_gauge,
)
from engine_router.memory.cgroup import ControlGroups
from engine_router.memory.command import number_of_bytes

MIB = 2**20
GIB = 2**30

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or runs sh")


async def read(gauge: Gauge) -> MemoryReading:
    with trio.fail_after(200):
        return await gauge.read()


def meminfo(path: Path, field: Literal["MemAvailable", "MemFree"] = "MemAvailable") -> MeminfoGauge:
    """A gauge of a host without control groups."""
    return MeminfoGauge(field, path, ControlGroups(path.parent / "nowhere"))


# --- choosing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "platform", "name"),
    [
        ("auto", "linux", "memavailable"),
        ("auto", "darwin", "psutil"),
        ("auto", "win32", "psutil"),
        ("memavailable", "linux", "memavailable"),
        ("memfree", "linux", "memfree"),
        ("psutil", "linux", "psutil"),
        ("nvml", "linux", "nvml:3"),
        ("command", "linux", "command free-memory"),
        ("none", "linux", "none"),
    ],
)
def test_each_kind_makes_its_gauge(kind: str, platform: str, name: str) -> None:
    assert kind in GAUGE_KINDS
    assert make_gauge(kind, gpu=3, command=["free-memory", "--now"], platform=platform).name == name


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown gauge 'memory'; known are auto, .*, none"):
        make_gauge("memory")


def test_a_command_gauge_needs_a_command() -> None:
    with pytest.raises(ValueError, match="needs a command"):
        make_gauge("command")


# --- readings ------------------------------------------------------------------------------------------


def test_a_footprint_is_what_was_taken_and_never_negative() -> None:
    assert footprint(MemoryReading(100 * GIB), MemoryReading(19 * GIB)) == 81 * GIB
    assert footprint(MemoryReading(19 * GIB), MemoryReading(100 * GIB)) == 0
    assert footprint(MemoryReading(100 * GIB), MemoryReading(0, measured=False)) == 0


async def test_the_null_gauge_says_that_it_does_not_measure() -> None:
    assert (await read(NullGauge())).measured is False


# --- the host's memory ---------------------------------------------------------------------------------

MEMINFO = "MemTotal:       32000 kB\nMemFree:         2000 kB\nMemAvailable:   16000 kB\nBuffers:  5 kB\n"


async def test_meminfo_gives_the_chosen_line_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    assert await read(meminfo(path)) == MemoryReading(16000 * 1024, 32000 * 1024)
    assert await read(meminfo(path, "MemFree")) == MemoryReading(2000 * 1024, 32000 * 1024)
    path.write_text(MEMINFO.replace("16000", "17000"))
    assert (await read(meminfo(path))).available_bytes == 17000 * 1024


@pytest.mark.parametrize(
    "text",
    ["", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: -5 kB\n", "XMemAvailable: 5 kB\n", "\xff"],
)
async def test_meminfo_without_the_line_is_unreadable(text: str, tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(text)
    with pytest.raises(GaugeUnreadable, match="no readable MemAvailable line"):
        await read(meminfo(path))


async def test_meminfo_without_a_total_is_still_a_reading(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemFree: 5 kB\n")
    assert await read(meminfo(path, "MemFree")) == MemoryReading(5 * 1024, None)


async def test_a_missing_meminfo_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(GaugeUnreadable, match=r"cannot read .*meminfo: No such file"):
        await read(meminfo(tmp_path / "meminfo"))


@linux_only
@pytest.mark.parametrize("kind", ["auto", "memavailable", "memfree", "psutil"])
async def test_this_hosts_memory_can_be_read(kind: str) -> None:
    reading = await read(make_gauge(kind))
    assert reading.total_bytes == psutil.virtual_memory().total
    assert 0 < reading.available_bytes <= reading.total_bytes


async def test_a_failing_psutil_is_unreadable() -> None:
    def ask() -> MemoryReading:
        raise psutil.AccessDenied(msg="not for you")

    with pytest.raises(GaugeUnreadable, match="not for you"):
        await read(PsutilGauge(ask))  # type: ignore[arg-type]


async def test_a_psutil_that_hangs_can_be_left() -> None:
    stuck = threading.Event()

    def ask() -> MemoryReading:
        stuck.wait(20)
        raise OSError("late")

    with trio.fail_after(200), trio.move_on_after(0.05) as scope:
        await PsutilGauge(ask).read()  # type: ignore[arg-type]
    stuck.set()
    assert scope.cancelled_caught


# --- one GPU -------------------------------------------------------------------------------------------


class FakeError(Exception):
    pass


class FakeNotSupported(FakeError):
    pass


@attrs.frozen
class FakeMemory:
    free: int
    total: int


@attrs.define
class FakeNvml:
    """A driver; `failures` are raised one after the other by the calls named."""

    failures: list[tuple[str, Exception]] = attrs.field(factory=list)
    calls: list[str] = attrs.field(factory=list)
    hang: threading.Event | None = None
    NVMLError: type[Exception] = FakeError
    NVMLError_NotSupported: type[Exception] = FakeNotSupported

    def _called(self, name: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.calls.append(name)
        if self.failures and self.failures[0][0] == name:
            raise self.failures.pop(0)[1]

    def nvmlInit(self) -> None:  # noqa: N802
        self._called("init")

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        self._called("handle")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> FakeMemory:  # noqa: N802
        self._called("memory")
        if self.hang is not None:
            self.hang.wait(20)
        assert handle == 1
        return FakeMemory(70 * GIB, 80 * GIB)


async def test_nvml_reads_one_gpu_and_initialises_once() -> None:
    nvml = FakeNvml()
    gauge = NvmlGauge(1, lambda: nvml)
    assert not nvml.calls
    for _ in range(3):
        assert await read(gauge) == MemoryReading(70 * GIB, 80 * GIB)
    assert nvml.calls == ["init", "handle", "memory", "memory", "memory"]


async def test_nvml_without_its_package_names_the_remedy() -> None:
    def load() -> FakeNvml:
        raise ImportError("pynvml")

    with pytest.raises(GaugeUnreadable, match=r"pip install 'engine-router\[nvidia\]'"):
        await read(NvmlGauge(0, load))


@pytest.mark.parametrize(
    ("call", "says"),
    [("init", "no NVIDIA driver"), ("handle", "GPU 1 cannot be read"), ("memory", "GPU 1 cannot be read")],
)
async def test_a_failing_driver_is_unreadable_and_asked_anew(call: str, says: str) -> None:
    nvml = FakeNvml([(call, FakeError("GPU is lost"))])
    gauge = NvmlGauge(1, lambda: nvml)
    with pytest.raises(GaugeUnreadable, match=f"{says} .*GPU is lost"):
        await read(gauge)
    assert (await read(gauge)).available_bytes == 70 * GIB


async def test_after_a_failed_read_the_gpu_is_looked_up_anew() -> None:
    nvml = FakeNvml([("memory", FakeError("GPU is lost"))])
    gauge = NvmlGauge(1, lambda: nvml)
    with pytest.raises(GaugeUnreadable):
        await read(gauge)
    await read(gauge)
    assert nvml.calls == ["init", "handle", "memory"] * 2


async def test_a_gpu_without_memory_of_its_own_names_the_other_gauges() -> None:
    nvml = FakeNvml([("memory", FakeNotSupported("Not Supported"))])
    with pytest.raises(GaugeUnreadable, match="use the gauge memfree or memavailable"):
        await read(NvmlGauge(1, lambda: nvml))


async def test_a_driver_that_hangs_can_be_left_and_holds_one_thread() -> None:
    nvml = FakeNvml(hang=threading.Event())
    gauge = NvmlGauge(1, lambda: nvml)
    for _ in range(3):
        with trio.fail_after(200), trio.move_on_after(0.2) as scope:
            await gauge.read()
        assert scope.cancelled_caught
    assert nvml.calls == ["init", "handle", "memory"]
    assert nvml.hang is not None
    nvml.hang.set()
    assert (await read(gauge)).available_bytes == 70 * GIB


async def test_the_real_nvml_reads_where_there_is_one() -> None:
    try:
        reading = await read(make_gauge("nvml"))
    except GaugeUnreadable as error:
        pytest.skip(str(error))
    assert reading.total_bytes is not None
    assert 0 <= reading.available_bytes <= reading.total_bytes


# --- a command -----------------------------------------------------------------------------------------


def printing(text: str) -> CommandGauge:
    return CommandGauge([sys.executable, "-c", f"print({text!r})"])


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("12345", 12345),
        ("0", 0),
        ("12 MiB", 12 * MIB),
        ("12MiB", 12 * MIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("7 KiB", 7 * 1024),
        ("7 kB", 7000),
        ("7 MB", 7 * 10**6),
        ("7.25GB", 7_250_000_000),
        ("1 TiB", 2**40),
        ("99 B", 99),
        ("99 bytes free", 99),
        ("1.2e+10", 12_000_000_000),
        ("9007199254740993", 9007199254740993),
        ("gpu0: used 3 GiB, free 5 GiB", 5 * GIB),
        ("1 GiB\n2 GiB\n", 2 * GIB),
        ("total=9 free=4", 4),
        ("(12 MiB)", 12 * MIB),
    ],
)
async def test_the_last_number_counts_with_its_unit(text: str, size_bytes: int) -> None:
    assert await read(printing(text)) == MemoryReading(size_bytes, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "gpu0",
        "93%",
        "12Gi",
        "12Gb",
        "-5",
        "5 GiB -1",
        "1e30",
        "1e999999999",
        "1e99999999 TiB",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "0e99999999999999999999 GiB",
        "9223372036854775807 KiB",
        "nan",
    ],
)
async def test_what_is_no_number_of_bytes_is_unreadable(text: str) -> None:
    with pytest.raises(GaugeUnreadable, match="no number"):
        await read(printing(text))


@given(
    st.text(alphabet="0123456789.eE+-kKMGTiB ,;|\n\t%x\u0663")
    | st.from_regex(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,40})? ?[KMGT]?i?B?", fullmatch=True)
)
def test_whatever_a_command_prints_is_an_amount_or_no_number(text: str) -> None:
    with contextlib.suppress(ValueError):  # and no other error
        assert 0 <= number_of_bytes(text) < 2**63


async def test_a_command_that_prints_without_end_is_killed_and_unreadable() -> None:
    code = "import sys\nwhile True: sys.stdout.write('1' * 65536)"
    with pytest.raises(GaugeUnreadable, match="printed more than 1 MiB"):
        await read(CommandGauge([sys.executable, "-S", "-c", code], limit_s=60))


async def test_a_failing_command_is_unreadable_with_what_it_said() -> None:
    code = "import sys; print(5); sys.exit('no such GPU')"
    with pytest.raises(GaugeUnreadable, match="ended with status 1: no such GPU"):
        await read(CommandGauge([sys.executable, "-c", code]))


async def test_a_missing_command_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(GaugeUnreadable, match="cannot be run"):
        await read(CommandGauge([str(tmp_path / "missing")]))


@linux_only
async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    gauge = CommandGauge(["sh", "-c", f"trap '' TERM; sleep 60 & echo $$ $! > {noted}; wait"], limit_s=1.0)
    with pytest.raises(GaugeUnreadable, match="took more than 1 s"):
        await read(gauge)
    await all_gone(noted)


@linux_only
async def test_a_cancelled_command_is_killed_with_its_children(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    gauge = CommandGauge(["sh", "-c", f"sleep 60 & echo $$ $! > {noted}; wait"], limit_s=60)
    with trio.fail_after(200), trio.move_on_after(1) as scope:
        await gauge.read()
    assert scope.cancelled_caught
    await all_gone(noted)


async def all_gone(noted: Path) -> None:
    pids = [int(word) for word in noted.read_text().split()]
    assert len(pids) == 2
    with trio.fail_after(200):
        while any(alive(pid) for pid in pids):
            await trio.sleep(0.01)


def alive(pid: int) -> bool:
    # A zombie that nobody has collected yet is dead.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
