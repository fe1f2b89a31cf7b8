"""What control groups allow: limits of containers and units count as the size of the memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

from engine_router.memory import MeminfoGauge, MemoryReading, PsutilGauge
from engine_router.memory.cgroup import ControlGroups

GIB = 2**30
MIB = 2**20
MEMINFO = f"MemTotal: {32 * MIB} kB\nMemFree: {20 * MIB} kB\nMemAvailable: {24 * MIB} kB\n"  # 32, 20, 24 GiB

# As the kernel's documentation shows them (admin-guide/cgroup-v1/memory, cgroup-v2), shortened.
V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {start} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
V2_STAT = (
    f"anon 5\nfile 9\nactive_file {256 * MIB}\ninactive_file {128 * MIB}\nslab_reclaimable {128 * MIB}\n"
)
V1_STAT = f"cache 9\ntotal_cache 9\ntotal_active_file {256 * MIB}\ntotal_inactive_file {256 * MIB}\n"
V1_NONE = "9223372036854771712\n"


def tree(root: Path, cgroup: str, mountinfo: str, files: Mapping[str, str | int]) -> ControlGroups:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    (root / "meminfo").write_text(MEMINFO)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return ControlGroups(root)


async def both(root: Path, groups: ControlGroups) -> tuple[MemoryReading, MemoryReading]:
    with trio.fail_after(200):
        available = await MeminfoGauge("MemAvailable", root / "meminfo", groups).read()
        free = await MeminfoGauge("MemFree", root / "meminfo", groups).read()
    return available, free


async def test_a_limit_of_version_2_is_the_size_of_the_memory(tmp_path: Path) -> None:
    files = {"memory.max": 2 * GIB, "memory.current": GIB, "memory.stat": V2_STAT, "memory.high": "max"}
    groups = tree(tmp_path, "0::/\n", V2_MOUNT, files)
    assert await both(tmp_path, groups) == (
        MemoryReading(GIB + 512 * MIB, 2 * GIB),
        MemoryReading(GIB, 2 * GIB),
    )


async def test_a_limit_of_version_1_is_the_size_of_the_memory(tmp_path: Path) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": 2 * GIB,
        "memory/box/memory.usage_in_bytes": GIB,
        "memory/box/memory.stat": V1_STAT,
        "memory/memory.limit_in_bytes": V1_NONE,
    }
    groups = tree(tmp_path, "8:cpu:/x\n4:memory:/box\n0::/\n", V1_MOUNTS.format(start="/"), files)
    assert await both(tmp_path, groups) == (
        MemoryReading(GIB + 512 * MIB, 2 * GIB),
        MemoryReading(GIB, 2 * GIB),
    )


async def test_a_container_that_sees_its_own_group_as_the_root_has_its_limit(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": GIB,
        "memory/memory.usage_in_bytes": 0,
        "memory/memory.stat": "",
    }
    groups = tree(tmp_path, "4:memory:/docker/1f\n", V1_MOUNTS.format(start="/docker/1f"), files)
    assert (await both(tmp_path, groups))[0] == MemoryReading(GIB, GIB)


async def test_the_tightest_of_the_groups_around_counts_and_so_does_throttling(tmp_path: Path) -> None:
    files = {
        "a.slice/memory.max": 4 * GIB,
        "a.slice/memory.current": 3 * GIB,
        "a.slice/memory.stat": "",
        "a.slice/b.service/memory.max": "max",
        "a.slice/b.service/memory.high": 3 * GIB,
        "a.slice/b.service/memory.current": GIB,
        "a.slice/b.service/memory.stat": "",
    }
    groups = tree(tmp_path, "0::/a.slice/b.service\n", V2_MOUNT, files)
    assert (await both(tmp_path, groups))[0] == MemoryReading(GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files"),
    [
        ("", "", {}),
        ("0::/\n", V2_MOUNT, {"memory.max": "max", "memory.current": 5}),
        ("0::/\n", V2_MOUNT, {"memory.max": "9" * 5000, "memory.current": 5}),
        ("0::/\n", V2_MOUNT, {"memory.max": 2 * GIB, "memory.current": "unknown"}),
        ("4:memory:/\n", V1_MOUNTS.format(start="/"), {"memory/memory.limit_in_bytes": V1_NONE}),
        ("0::/../../etc\n", "nonsense - \n - \n1 2 3 / relative x - cgroup2 cgroup2 rw\n", {}),
        ("nonsense\n\n:::::\n", V2_MOUNT, {}),
    ],
)
async def test_without_a_readable_limit_the_hosts_memory_counts(
    cgroup: str, mountinfo: str, files: Mapping[str, str | int], tmp_path: Path
) -> None:
    groups = tree(tmp_path, cgroup, mountinfo, files)
    assert await both(tmp_path, groups) == (
        MemoryReading(24 * GIB, 32 * GIB),
        MemoryReading(20 * GIB, 32 * GIB),
    )


async def test_a_limit_that_is_changed_counts_at_once(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.current": 0, "memory.stat": ""}
    groups = tree(tmp_path, "0::/\n", V2_MOUNT, files)
    assert (await both(tmp_path, groups))[0].total_bytes == 32 * GIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{3 * GIB}\n")
    assert (await both(tmp_path, groups))[0] == MemoryReading(3 * GIB, 3 * GIB)


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
async def test_a_gauge_by_psutil_is_limited_too(tmp_path: Path) -> None:
    files = {"memory.max": 64 * MIB, "memory.current": 0, "memory.stat": ""}
    groups = tree(tmp_path, "0::/\n", V2_MOUNT, files)
    with trio.fail_after(200):
        assert await PsutilGauge(groups=groups).read() == MemoryReading(64 * MIB, 64 * MIB)


@contextlib.contextmanager
def real_group() -> Iterator[tuple[Path, str]]:
    """Make a control group below ours; yields its folder and the name of its limit's file."""
    groups = ControlGroups()
    groups.limit()
    for version, folder in groups._groups or ():
        box = folder / "engine-router-test"
        try:
            box.mkdir()
        except OSError:
            continue
        try:
            if (box / version.limits[0]).exists():
                yield box, version.limits[0]
                return
        finally:
            box.rmdir()
    pytest.skip("no control group can be made here")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_a_real_limit_is_seen_by_a_process_inside() -> None:
    code = (
        "import os, sys, trio\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from engine_router.memory import make_gauge\n"
        "print(trio.run(make_gauge('memavailable').read).total_bytes)\n"
    )
    with real_group() as (box, limit):
        try:
            (box / limit).write_text(str(512 * MIB))
        except OSError:
            pytest.skip("no limit can be set here")
        done = subprocess.run(
            [sys.executable, "-c", code, str(box)], capture_output=True, text=True, timeout=200, check=False
        )
    if "cgroup.procs" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("no process can be moved here")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 512 * MIB
