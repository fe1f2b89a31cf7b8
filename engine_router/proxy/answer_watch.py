"""The watch on an answer as it passes, for the figures that its engine tells of it.

It keeps hold of the first and the last pieces, and copies none. Every piece of every stream comes by here, so that
all that is done with most of them is one append to a deque.
"""

from __future__ import annotations

import functools
import math
import re
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from engine_router.dialects.base import Clock
from engine_router.dialects.usage import AnswerFigures, figures_in, model_in
from engine_router.proxy.response_body import has_end
from engine_router.proxy.stream_pace import StreamPace
from engine_router.upstream.client import Exchange
from engine_router.upstream.http1 import ResponseHead, first_value

# The pieces at the end of a stream: each of its last frames may come in two, and a comment may come behind them.
LAST_PIECES: Final = 6
# What is kept of a long piece, at its end or its beginning.
KEPT_BYTES: Final = 8192
# Pieces from the beginning that are looked at, at most, until one has text in it.
_LOOKED_AT: Final = 64
# Pieces that are kept of the beginning: it tells something in Anthropic's words above all.
FIRST_PIECES: Final = 2
_FIRST_PIECES_OF_MESSAGES: Final = 4
# A member with text in it that a model wrote.
_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|text|thinking|arguments|partial_json|response)"\s*:\s*"[^"]'
)
# The first events of `/v1/responses` may repeat what was asked for.
_DELTA: Final = re.compile(rb'"delta"\s*:\s*"[^"]')
# Stands in each event, and in no text: there its quote would be escaped.
_EVENT: Final = b'data: {"'
# Where a speed is measured, the text came at most that late after the first event, by its share of the time, and
# that time has so many seconds at least. Else it may be quite another figure: not all tokens were shown.
_LATE_TEXT: Final = 0.1
_LEAST_SPAN_S: Final = 0.05
# Whether an answer of a type comes in events or lines.
_STREAMS: Final = {
    b"application/json": False,
    b"text/event-stream": True,
    b"application/x-ndjson": True,
    b"application/ndjson": True,
    b"application/jsonl": True,
}


class StreamWatch:
    """Watches the body of one stream in the engine's own words, from its first piece on.

    Attributes:
        note: takes in a piece; another callable from some piece on, so it has to be looked up for each.
        first_token_at: when the first piece of a stream came with text in it; NaN before. By `clock`.
        ended_at: when the answer had come to its end; NaN before.
    """

    __slots__ = (
        "_beginning",
        "_clock",
        "_end",
        "_first_event_at",
        "_first_pieces",
        "_looked_at",
        "_pace",
        "_path",
        "_text",
        "ended_at",
        "first_token_at",
        "note",
    )

    def __init__(self, path: str, clock: Clock) -> None:
        """Watch the answer to a request to a path, as its engine got it."""
        self._path = path
        self._clock = clock
        self._text = _DELTA if path.endswith("/responses") else _TEXT
        self._first_pieces = _FIRST_PIECES_OF_MESSAGES if path.endswith("/messages") else FIRST_PIECES
        self._beginning: list[bytes] = []
        self._end: deque[bytes] = deque(maxlen=LAST_PIECES)
        self._looked_at = 0
        self._pace: StreamPace | None = None
        self._first_event_at = self.first_token_at = self.ended_at = math.nan
        self.note: Callable[[bytes], object] = self._note_early

    def piece(self, data: bytes) -> None:
        """Take in a piece of any size, of which not more is kept than may tell something."""
        self.note(data)
        if len(data) > KEPT_BYTES:
            self._end[-1] = data[-KEPT_BYTES:]

    def has_told_all(self) -> bool:
        """Tell whether the last event has come: what may follow it says nothing."""
        return has_end(self._path, b"".join(self._end))

    def end(self) -> None:
        """Take in the answer's end."""
        self.ended_at = self._clock()
        # With a method of its own as an attribute it would be garbage for the collector.
        self._pace, self.note = None, self._end.append

    def figures(self, *, entered_at: float, sent_at: float) -> AnswerFigures:
        """Return what is known so far; after the end, all that the engine has told.

        Where it tells how many tokens it wrote in a stream, and not how fast, the clock does.

        Args:
            entered_at: when the request came, by `clock`; the first token's time is from then on.
            sent_at: when its engine got it.
        """
        beginning, end = b"".join(self._beginning), b"".join(self._end)
        tokens_in, cached, tokens_out, speed, first_s = figures_in(self._path, beginning, end, streams=True)
        if speed is None and tokens_out is not None and tokens_out > 1:
            span_s = self.ended_at - self.first_token_at  # the first token's time was spent on the prompt
            late_s = self.first_token_at - self._first_event_at
            if span_s >= _LEAST_SPAN_S and late_s <= _LATE_TEXT * span_s:
                speed = (tokens_out - 1) / span_s
        if first_s is not None:
            first_s += sent_at - entered_at
        if not math.isnan(self.first_token_at):
            first_s = self.first_token_at - entered_at
        return AnswerFigures(tokens_in, cached, tokens_out, speed, first_s)

    def model(self) -> str | None:
        """Return the model that the answer names."""
        return model_in(b"".join(self._beginning), b"".join(self._end))

    def frames_per_s(self) -> float | None:
        """Return how many events of a stream come a second, of late: most engines send one for each token.

        None before the first text, the first time that somebody asks, and where it is no stream.
        """
        if math.isnan(self.first_token_at):
            return None
        if self._pace is None:
            mark = _EVENT if _EVENT in b"".join(self._beginning) else b"\n"
            self._pace = StreamPace(mark, self._clock, self._end.append, self._end_pace)
            self.note = self._pace.note
        return self._pace.per_s()

    def _end_pace(self) -> None:
        self._pace, self.note = None, self._end.append

    def _note_early(self, data: bytes) -> None:
        """Take in one of the first pieces of a stream."""
        if len(self._beginning) < self._first_pieces:
            self._beginning.append(data[:KEPT_BYTES])
        self._end.append(data[-KEPT_BYTES:])
        self._looked_at += 1
        if math.isnan(self._first_event_at) and not data.startswith(b":"):
            self._first_event_at = self._clock()
        if self._text.search(data) is not None:
            self.first_token_at = self._clock()
            self.note = self._end.append
        elif self._looked_at == _LOOKED_AT:
            self.note = self._end.append


class WholeWatch:
    """Watches the body of one answer that is no stream: it keeps the beginning and the end."""

    __slots__ = ("_beginning", "_end", "_path")

    def __init__(self, path: str) -> None:
        """Watch the answer to a request to a path, as its engine got it."""
        self._path = path
        self._beginning = self._end = b""

    def piece(self, data: bytes) -> None:
        """Take in a piece."""
        if (missing := KEPT_BYTES - len(self._beginning)) > 0:
            self._beginning += data[:missing]
        self._end = (self._end + data)[-KEPT_BYTES:] if len(data) < KEPT_BYTES else data[-KEPT_BYTES:]

    note = piece

    def has_told_all(self) -> bool:
        """Nobody knows before the end."""
        return False

    def end(self) -> None:
        """Take in the answer's end."""

    def figures(self, *, entered_at: float, sent_at: float) -> AnswerFigures:
        """Return what the engine has told; see `StreamWatch.figures`."""
        figures = figures_in(self._path, self._beginning, self._end, streams=False)
        if figures.first_token_s is None:
            return figures
        return figures._replace(first_token_s=figures.first_token_s + sent_at - entered_at)

    def model(self) -> str | None:
        """Return the model that the answer names."""
        return model_in(self._beginning, self._end)

    def frames_per_s(self) -> None:
        """It has no frames."""


AnswerWatch = StreamWatch | WholeWatch


def watch_for(path: str, clock: Clock, *, streams: bool) -> AnswerWatch:
    """Return a watch over the answer to a request to a path, as its engine got it."""
    return StreamWatch(path, clock) if streams else WholeWatch(path)


def watch_over(exchange: Exchange, head: ResponseHead) -> AnswerWatch | None:
    """Watch the body that follows a head; None where nothing in it tells of tokens, such as sound, or an error."""
    if head.status >= 400:
        return None
    content_type = first_value(head.headers, b"content-type")
    streams = None if content_type is None else _streams(content_type)
    if streams is None:
        return None
    path, clock = exchange.target.partition("?")[0], trio.lowlevel.current_clock().current_time
    exchange.watch = watch = watch_for(path, clock, streams=streams)
    return watch


@functools.lru_cache(64)
def _streams(content_type: bytes) -> bool | None:
    """Tell whether an answer of a content type comes in events or lines; None where nothing in it tells of tokens."""
    return _STREAMS.get(content_type.partition(b";")[0].strip().lower())
