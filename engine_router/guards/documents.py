"""Documents: what a foreign file holds, as plain values, with the line of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from engine_router.guards.limits import MAX_FOREIGN_FILE_BYTES

Keys = tuple[str | int, ...]
"""Where a value stands: keys of tables, and indices of lists."""

MAX_DEPTH: Final = 64
"""Tables and lists inside of each other: real files have seven."""

MAX_VALUES: Final = 50_000
"""Values of one file, repeated ones counted each time: a hundred models have some thousand."""


class Unreadable(Exception):
    """A file that cannot be read, or that holds nothing to carry over; the message says what to do.

    Attributes:
        line: where, from 1 on; None for the file as a whole.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@frozen(eq=False, repr=False)
class Document:
    """A foreign file.

    Attributes:
        data: its values: texts, numbers, true and false, None, lists, and tables with texts as keys.
        lines: the line of each value, from 1 on.
        repeated: keys that a table has twice, of which the last counts.
    """

    data: Any
    lines: Mapping[Keys, int] = field(factory=dict)
    repeated: tuple[Keys, ...] = ()

    def line(self, *keys: str | int) -> int | None:
        """Return the line of a value, or of what it stands in."""
        for length in range(len(keys), -1, -1):
            if (found := self.lines.get(keys[:length])) is not None:
                return found if length or not keys else None
        return None


def read_text(path: Path) -> str:
    """Read a foreign file.

    Raises:
        Unreadable: it is not there, is too large, or is no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FOREIGN_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(f"cannot be read: {reason or error}") from None
    if len(raw) > MAX_FOREIGN_FILE_BYTES:
        limit = MAX_FOREIGN_FILE_BYTES >> 20
        raise Unreadable(f"is larger than {limit} MiB, which no configuration is: is it the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if "\x00" in text:
        raise Unreadable("is no text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number_of(text: str) -> int | float | None:
    """Return the number that a text is; None where it is none, or none that is finite and of reasonable length."""
    if len(text) > 40 or "_" in text:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def whole_text(text: str) -> str:
    """Return a text without halves of characters, which JSON can write and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
