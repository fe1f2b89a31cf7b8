"""The exit codes, and the exception that ends a command with one."""

from __future__ import annotations

OK, FAILED, BAD_USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
BAD_CONFIG = BAD_USAGE


class CommandFailed(Exception):
    """A command cannot do what it was asked; the message is for the person who asked.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
