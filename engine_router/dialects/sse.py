"""Reading server-sent events from bytes that may be split anywhere."""

from __future__ import annotations

from collections.abc import Iterator


class EventReader:
    """Turns bytes into the data of complete events. Comments, ids and retry hints are passed over."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the pieces of a line that has no end yet; it may be a large image
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete now."""
        if b"\n" not in data:
            self._rest.append(data)
            return
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest]
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []
