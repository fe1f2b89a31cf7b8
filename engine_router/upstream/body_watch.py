"""Who gets the pieces of an answer's body: whoever takes them, and a watch that sees each of them as it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

TakePiece = Callable[[bytes, bytes], bool]
"""Takes a piece of a body, and the HTTP chunk that it came as, empty where it did not come as one. Returns whether it
wants the next one."""


class BodyWatch(Protocol):
    """Sees the pieces of a body. It must do next to nothing with them, and not raise."""

    @property
    def note(self) -> Callable[[bytes], object]:
        """What takes in a piece of a stream that comes at a pace; looked up for each one."""
        ...

    def piece(self, data: bytes) -> None:
        """Take in any other piece."""
        ...


class NoWatch:
    """A watch that sees nothing."""

    @staticmethod
    def note(data: bytes) -> None:
        """See `BodyWatch.note`."""

    def piece(self, data: bytes) -> None:
        """See `BodyWatch.piece`."""


NO_WATCH = NoWatch()
