"""A tiny program that outlives the router by a moment: it kills the engines of a router that died.

The router holds the other end of this program's standard input and writes there which process groups it
started (`+GROUP MARKER`) and which are gone (`-GROUP`). However the router ends, SIGKILL included, the
kernel closes that end; whatever is still registered is then killed: the group, and on Linux also every
process that carries the family's marker in its environment and had left the group.

It imports nothing but the standard library and is run with `python -I -S`, so that it starts in
milliseconds and costs a few MB. It works wherever process groups do; Windows has job objects instead.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARKER_VARIABLE = "ENGINE_ROUTER_FAMILY"


def carriers(markers: set[str]) -> list[int]:
    """List the processes whose environment carries one of the markers (Linux; elsewhere none is found)."""
    wanted = {f"{MARKER_VARIABLE}={marker}".encode() for marker in markers}
    found: list[int] = []
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - pathlib would double this program's start-up time
    except OSError:
        return found
    for entry in entries:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123 - likewise
                    variables = file.read().split(b"\0")
            except OSError:
                continue
            if not wanted.isdisjoint(variables):
                found.append(int(entry))
    return found


def _kill(send: object, target: int) -> None:
    try:  # noqa: SIM105 - contextlib would be one more import at start-up
        send(target, signal.SIGKILL)  # type: ignore[operator]
    except (ProcessLookupError, PermissionError):
        pass


def main() -> None:
    """Read registrations until the router is gone, then kill what is left."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin.buffer:
        group, _, marker = line[1:].strip().decode().partition(" ")
        if line.startswith(b"+"):
            groups[int(group)] = marker
        else:
            groups.pop(int(group), None)
    for group in groups:
        _kill(os.killpg, group)
    for _ in range(50):  # one of them may start another while the list is made
        left = carriers(set(groups.values()))
        if not left:
            break
        for pid in left:
            _kill(os.kill, pid)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
