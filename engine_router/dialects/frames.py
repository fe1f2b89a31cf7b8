"""Whole frames of a stream, each as the very bytes that came, from bytes that may be split anywhere."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from engine_router.dialects.base import to_json
from engine_router.dialects.sse import EventReader, events_end

_EVENT = re.compile(rb".*?\n\r?\n|.+", re.DOTALL)


class FrameReader(Protocol):
    """Cuts a stream into frames."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now; together, and with `end`, they are what was fed."""
        ...

    def end(self) -> bytes:
        """Return what is left behind the last whole frame."""
        ...


class EventFrames:
    """Server-sent events and comments, each with the empty line that ends it."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        self._rest.append(data)
        if b"\n" not in data:
            return []
        whole = b"".join(self._rest)
        end = events_end(whole)
        self._rest = [whole[end:]]
        return _EVENT.findall(whole[:end])

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        rest, self._rest = b"".join(self._rest), []
        return rest


class LineFrames:
    """Lines, each with its line break."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        self._rest.append(data)
        if b"\n" not in data:
            return []
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest = [rest]
        return [line + b"\n" for line in lines]

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        rest, self._rest = b"".join(self._rest), []
        return rest


def event_data(frame: bytes) -> bytes | None:
    """Return the data of an event, even of one whose last line has no end; None for a comment."""
    return next(EventReader().feed(frame + b"\n\n"), None)


def as_object(data: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object that these bytes are; None where they are something else."""
    if not data:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def data_frame(data: object) -> bytes:
    """Render an event without a name, as OpenAI's chat does."""
    return b"data: " + to_json(data) + b"\n\n"


def named_frame(event: dict[str, Any]) -> bytes:
    """Render an event under the name that its `type` says."""
    return b"event: " + str(event["type"]).encode() + b"\n" + data_frame(event)
