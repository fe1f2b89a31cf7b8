"""A Podman of the tests' own: its storage, its socket, and an empty image in which this machine's Python runs."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

IMAGE = "localhost/empty:latest"
PYTHON = os.path.realpath(sys.executable)
FOLDERS = tuple(
    folder
    for folder in dict.fromkeys(("/usr", "/lib", "/lib64", sys.base_prefix))
    if Path(folder).is_dir() and (folder == "/usr" or not folder.startswith("/usr/"))
)
ENGINE = Path(__file__).parents[1] / "programs" / "small_engine.py"
_LIMIT_S = 120.0


class NoPodman(Exception):
    """No container runs here; its text says why."""


@define(eq=False)
class Podman:
    """Podman, with its storage in a folder.

    Attributes:
        folder: short: the path of a socket has few characters.
    """

    folder: Path
    _service: subprocess.Popen[bytes] | None = None
    _environment: Mapping[str, str] = field(factory=dict)

    @property
    def socket(self) -> Path:
        return self.folder / "podman.sock"

    def prepare(self) -> None:
        """Make the image, and see that a container runs.

        Raises:
            NoPodman: none does.
        """
        if sys.platform != "linux" or shutil.which("podman") is None:
            raise NoPodman("there is no podman here")
        if os.geteuid() != 0:
            raise NoPodman("a podman of the tests' own needs root")
        self._write_settings()
        image = self.folder / "empty.tar"
        with tarfile.open(image, "w") as archive:
            for name in ("tmp", "proc", "dev", "sys", "etc"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                archive.addfile(entry, io.BytesIO())
        self.run("import", str(image), IMAGE)
        mounts = [word for folder in FOLDERS for word in ("-v", f"{folder}:{folder}:ro")]
        self.run("run", "--rm", "--network=none", *mounts, IMAGE, PYTHON, "-I", "-S", "-c", "")

    def _write_settings(self) -> None:
        runtime = "runc" if shutil.which("runc") else "crun"
        import resource  # noqa: PLC0415 - not on Windows

        limits = [
            f"{name}={limit}:{limit}"
            for name, kind, most in (
                ("nofile", resource.RLIMIT_NOFILE, 1024),
                ("nproc", resource.RLIMIT_NPROC, 4096),
            )
            for limit in [_at_most(resource.getrlimit(kind)[1], most)]
        ]
        (self.folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = {json.dumps(limits)}\n[engine]\nruntime = "{runtime}"\n'
            'cgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def _argv(self, *words: str) -> list[str]:
        places = {"--root": "root", "--runroot": "run", "--tmpdir": "tmp"}
        given = [word for option, name in places.items() for word in (option, str(self.folder / name))]
        # vfs needs nothing of the kernel, and the image is empty.
        return ["podman", *given, "--storage-driver", "vfs", *words]

    def run(self, *words: str) -> str:
        """Run a command to its end, and return what it printed.

        Raises:
            NoPodman: it failed.
        """
        done = subprocess.run(
            self._argv(*words),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
        )
        if done.returncode != 0:
            raise NoPodman(f"podman {words[0]} fails here: {done.stderr.strip()[-300:]}")
        return done.stdout

    def start_service(self) -> None:
        """Have the socket served."""
        self._service = subprocess.Popen(
            self._argv("system", "service", "--time=0", f"unix://{self.socket}"),
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up_at = time.monotonic() + _LIMIT_S
        while not self.socket.is_socket():
            if self._service.poll() is not None or time.monotonic() > give_up_at:
                raise NoPodman("podman's service does not start here")
            time.sleep(0.02)

    def kill_service(self) -> None:
        """Kill what serves the socket; containers run on."""
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None
        self.socket.unlink(missing_ok=True)

    def containers(self) -> list[str]:
        """Return the names of all containers, running or not."""
        return self.run("ps", "--all", "--format", "{{.Names}}").split()

    def close(self) -> None:
        """Remove all containers and end the service."""
        self.kill_service()
        if self._environment:
            subprocess.run(
                self._argv("rm", "--all", "--force", "--time", "0"),
                env=self._environment,
                capture_output=True,
                check=False,
                timeout=_LIMIT_S,
            )


def _at_most(limit: int, most: int) -> int:
    """Return a limit that may be set inside of a container, where nothing may be raised."""
    return most if limit < 0 else min(limit, most)  # negative: none


def small_engine(
    socket: Path, *words: str, more_volumes: Sequence[str] = (), **settings: Any
) -> dict[str, Any]:
    """Return the options of a container that runs `small_engine.py`."""
    mounts = [f"{folder}:{folder}:ro" for folder in FOLDERS]
    return {
        "image": IMAGE,
        "entrypoint": (PYTHON, "-I", "-S"),
        "command": ("/engine.py", "port={port}", *words),
        "volumes": (*mounts, f"{ENGINE}:/engine.py:ro", *more_volumes),
        "network": "host",
        "socket": str(socket),
        "pull": "never",
        **settings,
    }


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return engines as tables of a configuration."""
    lines: list[str] = []
    for name, options in tables.items():
        lines.append(f"[engines.{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)
