"""The end of a stream whose body has no framing: the connection's end is its end, and an engine's death looks the same."""

from __future__ import annotations

import re
from typing import Final

from attrs import define

from engine_router.upstream.http1 import ResponseHead

_CHAT: Final = re.compile(rb'\[DONE\]|"finish_reason":\s*"(?!null")|"error"')
_LINES: Final = re.compile(rb'"done":\s*true|"error"')
_MARKS: Final = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _CHAT,
    "/v1/messages": re.compile(rb'message_stop|"error"'),
    "/v1/responses": re.compile(rb'"response\.(completed|failed|incomplete)"|"error"'),
    "/api/chat": _LINES,
    "/api/generate": _LINES,
}
"""What every proper end has in it, by endpoint."""
_STREAMS: Final = frozenset((b"text/event-stream", b"application/x-ndjson"))
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
_OVERLAP_BYTES: Final = 64


@define(eq=False)
class StreamEnd:
    """A filter that changes nothing, and refuses the end of a stream that lacks the mark of its endpoint's ends."""

    _mark: re.Pattern[bytes]
    _rest: bytes = b""
    _has_come: bool = False

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the answer; return them as they are."""
        if not self._has_come:
            seen = self._rest + data
            self._has_come = self._mark.search(seen) is not None
            self._rest = seen[-_OVERLAP_BYTES:]
        return data

    def end(self) -> bytes:
        """Take in the end.

        Raises:
            ValueError: it is none.
        """
        if not self._has_come:
            raise ValueError("it closed the connection before the end of the stream")
        return b""


def stream_end_of(target: str, head: ResponseHead) -> StreamEnd | None:
    """Return what watches for the end of an answer; None where its framing, or nothing, tells it."""
    mark = _MARKS.get(target.partition("?")[0])
    kind = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    is_framed = any(name.lower() in _FRAMING for name, _ in head.headers)
    if mark is None or head.status >= 400 or is_framed or kind not in _STREAMS:
        return None
    return StreamEnd(mark)
