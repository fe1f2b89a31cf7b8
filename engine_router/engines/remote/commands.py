"""Short commands: run, bounded, and never an exception for what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from attrs import frozen

from engine_router.guards.commands import TooMuchOutput, run_bounded


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
    argv: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Completed:
    """Run a command to its end, without a shell and without input; kill it after `timeout_s` seconds.

    `environment` replaces the router's own. Cancellation kills the command.
    """
    with trio.move_on_after(timeout_s):
        try:
            done = await run_bounded(argv, environment=environment, cwd=cwd)
        except TooMuchOutput as error:
            return Completed(None, "", f"{argv[0]} {error}")
        except FileNotFoundError:
            return Completed(None, "", f"{argv[0]} was not found")
        except (OSError, ValueError) as error:
            return Completed(None, "", f"{argv[0]} cannot be run: {error}")
        output, errors = (text.decode("utf-8", "replace").strip() for text in (done.output, done.errors))
        complaint = " ".join((errors or output or f"exit status {done.code}").split())
        return Completed(done.code, output, complaint[:500])
    return Completed(None, "", f"{argv[0]} did not end within {timeout_s:g} s")
