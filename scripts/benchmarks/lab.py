"""A place for one run: a folder, ports, the processes that were started, and their end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

POLL_S = 0.001
PROBE_TIMEOUT_S = 0.1
START_WITHIN_S = 30.0
STOP_WITHIN_S = 5.0


class Failed(Exception):
    """A measurement could not be made; the message says why."""


class Lab:
    """The folder and the processes of a run.

    Attributes:
        folder: temporary; its name is in the command of every engine, which is how leftovers are known.
        log: where engines note their starts.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="engine-router-bench-"))
        self.log = self.folder / "starts.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End what was started and remove the folder."""
        with undisturbed():
            for process in tuple(reversed(self._processes)):
                self.stop(process)
            self.end_leftovers()
            shutil.rmtree(self.folder, ignore_errors=True)

    def spawn(
        self, argv: Sequence[str | Path], *, output: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the folder, in a session of its own, its output in a file of the folder."""
        with contextlib.ExitStack() as stack:
            where = subprocess.DEVNULL
            if output is not None:
                where = stack.enter_context((self.folder / output).open("ab")).fileno()
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=where,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], within_s: float = STOP_WITHIN_S) -> float:
        """End a program, by force if it takes too long, and return how many seconds it took."""
        began = time.perf_counter()
        process.terminate()
        if not ended(process, within_s):
            process.kill()
            process.wait()
        if process in self._processes:
            self._processes.remove(process)
        return time.perf_counter() - began

    def end_leftovers(self) -> None:
        """Kill the engines that outlived their routers."""
        for pid in {pid for _, pid in self.starts()}:
            end_leftover(pid, str(self.folder))

    def starts(self) -> list[tuple[str, int]]:
        """Return the name and process id of each engine's start so far, whoever started it."""
        try:
            lines = self.log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(name, int(pid)) for name, pid, _ in map(str.split, lines)]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C or SIGTERM break off the cleaning up, which is bounded."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def health_status(port: int) -> int | None:
    """Ask `/health` once on a connection of its own; None where there is no answer in time."""
    with (
        contextlib.suppress(OSError, IndexError, ValueError),
        socket.create_connection(("127.0.0.1", port), timeout=PROBE_TIMEOUT_S) as sock,
    ):
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return int(sock.recv(4096).split(b" ", 2)[1])
    return None


def await_health(process: subprocess.Popen[bytes], port: int, what: str) -> None:
    """Poll every millisecond until `/health` answers 200.

    Raises:
        Failed: the process ended, or took too long.
    """
    deadline = time.perf_counter() + START_WITHIN_S
    while health_status(port) != 200:
        if process.poll() is not None:
            raise Failed(f"{what} ended with status {process.returncode} instead of starting")
        if time.perf_counter() > deadline:
            raise Failed(f"{what} did not start within {START_WITHIN_S:g} s")
        time.sleep(POLL_S)


def ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Wait for the end of a process. Popen.wait looks only every 50 ms after a while, which is no measure."""
    deadline = time.perf_counter() + within_s
    while process.poll() is None:
        if time.perf_counter() > deadline:
            return False
        time.sleep(POLL_S / 2)
    return True


def own_cost(lab: Lab, argv: Sequence[str | Path], port: int) -> tuple[float, float]:
    """Measure what an engine itself costs: seconds from its spawn to its first 200, and from SIGTERM to its exit."""
    began = time.perf_counter()
    process = lab.spawn(argv)
    try:
        await_health(process, port, f"the engine on port {port}")
        start_s = time.perf_counter() - began
    finally:
        stop_s = lab.stop(process)
    return start_s, stop_s


def own_exit(lab: Lab, argv: Sequence[str | Path]) -> float:
    """Measure the seconds from the spawn of an engine that exits at once to its exit."""
    began = time.perf_counter()
    process = lab.spawn(argv)
    ended(process, START_WITHIN_S)
    took_s = time.perf_counter() - began
    lab.stop(process)
    return took_s


def end_leftover(pid: int, mark: str) -> None:
    """Kill a process that outlived its router, if it is still the one whose command carries `mark`."""
    if mark in command_of(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def command_of(pid: int) -> str:
    """Return the command line of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    with contextlib.suppress(OSError):
        shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=False)
        return shown.stdout.decode(errors="replace")
    return ""
