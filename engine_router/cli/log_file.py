"""The file that the log goes to: followed when another program moves it, and kept small by numbered older files."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TextIO

from attrs import define, field


@define(eq=False, repr=False)
class LogFile:
    """A log file. Used by one thread.

    Attributes:
        path: its absolute path.
        max_bytes: the size beyond which it becomes `NAME.1`, and that `NAME.2`, and so on; 0 for never.
        keep: how many of those there are at most.
    """

    path: Path
    max_bytes: int = 0
    keep: int = 0
    _stream: TextIO = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Open it.

        Raises:
            OSError: it cannot be written.
        """
        self._stream = self._opened()

    def write(self, text: str) -> None:
        """Append whole lines.

        Raises:
            OSError: they cannot be written.
        """
        self._reopen_if_moved()
        self._stream.write(text)
        self._stream.flush()
        if self.max_bytes and self._can_be_renamed() and self._stream.tell() > self.max_bytes:
            self._rotate()

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._stream.close()

    def _opened(self) -> TextIO:
        return self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def _reopen_if_moved(self) -> None:
        """Follow a file that was renamed, as log rotation does."""
        if os.name != "posix":
            return
        here = os.fstat(self._stream.fileno())
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            old, self._stream = self._stream, self._opened()
            old.close()

    def _can_be_renamed(self) -> bool:
        """Tell whether it is a file of its own: no device, no pipe, no link, behind which another program may rotate."""
        return stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode) and not self.path.is_symlink()

    def _rotate(self) -> None:
        """Begin the file anew. A folder in which nothing may be renamed keeps the one large file."""
        self._stream.close()  # Windows renames no open file
        try:
            for number in range(self.keep, 0, -1):
                older = self.path if number == 1 else self._older(number - 1)
                with contextlib.suppress(FileNotFoundError):
                    older.replace(self._older(number))
            if self.keep == 0:
                self.path.unlink()
        except OSError:
            self.max_bytes = 0
        finally:
            self._stream = self._opened()

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
