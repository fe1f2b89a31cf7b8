"""A real systemd: a user's manager in a mount namespace of its own, which needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from attrs import frozen

LIMIT_S = 120.0

MANAGER = """
mount -t tmpfs none /run && mkdir -p /run/systemd/system /run/user && chmod 700 /run/user &&
exec /usr/lib/systemd/systemd --user
"""


@frozen
class UserManager:
    """A systemd user manager that runs, with an empty home."""

    pid: int
    home: Path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside it."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", *argv],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment(self.home),
            timeout=LIMIT_S,
        )

    def service(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `engine-router service`."""
        return self.run(sys.executable, "-m", "engine_router", "service", *arguments)

    def property(self, name: str) -> str:
        """Return a property of the unit."""
        return self.run("systemctl", "--user", "show", "-P", name, "engine-router.service").stdout.strip()

    @staticmethod
    def environment(home: Path) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": "/run/user"}


@contextlib.contextmanager
def user_manager(tmp_path: Path) -> Iterator[UserManager]:
    """Start a systemd user manager; skip the test where none can be started."""
    if sys.platform != "linux" or os.geteuid() != 0 or not Path("/usr/lib/systemd/systemd").exists():
        pytest.skip("needs root and systemd")
    home = tmp_path / "home"
    home.mkdir()
    log = tmp_path / "systemd.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", MANAGER],
            env={**UserManager.environment(home), "SYSTEMD_LOG_TARGET": "console"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            started = UserManager(process.pid, home)
            if not until(
                lambda: (
                    started.run("systemctl", "--user", "is-system-running").stdout
                    in ("running\n", "degraded\n")
                ),
                process,
            ):
                pytest.skip(f"no systemd can be started here: {log.read_text()[-300:]}")
            yield started
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_S)
            process.kill()
            process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until something is so; False when time is up, or when a process has ended meanwhile."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            return False
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return True
        time.sleep(0.05)
    return False
