"""The router as process 1 of a container: it has an init process's duties. Each test makes a PID namespace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from support.ports import free_port

SOON_S = 200.0
SMALL_ENGINE = Path(__file__).parent / "programs" / "small_engine.py"
UNSHARE = [
    "unshare",
    *([] if sys.platform == "win32" or os.geteuid() == 0 else ["--user", "--map-root-user"]),
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]


def has_namespaces() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run([*UNSHARE, "true"], capture_output=True, check=False, timeout=SOON_S).returncode == 0
    )


pytestmark = pytest.mark.skipif(not has_namespaces(), reason="PID namespaces cannot be made here")


def until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.02)


def write_config(folder: Path, more: str = "") -> str:
    port = free_port()
    words = [sys.executable, "-I", "-S", str(SMALL_ENGINE), "port={port}", "lose=orphan"]
    (folder / "engines.toml").write_text(
        f"""
state_file = {json.dumps(str(folder / "state.json"))}
[server]
port = {port}
[engines.small]
type = "process"
argv = {json.dumps([*words, "models={model}"])}
ready_path = "/health"
grace_s = 0.5
{more}
[models.a]
engine = "small"
[models.b]
engine = "small"
"""
    )
    return f"http://127.0.0.1:{port}"


class Container:
    """A command as process 1 of a PID namespace, and what is in it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / "stderr.txt"
        with self._log.open("wb") as log:
            self.outside = subprocess.Popen(
                [*UNSHARE, sys.executable, "-m", "engine_router", *arguments],
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def first(self) -> psutil.Process:
        """Process 1: what `unshare` forked."""
        until(lambda: self.outside.poll() is not None or psutil.Process(self.outside.pid).children())
        assert self.outside.poll() is None, self.log
        return psutil.Process(self.outside.pid).children()[0]

    def zombies(self) -> list[int]:
        found = []
        for process in self.first().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def until_up(self, url: str) -> None:
        def is_up() -> bool:
            assert self.outside.poll() is None, self.log
            with suppress(httpx.HTTPError):
                return httpx.get(f"{url}/health", trust_env=False).status_code == 200
            return False

        until(is_up)

    def router(self) -> psutil.Process:
        """The router itself: the child of process 1 that runs the same command."""
        first = self.first()
        return next(child for child in first.children() if child.cmdline() == first.cmdline())

    def ended(self) -> int:
        return self.outside.wait(SOON_S)


@contextmanager
def container(folder: Path, *arguments: str) -> Iterator[Container]:
    made = Container(folder, *arguments)
    try:
        yield made
    finally:
        made.outside.kill()  # and the namespace with it: --kill-child
        made.outside.wait(SOON_S)


def serve(folder: Path, more: str = "") -> tuple[str, tuple[str, ...]]:
    return write_config(folder, more), ("serve", "--config", str(folder / "engines.toml"))


def test_no_zombie_is_left_of_workers_that_outlive_their_engines(tmp_path: Path) -> None:
    url, command = serve(tmp_path)
    with container(tmp_path, *command) as box:
        box.until_up(url)
        for model in "abab":
            answer = httpx.get(f"{url}/upstream/{model}/health", trust_env=False, timeout=SOON_S)
            assert answer.status_code == 200, answer.text
        # The last engine and its worker live; of the three before them nothing is left, not even an exit status.
        until(lambda: not box.zombies())
        os.kill(box.first().pid, signal.SIGTERM)
        assert box.ended() == 0
        assert "ending at once" not in box.log


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    with container(tmp_path, "check", "--config", "nowhere.toml") as box:
        assert box.ended() == 2
        assert "nowhere.toml" in box.log


def test_a_second_signal_is_forwarded_too(tmp_path: Path) -> None:
    # Its engine does not end when asked: the first signal's end would take longer than any test may.
    url, command = serve(tmp_path, "stop_timeout_s = 600")
    text = (tmp_path / "engines.toml").read_text().replace("grace_s = 0.5", "grace_s = 600")
    (tmp_path / "engines.toml").write_text(text)
    with container(tmp_path, *command) as box:
        box.until_up(url)
        httpx.get(f"{url}/upstream/a/health", trust_env=False, timeout=SOON_S).raise_for_status()
        os.kill(box.first().pid, signal.SIGINT)
        until(lambda: "stopping" in box.log)
        os.kill(box.first().pid, signal.SIGINT)
        assert box.ended() == 128 + signal.SIGINT
        assert "ending at once" in box.log


def test_ctrl_c_in_a_terminal_is_one_signal(tmp_path: Path) -> None:
    _, command = serve(tmp_path)
    ours, theirs = os.openpty()
    log = tmp_path / "terminal.txt"
    try:
        with log.open("wb") as output:
            shell = subprocess.Popen(
                ["setsid", "--ctty", *UNSHARE, sys.executable, "-m", "engine_router", *command],
                stdin=theirs,
                stdout=output,
                stderr=output,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        until(lambda: shell.poll() is not None or "Ctrl-C stops it" in log.read_text())
        os.write(ours, b"\x03")
        assert shell.wait(SOON_S) == 0, log.read_text()
        assert "ending at once" not in log.read_text()
    finally:
        shell.kill()
        shell.wait(SOON_S)
        os.close(ours)
        os.close(theirs)


def test_the_guardian_of_a_killed_router_does_its_work_before_the_container_ends(tmp_path: Path) -> None:
    deeds = tmp_path / "deeds"
    kill = json.dumps(["/bin/sh", "-c", f"sleep 1; echo killed > {deeds}"])
    url, command = serve(tmp_path, f"kill_command = {kill}")
    with container(tmp_path, *command) as box:
        box.until_up(url)
        httpx.get(f"{url}/upstream/a/health", trust_env=False, timeout=SOON_S).raise_for_status()
        box.router().kill()
        assert box.ended() == 128 + signal.SIGKILL
        assert deeds.read_text() == "killed\n"
