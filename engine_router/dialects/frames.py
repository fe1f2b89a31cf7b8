"""The frames of streams, read and written: server-sent events, and lines of JSON.

A reader takes bytes that may be split anywhere, and returns each frame as the very bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from engine_router.dialects.json_body import to_json

# A comment, or the first letter of a field: data, event, id, retry. No JSON that an answer could be begins like these.
_BEGINNINGS = (b":", b"d", b"e", b"i", b"r")
_EMPTY_LINES = (b"", b"\r")


class FrameReader(Protocol):
    """A reader that cuts a stream into frames."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now; together, and with `end`, they are what was fed."""
        ...

    def end(self) -> bytes:
        """Return what is left behind the last whole frame."""
        ...


class LineFrames:
    """A reader of lines, each with its line break."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the pieces of a line that has no end yet; it may be a large image

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        return [line + b"\n" for line in self._lines(data)]

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        rest, self._rest = b"".join(self._rest), []
        return rest

    def _lines(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, without their line breaks."""
        if b"\n" not in data:
            self._rest.append(data)
            return []
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest]
        return lines


class EventFrames(LineFrames):
    """A reader of server-sent events and comments, each with the empty line that ends it."""

    def __init__(self) -> None:
        super().__init__()
        self._event: list[bytes] = []  # the lines of an event that has no end yet

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        return [b"\n".join((*event, b"")) for event in self._ended(data)]

    def events(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete now. Comments, ids and retry hints are passed over."""
        for event in self._ended(data):
            if (found := _data_in(event)) is not None:
                yield found

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        lines, self._event = self._event, []
        return b"\n".join((*lines, super().end()))

    def _ended(self, data: bytes) -> list[list[bytes]]:
        """Return the lines of each event that is complete now."""
        ended: list[list[bytes]] = []
        for line in self._lines(data):
            self._event.append(line)
            if line in _EMPTY_LINES:
                ended.append(self._event)
                self._event = []
        return ended


def events_end(data: bytes) -> int:
    """Return where the last complete event ends, that is behind its empty line; 0 where none is complete."""
    if data.endswith(b"\n\n"):  # nearly every piece
        return len(data)
    end = data.rfind(b"\n\n")
    other = data.rfind(b"\r\n\r\n")
    return max(end + 2 if end >= 0 else 0, other + 4 if other >= 0 else 0)


def begins_events(data: bytes) -> bool | None:
    """Tell whether an answer that begins like this is a stream of events; None where it is only whitespace."""
    begun = data.lstrip()
    return begun[:1] in _BEGINNINGS if begun else None


def event_data(frame: bytes) -> bytes | None:
    """Return the data of an event; None for a frame without, such as a comment."""
    return _data_in(frame.split(b"\n"))


def _data_in(event: list[bytes]) -> bytes | None:
    if len(event) == 2 and event[0].startswith(b"data:") and event[1] in _EMPTY_LINES:  # nearly every event
        return event[0][5:].removesuffix(b"\r").removeprefix(b" ")
    found = [line[5:].removesuffix(b"\r").removeprefix(b" ") for line in event if line.startswith(b"data:")]
    return b"\n".join(found) if found else None


def data_event(data: object) -> bytes:
    """Return a server-sent event without a name, its data as JSON, which has no line breaks."""
    return b"data: %b\n\n" % to_json(data)


def named_event(name: str, data: object) -> bytes:
    """Return a server-sent event with a name, its data as JSON, which has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(data))


def typed_event(kind: str, /, **fields: Any) -> bytes:
    """Return a server-sent event under the name that its member `type` repeats, as Anthropic's and Responses' do."""
    return named_event(kind, {"type": kind, **fields})
