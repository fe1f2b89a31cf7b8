"""How a command fails."""

from __future__ import annotations

FAILED = 1
UNREACHABLE = 3


class CommandFailed(Exception):
    """A command cannot do what it was asked; the message is for the person who asked.

    Attributes:
        code: the exit code.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
