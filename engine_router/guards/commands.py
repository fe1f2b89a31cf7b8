"""Short commands: run without a shell and without input, and bounded in what they may print."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import trio
from attrs import frozen

from engine_router.guards.limits import MAX_OUTPUT_BYTES
from engine_router.guards.masking import own_environment

_COMPLAINT_CHARS: Final = 500


class _TooMuchOutput(Exception):
    """A command printed more than is read, and was killed."""


@frozen
class CommandResult:
    """The result of a command.

    Attributes:
        code: its exit status; None when it could not be run, took too long or printed too much.
        output: its standard output.
        said: what it wrote to standard error, else to standard output; without a code, why there is none.
    """

    code: int | None
    output: str
    said: str

    @property
    def complaint(self) -> str:
        """The fault, in one line."""
        return " ".join((self.said or f"exit status {self.code}").split())[:_COMPLAINT_CHARS]


async def run_command(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    own_session: bool = False,
) -> CommandResult:
    """Run a command to its end; kill it after `timeout_s` seconds, or when it prints more than `MAX_OUTPUT_BYTES`.

    Args:
        argv: the command.
        timeout_s: limit in seconds.
        environment: replaces the router's own, which goes without what is meant for the router alone.
        cwd: where it runs; None: where the router does.
        own_session: what the command starts is killed with it. Not for sudo, which may ask what terminal it is on.

    Cancellation kills it, and waits for its end.
    """
    with trio.move_on_after(timeout_s):
        try:
            return await _run(argv, environment, cwd, own_session=own_session)
        except _TooMuchOutput as error:
            return CommandResult(None, "", str(error))
        except FileNotFoundError:
            return CommandResult(None, "", f"cannot be run: {argv[0]} was not found")
        except (OSError, ValueError) as error:
            return CommandResult(None, "", f"cannot be run: {error}")
    return CommandResult(None, "", f"did not end within {timeout_s:g} s")


async def _run(
    argv: Sequence[str], environment: Mapping[str, str] | None, cwd: str | None, *, own_session: bool
) -> CommandResult:
    failure: Exception | None = None
    output, errors, code = bytearray(), bytearray(), 0
    async with trio.open_nursery() as nursery:

        async def collect(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
            nonlocal failure
            if stream is None:
                return
            async for data in stream:
                into += data
                if len(into) > MAX_OUTPUT_BYTES:
                    failure = _TooMuchOutput(f"printed more than {MAX_OUTPUT_BYTES // 2**20} MiB")
                    nursery.cancel_scope.cancel()
                    return

        run = functools.partial(
            trio.run_process,
            list(argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            deliver_cancel=_kill_group if own_session else _kill,
            start_new_session=own_session,
            cwd=cwd,
            env=own_environment() if environment is None else environment,
        )
        try:
            process: trio.Process = await nursery.start(run)
        except (OSError, ValueError) as error:
            failure = error  # raised below: the nursery would put it into a group
        else:
            nursery.start_soon(collect, process.stdout, output)
            nursery.start_soon(collect, process.stderr, errors)
            code = await process.wait()
    if failure is not None:
        raise failure
    text, complaints = (data.decode("utf-8", "replace").strip() for data in (output, errors))
    return CommandResult(code, text, complaints or text)


async def _kill(process: trio.Process) -> None:
    """End a command at once: trio waits, shielded, for a cancelled command to be gone."""
    with contextlib.suppress(PermissionError):  # sudo's own process; it ends with its command
        process.kill()


async def _kill_group(process: trio.Process) -> None:
    # At once: a command that only looks has nothing to tidy up. The whole group, because a shell's own death
    # would leave its pipeline running.
    await trio.lowlevel.checkpoint()
    if process.returncode is not None:
        return
    with contextlib.suppress(OSError):  # it ended meanwhile, or runs as another user
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
