"""What a process tree can hold at most, as the kernel tells it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.memory.cgroup import ControlGroups
from engine_router.memory.host import MeminfoGauge
from engine_router.memory.process_memory import most_held, most_taken

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

ENGINE = Path(__file__).parent / "programs" / "small_engine.py"
MB = 1_000_000
# A server of 60 MB with a child of 40 MB.
SERVER = """
import os, socket, sys
held = bytearray(b"x") * (60 * 1000 * 1000)
with socket.create_server(("127.0.0.1", 0)) as server:
    ready, write = os.pipe()
    if os.fork() == 0:
        more = bytearray(b"y") * (40 * 1000 * 1000)
        os.write(write, b"1")
        sys.stdin.read()
        os._exit(0)
    os.read(ready, 1)
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""
SMAPS = "55d0 [rollup]\nRss:   100 kB\nPss:   {} kB\nPss_Anon:  1 kB\n"


async def test_a_tree_holds_what_its_processes_hold() -> None:
    with subprocess.Popen(  # noqa: ASYNC220 - it is started at once
        [sys.executable, "-I", "-S", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(await trio.to_thread.run_sync(server.stdout.readline))
        url = f"http://127.0.0.1:{port}"
        held = await most_taken(MeminfoGauge(), server.pid, url)
        assert 100 * MB <= held < 160 * MB
        # Whoever listens is none of them, as with the client of a container's daemon.
        assert await most_taken(MeminfoGauge(), server.pid, f"http://127.0.0.1:{port + 1}") == math.inf
        # CUDA's view counts the page cache, too.
        assert await most_taken(MeminfoGauge("MemFree"), server.pid, url) == math.inf
        server.stdin.close()
    assert await most_taken(MeminfoGauge(), server.pid, url) == math.inf


def process(folder: Path, pid: int, pss_kb: int, *opened: str) -> None:
    (folder / str(pid) / "fd").mkdir(parents=True)
    (folder / str(pid) / "smaps_rollup").write_text(SMAPS.format(pss_kb))
    for number, path in enumerate(opened):
        (folder / str(pid) / "fd" / str(number)).symlink_to(path)


def test_shares_add_up_with_a_margin_for_the_kernel(tmp_path: Path) -> None:
    process(tmp_path, 1, 600_000, "/dev/null", "socket:[1]")
    process(tmp_path, 2, 400_000)
    assert most_held([1, 2], tmp_path) == int(1_024_000_000 * 1.05) + 16 * 1024 * 1024


@pytest.mark.parametrize("device", ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128", "/dev/kfd"])
def test_what_a_gpu_holds_for_a_process_is_not_known(device: str, tmp_path: Path) -> None:
    process(tmp_path, 1, 600_000)
    process(tmp_path, 2, 400_000, "/dev/null", device)
    assert most_held([1, 2], tmp_path) is None


def test_figures_that_cannot_be_read_are_no_figures(tmp_path: Path) -> None:
    process(tmp_path, 1, 1)
    (tmp_path / "1" / "smaps_rollup").write_text("nothing\n")
    with pytest.raises(ValueError, match="Pss"):
        most_held([1], tmp_path)


# A command that starts its server when another program has taken 1.2 GB.
COMMAND = """
import os, pathlib, sys
meminfo, program, port = sys.argv[1:]
pathlib.Path(meminfo).write_text("MemTotal: 33000000 kB\\nMemAvailable: 23800000 kB\\n")
os.execv(sys.executable, [sys.executable, "-I", "-S", program, "port=" + port])
"""


async def test_what_another_program_takes_during_a_start_is_not_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 33000000 kB\nMemAvailable: 25000000 kB\n")
    gauge = MeminfoGauge("MemAvailable", meminfo, ControlGroups(tmp_path))
    monkeypatch.setattr("engine_router.residency.settings.make_gauge", lambda *_, **__: gauge)
    argv = [sys.executable, "-I", "-S", "-c", COMMAND, str(meminfo), str(ENGINE), "{port}"]
    config = parse_config(f"""
        state_file = "/dev/null/state.json"
        [engines.small]
        type = "process"
        argv = {json.dumps(argv)}
        models = ["x"]
        """)
    with trio.fail_after(200):
        async with open_router(config) as router, router.lease("x"):
            while (took := router.state.of(ResidentId("small")).footprint_bytes) is None:
                await trio.sleep(0.01)
    assert 0 < took < 100 * MB
