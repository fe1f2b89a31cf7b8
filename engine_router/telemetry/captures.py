"""Captures: requests and answers of chosen models, kept whole in memory to see what a client really sends.

They are in no file, and there is a bound on how many there are, on each body, and on all together. Secrets in headers
and queries are masked as they come, those that the configuration holds in bodies as they are shown.
"""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import trio
from attrs import define, field

from engine_router.config import HistoryConfig
from engine_router.guards.foreign_text import printable
from engine_router.guards.limits import CAPTURE_BYTES, MOST_CAPTURES
from engine_router.guards.masking import MASK, HiddenValues, is_secret_name, masked_text

# Of gzip and zlib alike: Content-Encoding's `deflate` is zlib's format.
_EITHER_FORMAT: Final = zlib.MAX_WBITS | 32
_DECODED: Final = frozenset(("gzip", "x-gzip", "deflate"))
_COMPRESSED: Final = "compressed, and not shown: secrets could not be hidden in it"

Octets = bytes | bytearray
Headers = Iterable[tuple[bytes, bytes]]


@define(eq=False, repr=False)
class CapturedBody:
    """One body, as much of it as is kept.

    Attributes:
        size: how many bytes have come, in all.
        kept: how many of them are here.
        is_dropped: it was removed, and takes in nothing more.
    """

    _grow: Callable[[CapturedBody, int], bool]
    size: int = 0
    kept: int = 0
    is_dropped: bool = False
    # Of one piece: each of many small ones would cost many times what it holds.
    _data: bytearray = field(factory=bytearray)

    def add(self, data: Octets) -> None:
        """Take in a piece."""
        self.size += len(data)
        count, is_whole = min(CAPTURE_BYTES - self.kept, len(data)), self.kept + len(data) == self.size
        if count > 0 and is_whole and not self.is_dropped and self._grow(self, count):
            self._data += data[:count]
            self.kept += count

    def drop(self) -> int:
        """Let go of what is kept. Returns how many bytes that was."""
        kept, self.kept, self.is_dropped = self.kept, 0, True
        self._data = bytearray()
        return kept

    def shown(self, hidden: HiddenValues, encoding: str = "") -> dict[str, Any]:
        """Return it as plain data: as text where it is one, else in base64; nothing of what cannot be decoded.

        Args:
            encoding: the content encoding that it is in; empty for none.
        """
        data, is_whole = bytes(self._data), self.kept == self.size
        if encoding:
            decoded = _decoded(data, encoding)
            if decoded is None:
                return {"bytes": self.size, "is_truncated": not is_whole, "text": None, "base64": None}
            data, is_whole = decoded
        about = {"bytes": self.size, "is_truncated": not is_whole}
        try:
            # The last character of what was cut off may be half a one.
            text = data.decode("utf-8", "strict" if is_whole else "ignore")
        except UnicodeDecodeError:
            # One byte that belongs to no text, and the secrets beside it could be read in base64.
            data = hidden(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
            return {**about, "text": None, "base64": base64.b64encode(data).decode("ascii")}
        return {**about, "text": hidden(text), "base64": None}


def _decoded(data: bytes, encoding: str) -> tuple[bytes, bool] | None:
    """Return what a body in a content encoding says, and whether that is all of it; None where it cannot be read."""
    if encoding not in _DECODED:
        return None
    decoder = zlib.decompressobj(_EITHER_FORMAT)
    try:
        return decoder.decompress(data, CAPTURE_BYTES), decoder.eof
    except zlib.error:
        return None


@define(eq=False, repr=False, kw_only=True)
class Capture:
    """One request and its answer.

    Attributes:
        at: when its model was known, in seconds since the epoch.
        head_bytes: how much its headers and its query take.
        body_note: why its body is not here; None where it is.
        status: what the client got; None until it has ended.
    """

    _grow_head: Callable[[Capture, int], bool]
    id: str
    model: str
    engine: str
    endpoint: str
    method: str
    query: str
    key: str | None
    client: str | None
    request_headers: list[tuple[str, str]]
    request: CapturedBody
    answer: CapturedBody
    head_bytes: int = 0
    body_note: str | None = None
    at: float = field(factory=time.time)
    began_at: float = field(factory=trio.current_time)
    answer_headers: list[tuple[str, str]] = field(factory=list)
    answer_status: int | None = None
    status: int | None = None
    error: str | None = None
    duration_s: float | None = None
    _encoding: str = field(init=False, default="")

    def begin_answer(self, status: int, headers: Headers) -> None:
        """Take in the head of the answer."""
        masked = masked_headers(headers)
        self.answer_status = status
        self._encoding = _encoding_in(masked)
        if self._grow_head(self, _length(masked)):
            self.answer_headers = masked

    def end(self, status: int, error: str | None) -> None:
        """Take in how it ended."""
        self.status, self.error = status, error
        self.duration_s = trio.current_time() - self.began_at

    def entry(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "model": self.model,
            "engine": self.engine,
            "endpoint": self.endpoint,
            "key": self.key,
            "client": self.client,
            "status": self.status,
            "error": self.error,
            "duration_s": None if self.duration_s is None else round(self.duration_s, 3),
            "is_over": self.duration_s is not None,
            "request_bytes": self.request.size,
            "answer_bytes": self.answer.size,
        }

    def as_dict(self, hidden: HiddenValues) -> dict[str, Any]:
        """Return all of it as plain data."""
        answer = self.answer.shown(hidden, self._encoding)
        is_hidden = self.answer.kept > 0 and answer["text"] is None and answer["base64"] is None
        return {
            **self.entry(),
            "request": {
                "method": self.method,
                "path": self.endpoint,
                "query": hidden(self.query),
                "headers": [[name, hidden(value)] for name, value in self.request_headers],
                "body": self.request.shown(hidden),
                "body_note": self.body_note,
            },
            "answer": {
                "status": self.answer_status,
                "headers": [[name, hidden(value)] for name, value in self.answer_headers],
                "body": answer,
                "body_note": _COMPRESSED if is_hidden else None,
            },
        }


@define(eq=False, repr=False)
class Captures:
    """The captures of one router, the last ones.

    Args:
        settings: returns the options in force.
    """

    _settings: Callable[[], HistoryConfig]
    _captures: dict[str, Capture] = field(factory=dict)
    _bytes: int = 0

    def begin(self, capture_id: str, *, headers: Headers, **about: Any) -> Capture:
        """Return a new capture, the oldest ones making room for it. The arguments are its attributes."""
        masked = masked_headers(headers)
        capture = Capture(
            grow_head=self._grow_head,
            id=capture_id,
            request_headers=[],
            request=CapturedBody(self._grow),
            answer=CapturedBody(self._grow),
            **about,
        )
        while len(self._captures) >= MOST_CAPTURES:
            self._remove(next(iter(self._captures)))
        self._captures[capture_id] = capture
        if self._grow_head(capture, _length(masked) + len(capture.query)):
            capture.request_headers = masked
        else:
            capture.query = ""
        return capture

    def __len__(self) -> int:
        return len(self._captures)

    def get(self, capture_id: str) -> Capture | None:
        """Return a capture; None where there is none, or it was removed."""
        return self._captures.get(capture_id)

    def has(self, request_id: str, ended_at: float) -> bool:
        """Tell whether a past request is kept whole. Ids begin anew with each start of the router."""
        capture = self._captures.get(request_id)
        return capture is not None and capture.at <= ended_at + 1

    def listed(self) -> dict[str, Any]:
        """Return what there is as plain data, the last one first."""
        settings = self._settings()
        return {
            "captures": [capture.entry() for capture in reversed(self._captures.values())],
            "models": list(settings.captures),
            "bytes": self._bytes,
            "most": MOST_CAPTURES,
            "most_bytes": int(settings.captures_mb * 1e6),
            "most_bytes_of_one_body": CAPTURE_BYTES,
        }

    def clear(self) -> int:
        """Remove all. Returns how many there were."""
        count = len(self._captures)
        for capture_id in [*self._captures]:
            self._remove(capture_id)
        return count

    def reconfigure(self) -> None:
        """Take over other options: what nobody wants any more goes."""
        if not self._settings().captures:
            self.clear()
        self._make_room(0)

    def _grow(self, body: CapturedBody, count: int) -> bool:
        """Count more bytes of a body. Returns False where there is no room for them."""
        if not self._make_room(count) or body.is_dropped:
            return False
        self._bytes += count
        return True

    def _grow_head(self, capture: Capture, count: int) -> bool:
        """Count more bytes of headers. Returns False where there is no room for them, or the capture was removed."""
        if not self._make_room(count) or self._captures.get(capture.id) is not capture:
            return False
        capture.head_bytes += count
        self._bytes += count
        return True

    def _make_room(self, count: int) -> bool:
        """Remove the oldest for some bytes more. Returns False where that is not enough: the last one stays."""
        most = self._settings().captures_mb * 1e6
        while self._bytes + count > most:
            if len(self._captures) <= 1:
                return False
            self._remove(next(iter(self._captures)))
        return True

    def _remove(self, capture_id: str) -> None:
        capture = self._captures.pop(capture_id)
        self._bytes -= capture.head_bytes + capture.request.drop() + capture.answer.drop()


def masked_headers(headers: Headers) -> list[tuple[str, str]]:
    """Return headers as they may be shown."""
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
    return [
        (printable(name), MASK if is_secret_name(name) else printable(masked_text(value)))
        for name, value in pairs
    ]


def _encoding_in(headers: list[tuple[str, str]]) -> str:
    """Return the content encoding that headers name; empty for none."""
    named = ", ".join(value for name, value in headers if name.lower() == "content-encoding").strip().lower()
    return "" if named == "identity" else named


def _length(headers: list[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


def hidden_values(keys: Iterable[str], hidden: Mapping[str, str]) -> HiddenValues:
    """Return what hides the keys of clients, and the values that the configuration keeps to itself."""
    values = HiddenValues()
    values.add({**dict.fromkeys(keys, MASK), **hidden})
    return values
