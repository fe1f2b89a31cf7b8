"""An answer that carries the name that the client asked for, where the engine knows the model by another one.

Everything else stays as it came. What tells the name's place is the structure of the JSON around it, which is
counted and not parsed: quotes inside of strings are escaped, so `"model":"` can only be a key and its value.
"""

from __future__ import annotations

import re

from engine_router.dialects.frames import EventFrames, FrameReader, LineFrames
from engine_router.dialects.json_body import Octets, to_json

_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# The events that carry the answer, with the model, in an object of their own: Anthropic's and `/v1/responses`'.
_WRAPPED = re.compile(
    rb'"type"\s*:\s*"(?:message_start|response\.(?:created|queued|in_progress|completed|incomplete|failed))"'
)
_NAMED_LATE_BYTES = 16_777_216


class Renaming:
    """A filter that puts the name that was asked for into the answer of an engine that speaks the client's dialect.

    A stream is held back to its last complete event or line, any other JSON to its end: the name may stand
    there. Only an answer, or an event of it, larger than 16 MiB goes on before, and keeps a name that comes later.

    Attributes:
        path: the path of the request, as the client sent it.
        body: the request with the name that the engine knows.
        content_type: the engine's own, once `begin` was told it.
    """

    def __init__(self, path: str, body: Octets, model: str) -> None:
        self.path = path
        self.body = body
        self.content_type = ""
        self._name = to_json(model)
        self._frames: FrameReader | None = None

    def begin(self, status: int, content_type: str, content_encoding: str = "") -> bool:
        """Take in the head of the engine's answer; tell whether its body may change, and with it its length.

        It does not where it is an error, encoded, or neither JSON nor a stream of it. Call it before `feed`; until
        then everything passes.
        """
        self.content_type = content_type
        kind = content_type.partition(";")[0].strip().lower()
        is_plain = content_encoding.strip().lower() in ("", "identity")
        if status < 400 and is_plain and (kind == _JSON or kind in _FRAMES):
            self._frames = _OnePiece() if kind == _JSON else _FRAMES[kind](may_give_up=True)
        return self._frames is not None

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the answer, split anywhere; return what the client gets for them."""
        if self._frames is None:
            return data
        return b"".join([renamed(frame, self._name) for frame in self._frames.feed(data)])

    def end(self) -> bytes:
        """Take in the end of the answer; return what the client still gets."""
        return b"" if self._frames is None else renamed(self._frames.end(), self._name)


def renamed(document: bytes, name: bytes) -> bytes:
    """Return a JSON object, or an event that carries one, with another name (JSON) for its model.

    Of a `model` deeper inside, an argument of a tool for instance, nothing is changed.
    """
    if b'"model"' not in document:  # a hundred times as quick as the pattern
        return document
    depth = position = 0
    for found in _MODEL.finditer(document):
        depth += _levels(document[position : found.start()])
        position = found.end()
        if depth == 1 or (depth == 2 and _WRAPPED.search(document)):
            return document[: found.start(1)] + name + document[found.end(1) :]
    return document


def _levels(json: bytes) -> int:
    """Return how many levels deeper the end of a part of JSON is than its beginning."""
    structure = _STRING.sub(b"", json)
    opened = structure.count(b"{") + structure.count(b"[")
    return opened - structure.count(b"}") - structure.count(b"]")


class _OnePiece:
    """An answer that is no stream: one frame."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._is_over = False

    def feed(self, data: bytes) -> list[bytes]:
        """See `FrameReader.feed`."""
        if self._is_over:
            return [data]
        self._pieces.append(data)
        self._held_bytes += len(data)
        self._is_over = self._held_bytes > _NAMED_LATE_BYTES
        return [self.end()] if self._is_over else []

    def end(self) -> bytes:
        """See `FrameReader.end`."""
        whole, self._pieces = b"".join(self._pieces), []
        return whole


_JSON = "application/json"
_FRAMES: dict[str, type[LineFrames]] = {
    "application/x-ndjson": LineFrames,
    "application/ndjson": LineFrames,
    "application/jsonl": LineFrames,
    "text/event-stream": EventFrames,
}
