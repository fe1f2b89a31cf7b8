"""Short commands: run, bounded, and never an exception for what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio
from attrs import frozen


@frozen
class Completed:
    """What became of a command.

    Attributes:
        code: its exit status; None when it could not be run or took too long.
        output: its standard output.
        complaint: what it or the system said is wrong, one line.
    """

    code: int | None
    output: str
    complaint: str


async def run_command(
    argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Completed:
    """Run a command to its end, without a shell and without input; kill it after `timeout_s` seconds.

    `environment` replaces the router's own. Cancellation kills the command.
    """
    with trio.move_on_after(timeout_s):
        try:
            done = await trio.run_process(
                list(argv),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                deliver_cancel=_kill,
                env=environment,
            )
        except FileNotFoundError:
            return Completed(None, "", f"{argv[0]} was not found")
        except OSError as error:
            return Completed(None, "", f"{argv[0]} cannot be run: {error.strerror or error}")
        output, errors = (text.decode("utf-8", "replace").strip() for text in (done.stdout, done.stderr))
        complaint = " ".join((errors or output or f"exit status {done.returncode}").split())
        return Completed(done.returncode, output, complaint[:500])
    return Completed(None, "", f"{argv[0]} did not end within {timeout_s:g} s")


async def _kill(process: trio.Process) -> None:
    """End a command at once: trio waits, shielded, for a cancelled command to be gone."""
    with suppress(
        PermissionError
    ):  # sudo's own process; it ends with its command, which never waits for long
        process.kill()
