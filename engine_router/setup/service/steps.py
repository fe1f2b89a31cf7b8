"""The steps that change a machine's services: planned first, so that they can be shown, then carried out."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from attrs import frozen

from engine_router.guards.atomic_file import write_atomically
from engine_router.guards.masking import own_environment

COMMAND_S: Final = 120.0
"""Seconds that one command of the service manager may take: a stop waits for the engines."""

_MARK: Final = "engine-router service install: "


class StepFailed(Exception):
    """A step could not be carried out; those before it were."""


@frozen
class WriteFile:
    """A file of the service, replaced as a whole; one that somebody has edited stays as it is.

    Attributes:
        path: where it lies.
        text: what is in it. A line in it holds `marked`'s mark.
        mode: its permissions.
    """

    path: Path
    text: str
    mode: int = 0o644

    def __str__(self) -> str:
        return f"write {self.path}"


@frozen
class RemoveFile:
    """A file that goes, where it is there."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@frozen
class RunCommand:
    """A command of the service manager.

    Attributes:
        argv: the command.
        may_fail: it may fail where there is nothing to do.
    """

    argv: tuple[str, ...]
    may_fail: bool = False

    def __str__(self) -> str:
        return f"run {shlex.join(self.argv)}"


Step: TypeAlias = "WriteFile | RemoveFile | RunCommand"
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
"""Runs a command and returns its result. Injected by tests."""


def run_command(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the service manager, and return what it said.

    Raises:
        StepFailed: there is no such program, or it takes too long.
    """
    try:
        return subprocess.run(  # noqa: S603 - the commands are made here
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            check=False,
            env=own_environment(),
        )
    except FileNotFoundError:
        raise StepFailed(f"{argv[0]} was not found: this machine has no such service manager") from None
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{shlex.join(argv)} did not end within {COMMAND_S:g} s") from None
    except OSError as error:
        raise StepFailed(f"{shlex.join(argv)} cannot be run: {error.strerror or error}") from None


def marked(text: str, comment: str) -> str:
    """Return a file's text with its own checksum in place of `{mark}`, by which a later edit is seen.

    Args:
        text: the text, with `{mark}` in a comment.
        comment: tells what writes it, such as the version.
    """
    return text.replace("{mark}", f"{_MARK}{comment} {_checksum(text)}", 1)


def is_edited(text: str) -> bool:
    """Tell whether a file was changed by somebody after it was written here, or was never written here."""
    start = text.find(_MARK)
    if start < 0:
        return True
    mark = text[start:].split("\n", 1)[0].removesuffix("-->").rstrip()
    return mark.rsplit(" ", 1)[-1] != _checksum(text.replace(mark, "{mark}", 1))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def carry_out(
    steps: Sequence[Step], *, tell: Callable[[str], None], force: bool = False, run: Run = run_command
) -> None:
    """Carry out the steps in their order.

    Args:
        tell: called with a line for what somebody should know.
        force: replace files that were edited; what was there stays beside them as `.bak`.

    Raises:
        StepFailed: one failed; those behind it were not begun.
    """
    for step in steps:
        if isinstance(step, WriteFile):
            _write(step, tell, force=force)
        elif isinstance(step, RemoveFile):
            _remove(step)
        else:
            _command(step, run)


def _write(step: WriteFile, tell: Callable[[str], None], *, force: bool) -> None:
    try:
        before = step.path.read_text("utf-8") if step.path.exists() else None
        if before == step.text:
            return
        if before is not None and is_edited(before):
            if not force:
                tell(f"{step.path} was edited, and stays as it is; --force replaces it")
                return
            write_atomically(step.path.with_name(f"{step.path.name}.bak"), before, mode=step.mode)
        write_atomically(step.path, step.text, mode=step.mode)
    except (OSError, UnicodeDecodeError) as error:
        raise StepFailed(f"{step.path} cannot be written: {error}") from None


def _remove(step: RemoveFile) -> None:
    try:
        step.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder of its own, where it is empty
            if step.path.parent.name.startswith("engine-router"):
                step.path.parent.rmdir()
    except OSError as error:
        raise StepFailed(f"{step.path} cannot be removed: {error.strerror or error}") from None


def _command(step: RunCommand, run: Run) -> None:
    done = run(step.argv)
    if done.returncode != 0 and not step.may_fail:
        said = " ".join((done.stderr or done.stdout).split())[:500] or f"exit status {done.returncode}"
        raise StepFailed(f"{shlex.join(step.argv)}: {said}")
