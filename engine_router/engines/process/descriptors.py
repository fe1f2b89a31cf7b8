"""File descriptors kept in reserve, for what must work when connections have taken all others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

# A start opens about ten for a moment: pipes, a log file, the sockets that look at the port.
_KEPT: Final = 16


class DescriptorReserve:
    """Descriptors that are open only to be closed when they are needed."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._fill()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Make room for a few descriptors within the block."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Let go of them."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        with contextlib.suppress(OSError):  # as many as there are
            while len(self._held) < _KEPT:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
