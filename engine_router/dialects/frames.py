"""The frames of streams, read and written: server-sent events, and lines of JSON.

A reader takes bytes that may be split anywhere, and returns each frame as the very bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from engine_router.dialects.json_body import to_json
from engine_router.guards.limits import MAX_HELD_FRAME_BYTES

# A comment, or the first letter of a field: data, event, id, retry. No JSON that an answer could be begins like these.
_BEGINNINGS = (b":", b"d", b"e", b"i", b"r")
_EMPTY_LINES = (b"", b"\r")
# What a line or a frame takes that is kept by itself, beside its bytes.
FRAME_COST_BYTES = 48


class FrameReader(Protocol):
    """A reader that cuts a stream into frames."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now; together, and with `end`, they are what was fed.

        Raises:
            ValueError: one is longer than any that is meant.
        """
        ...

    def end(self) -> bytes:
        """Return what is left behind the last whole frame."""
        ...


class LineFrames:
    """A reader of lines, each with its line break.

    Args:
        may_give_up: where a frame is longer than any that is meant, that and all that follows is returned as it
            comes, in pieces that are no frames; else it is a fault.
    """

    def __init__(self, *, may_give_up: bool = False) -> None:
        self._rest: list[bytes] = []  # the pieces of a line that has no end yet; it may be a large image
        self._held_bytes = 0
        self._may_give_up = may_give_up
        self._has_given_up = False

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        if self._has_given_up:
            return [data]
        frames = [line + b"\n" for line in self._lines(data)]
        return frames if self._held_bytes <= MAX_HELD_FRAME_BYTES else [*frames, self._too_long()]

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        rest, self._rest = b"".join(self._rest), []
        return rest

    def _lines(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, without their line breaks."""
        if b"\n" not in data:
            self._rest.append(data)
            self._held_bytes += len(data)
            return []
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest]
        self._held_bytes = len(rest)
        return lines

    def _too_long(self) -> bytes:
        """Return what is held of a frame that is too long, and hold nothing any more.

        Raises:
            ValueError: it is a fault.
        """
        if not self._may_give_up:
            self._rest = []
            raise ValueError(
                f"an event or a line of its stream is longer than {MAX_HELD_FRAME_BYTES >> 20} MiB"
            )
        self._has_given_up = True
        return self.end()


class EventFrames(LineFrames):
    """A reader of server-sent events and comments, each with the empty line that ends it."""

    def __init__(self, *, may_give_up: bool = False) -> None:
        super().__init__(may_give_up=may_give_up)
        self._event: list[bytes] = []  # the lines of an event that has no end yet
        self._event_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        if self._has_given_up:
            return [data]
        frames = [b"\n".join((*event, b"")) for event in self._ended(data)]
        if self._held_bytes + self._event_bytes <= MAX_HELD_FRAME_BYTES:
            return frames
        return [*frames, self._too_long()]

    def events(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete now. Comments, ids and retry hints are passed over.

        Raises:
            ValueError: as `feed` does; what was complete before has been yielded.
        """
        for event in self._ended(data):
            if (found := _data_in(event)) is not None:
                yield found
        if self._held_bytes + self._event_bytes > MAX_HELD_FRAME_BYTES:
            self._too_long()

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        lines, self._event = self._event, []
        return b"\n".join((*lines, super().end()))

    def _ended(self, data: bytes) -> list[list[bytes]]:
        """Return the lines of each event that is complete now."""
        ended: list[list[bytes]] = []
        for line in self._lines(data):
            self._event.append(line)
            self._event_bytes += len(line) + FRAME_COST_BYTES
            if line in _EMPTY_LINES:
                ended.append(self._event)
                self._event, self._event_bytes = [], 0
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
