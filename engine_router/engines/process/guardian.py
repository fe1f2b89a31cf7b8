"""A tiny program that outlives the router by a moment: it kills the engines of a router that died.

The router holds the other end of this program's standard input and writes there which process groups it
started (`+GROUP`), what else has to be run for one (`*GROUP COMMAND`), and which are gone (`-GROUP`). A negative number
stands for what is no group, such as a container: only its command is run. However the router ends, SIGKILL included, the kernel closes
that end; whatever is still registered is then killed, and on Linux also every process that carries a marker
of this router's (the one argument) in its environment: one that had left its group, or was just being started.

It imports nothing but the standard library and is run with `python -I -S`, so that it starts in
milliseconds and costs a few MB. It works wherever process groups do; Windows has job objects instead.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARKER_VARIABLE = "ENGINE_ROUTER_FAMILY"
# Seconds for the commands that end what daemons hold for the engines.
COMMANDS_S = 30.0


def carriers(markers: set[str]) -> list[int]:
    """List the processes whose environment carries a marker that begins with one of these.

    On Linux; elsewhere none is found.
    """
    wanted = tuple(f"{MARKER_VARIABLE}={marker}".encode() for marker in markers)
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
            if any(variable.startswith(wanted) for variable in variables):
                found.append(int(entry))
    return found


def _kill(send: object, target: int) -> None:
    try:  # noqa: SIM105 - contextlib would be one more import at start-up
        send(target, signal.SIGKILL)  # type: ignore[operator]
    except (ProcessLookupError, PermissionError):
        pass


def _run(commands: list[bytes]) -> None:
    """Run commands, each given as JSON in hexadecimal digits, side by side, and end those that do not end."""
    import json  # noqa: PLC0415 - a guardian that has nothing to do goes without
    import subprocess  # noqa: PLC0415 - likewise

    started = []
    for command in commands:
        argv, env, cwd = json.loads(bytes.fromhex(command.decode()))
        try:
            started.append(
                subprocess.Popen(  # noqa: S603 - it is what the configuration says
                    argv,
                    env={**os.environ, **env},
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        except (OSError, ValueError):
            continue  # nobody is left whom it could be told
    give_up_at = time.monotonic() + COMMANDS_S
    for process in started:
        try:
            process.wait(max(0.0, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    """Read registrations until the router is gone, then kill what is left."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    groups: set[int] = set()
    commands: dict[int, bytes] = {}
    for line in sys.stdin.buffer:
        group = int(line[1:].split()[0])
        if line.startswith(b"+"):
            groups.add(group)
        elif line.startswith(b"*"):
            commands[group] = line.split()[1]
        else:
            groups.discard(group)
            commands.pop(group, None)
    for group in groups:
        _kill(os.killpg, group)
    if commands:
        _run(list(commands.values()))
    for _ in range(50):  # one of them may start another while the list is made
        left = carriers({sys.argv[1]})
        if not left:
            break
        for pid in left:
            _kill(os.kill, pid)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
