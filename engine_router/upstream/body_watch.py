"""A watch on the pieces of an answer's body: whoever sets one sees each of them as it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


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
