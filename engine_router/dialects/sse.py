"""Reading server-sent events from bytes that may be split anywhere."""

from __future__ import annotations

from collections.abc import Iterator

# A comment, or the first letter of a field: data, event, id, retry. No JSON that an answer could be begins like these.
_BEGINNINGS = (b":", b"d", b"e", b"i", b"r")


def events_end(data: bytes) -> int:
    """Return where the last complete event ends, that is behind its empty line; 0 where none is complete."""
    end = data.rfind(b"\n\n")
    other = data.rfind(b"\r\n\r\n")
    return max(end + 2 if end >= 0 else 0, other + 4 if other >= 0 else 0)


def begins_events(data: bytes) -> bool:
    """Tell whether an answer that begins like this, without leading whitespace, is a stream of events."""
    return data[:1] in _BEGINNINGS


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
