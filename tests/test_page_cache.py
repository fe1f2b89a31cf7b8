"""Reading ahead and dropping: within free memory, slice by slice, and only what is a file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.memory import page_cache
from engine_router.memory.page_cache import SLICE_BYTES, drop, free_bytes, read_ahead
from engine_router.models.weights import weight_files
from engine_router.residency.page_cache import Prefetch

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="nothing is done elsewhere")


def plenty() -> int:
    return 2**50


def cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache, as mincore(2) tells."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found) == 0
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in found) * mmap.PAGESIZE


def a_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(MIB) * (size // MIB))
        file.flush()
        os.fsync(file.fileno())  # what is not written yet cannot be dropped
    return path


@linux
async def test_a_file_is_dropped_and_read_ahead(tmp_path: Path) -> None:
    path = a_file(tmp_path / "model", 40 * MIB)
    await drop([path])
    assert cached_bytes(path) == 0
    assert await read_ahead([path], 10**12, free=plenty) == 40 * MIB
    assert cached_bytes(path) == 40 * MIB
    await drop([path])
    assert cached_bytes(path) == 0


@linux
@pytest.mark.parametrize("streams", [1, 4])
async def test_several_streams_read_each_byte_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    path = a_file(tmp_path / "model", 61 * MIB)
    await drop([path])
    places: list[tuple[int, int]] = []
    at_once, most = 0, 0

    def sendfile(nowhere: int, descriptor: int, offset: int, size: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        places.append((offset, size))
        time.sleep(0.02)  # so that the others come, too
        at_once -= 1
        return real(nowhere, descriptor, offset, size)

    real = os.sendfile
    monkeypatch.setattr(os, "sendfile", sendfile)
    assert await read_ahead([path], 10**12, free=plenty, streams=streams) == 61 * MIB
    ends = [offset + size for offset, size in sorted(places)]
    assert all(offset >= end for (offset, _), end in zip(sorted(places)[1:], ends, strict=False))
    assert cached_bytes(path) >= 61 * MIB
    assert most == streams


@linux
async def test_a_file_system_that_only_copies_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    path = a_file(tmp_path / "model", 9 * MIB)
    await drop([path])
    monkeypatch.setattr(os, "sendfile", refuses)
    assert await read_ahead([path], 10**12, free=plenty) == 9 * MIB
    assert cached_bytes(path) == 9 * MIB


@linux
async def test_files_are_read_in_their_order_up_to_a_limit(tmp_path: Path) -> None:
    paths = [a_file(tmp_path / name, 16 * MIB) for name in "abc"]
    await drop(paths)
    assert await read_ahead(paths, 20 * MIB, free=plenty) == 20 * MIB
    assert cached_bytes(paths[0]) == 16 * MIB
    assert cached_bytes(paths[1]) >= 4 * MIB
    assert cached_bytes(paths[2]) == 0


@linux
async def test_no_more_is_read_than_there_is_free_memory(tmp_path: Path) -> None:
    path = a_file(tmp_path / "model", 64 * MIB)
    await drop([path])
    looks = 0

    def shrinking() -> int:
        nonlocal looks
        looks += 1
        return 100 * MIB - looks * SLICE_BYTES

    # 92, 84, 76, 68 and 60 MiB are free; 50 of them are not to be touched.
    assert (
        await read_ahead([path], 10**12, reserve_bytes=50 * MIB, free=shrinking, streams=1) == 5 * SLICE_BYTES
    )
    assert looks == 6
    assert await read_ahead([path], 10**12, reserve_bytes=50 * MIB, free=lambda: 50 * MIB) == 0


@linux
async def test_what_is_no_file_is_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    path = a_file(tmp_path / "model", MIB)
    names = ("pipe", "folder", "missing", "empty", "model")
    with trio.fail_after(200):
        await drop([tmp_path / name for name in names])
        assert await read_ahead([tmp_path / name for name in names], 10**9, free=plenty) == MIB
    assert path.exists()


@linux
async def test_a_disk_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file(tmp_path / "model", MIB)

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "sendfile", fails)
    monkeypatch.setattr(os, "posix_fadvise", fails)
    assert await read_ahead([path], 10**9, free=plenty) == 0
    await drop([path])


@linux
async def test_it_can_be_cancelled_between_slices_and_leaves_nothing_open(tmp_path: Path) -> None:
    path = a_file(tmp_path / "model", 64 * MIB)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    looks = 0
    with trio.CancelScope() as scope:

        def free() -> int:
            nonlocal looks
            looks += 1
            if looks == 3:
                trio.from_thread.run_sync(scope.cancel)
            return plenty()

        await read_ahead([path], 10**12, free=free, streams=1)
    assert scope.cancelled_caught
    assert looks == 3
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with trio.CancelScope() as scope:
        scope.cancel()
        await drop([path])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_elsewhere_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "IS_SUPPORTED", False)
    path = a_file(tmp_path / "model", MIB)
    assert await read_ahead([path], 10**9, free=plenty) == 0
    await drop([path])


@linux
def test_free_memory_is_what_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
    assert abs(free_bytes() - free) < 2**30


@linux
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), max_size=4),
    limit=st.integers(0, 70 * MIB),
    free=st.integers(0, 100),
)
def test_never_more_than_allowed_and_never_less_than_possible(
    sizes: list[int], limit: int, free: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for number, size in enumerate(sizes):
        paths.append(folder / str(number))
        with paths[-1].open("wb") as file:
            file.truncate(size * MIB)

    async def read() -> int:
        return await read_ahead(paths, limit, reserve_bytes=0, free=lambda: free * MIB)

    whole = min(sum(sizes) * MIB, limit)
    done = trio.run(read)
    assert done <= whole
    if free * MIB >= SLICE_BYTES:
        assert done == whole


# Which files


def test_the_files_of_a_model(tmp_path: Path) -> None:
    names = [f"m-0000{part}-of-00002.gguf" for part in (1, 2)]
    assert weight_files(a_file(tmp_path / names[0], MIB)) == tuple(tmp_path / name for name in names)
    assert weight_files(a_file(tmp_path / "one.gguf", MIB)) == (tmp_path / "one.gguf",)
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("b.safetensors", "a.safetensors", "config.json"):
        (folder / name).touch()
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]
    with pytest.raises(FileNotFoundError):
        weight_files(tmp_path / "none")


CONFIG = """
[scheduling]
{scheduling}
[pools.default]
unified = false
{pool}
[engines.one]
type = "process"
argv = ["server", "-m", "{folder}/one.gguf", "--port", "{{port}}"]
models = ["x"]
[engines.many]
type = "process"
argv = ["server", "-m", "{{path}}", "--port", "{{port}}"]
[engines.other]
type = "ollama"
[models.y]
engine = "many"
path = "{folder}/many.gguf"
"""
ONE, MANY = ResidentId("one"), ResidentId("many", "y")


@pytest.fixture
def prefetch(tmp_path: Path) -> Callable[..., Prefetch]:
    for name in ("one.gguf", "many.gguf"):
        a_file(tmp_path / name, 8 * MIB)

    def make(scheduling: str = "", pool: str = "") -> Prefetch:
        return Prefetch(parse_config(CONFIG.format(folder=tmp_path, scheduling=scheduling, pool=pool)))

    return make


SLEEPY = """
[engines.a]
type = "process"
argv = ["server", "-m", "{file}", "--port", "{{port}}"{word}]
models = ["x"]
sleep = {{ {sleep} }}
"""


@linux
@pytest.mark.parametrize(
    ("sleep", "word", "is_asleep", "reads"),
    [
        ('kind = "vllm", level = 1', "", True, False),  # its weights are in main memory
        ('kind = "vllm", level = 1', "", False, True),
        ('kind = "vllm", level = 2', "", True, True),
        ('kind = "sglang"', "", True, False),
        ('kind = "custom", path = "/s", wake = [{ path = "/w" }]', "", True, True),
        ('kind = "vllm", level = 2', ', "--load-mode", "dio"', False, False),  # it reads past the cache
        ('kind = "vllm", level = 2', ', "-dio"', False, False),
    ],
)
async def test_nothing_is_read_that_the_engine_does_not_read_from_the_cache(
    tmp_path: Path, sleep: str, word: str, is_asleep: bool, reads: bool
) -> None:
    file = a_file(tmp_path / "one.gguf", 8 * MIB)
    text = SLEEPY.format(file=file, sleep=sleep, word=word) + "[pools.default]\nunified = false\n"
    got = await Prefetch(parse_config(text)).ahead(ResidentId("a"), is_asleep=is_asleep)
    assert got == (8 * MIB if reads else 0)


@linux
@pytest.mark.parametrize(
    ("scheduling", "pool", "reads", "drops"),
    [
        ("", "", True, False),
        ("", 'gauge = "nvml"', True, False),
        ("read_ahead = false", "", False, False),
        ("", 'gauge = "memfree"', False, True),
        ("read_ahead = true", 'gauge = "memfree"', True, True),
    ],
)
async def test_what_is_done_where(
    scheduling: str,
    pool: str,
    reads: bool,
    drops: bool,
    prefetch: Callable[..., Prefetch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = prefetch(scheduling, pool)
    for resident, path in ((ONE, tmp_path / "one.gguf"), (MANY, tmp_path / "many.gguf")):
        await drop([path])
        assert await files.ahead(resident, is_asleep=False) == (8 * MIB if reads else 0)
        # The kernel may take some of it back at once, where memory is short.
        cached = cached_bytes(path)
        assert cached > 4 * MIB if reads else cached == 0
        path.read_bytes()
        await files.behind(resident)
        assert (cached_bytes(path) == 0) is drops


@linux
async def test_a_resident_without_files_is_nothing_to_do(
    prefetch: Callable[..., Prefetch], tmp_path: Path
) -> None:
    files = prefetch("read_ahead = true")
    for resident in (ResidentId("other", "qwen"), ResidentId("many", "unheard-of")):
        assert await files.ahead(resident, is_asleep=False) == 0
        await files.behind(resident)
    (tmp_path / "one.gguf").unlink()
    assert await files.ahead(ONE, is_asleep=False) == 0
