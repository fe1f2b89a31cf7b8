"""The body of an answer as its client gets it: with keep-alive frames while nothing comes, and with errors."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field

from engine_router.dialects.base import Clock, Dialect
from engine_router.dialects.json_body import to_json
from engine_router.errors import EngineRefused, RouterError
from engine_router.guards.limits import MAX_FRAME_BYTES
from engine_router.upstream.body_watch import TakePiece
from engine_router.upstream.http1 import ResponseHead

if TYPE_CHECKING:
    from engine_router.dialects.keep_alive import KeepAliveFrames

# Pieces that come faster than one in a millisecond, far faster than anybody reads, are let gather for a
# millisecond: each piece costs a turn of the loop and two system calls, whatever its size.
COALESCE_S = 0.001
COALESCE_BYTES = 16_384
# Seconds of waiting after which clients that count events, and not bytes, are thought of too. The least patient
# one gives up after 120 s without an event.
LIVELY_AFTER_S = 30.0


_LAST_CHUNK: Final = re.compile(rb'\[DONE\]|"finish_reason":\s*"(?!null")|"error"')
_LAST_LINE: Final = re.compile(rb'"done":\s*true|"error"')
_END_MARKS: Final = {
    "/v1/chat/completions": _LAST_CHUNK,
    "/v1/completions": _LAST_CHUNK,
    "/v1/messages": re.compile(rb'message_stop|"error"'),
    "/v1/responses": re.compile(rb'"response\.(completed|failed|incomplete)"|"error"'),
    "/api/chat": _LAST_LINE,
    "/api/generate": _LAST_LINE,
}
"""The mark of every proper end, by endpoint."""
_STREAMS: Final = frozenset((b"text/event-stream", b"application/x-ndjson"))
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
_OVERLAP_BYTES: Final = 64


class BrokenAnswer(Exception):
    """The answer broke off where no error can be told any more: the client's connection has to break too."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(str(error))
        self.error = error


class ResponseSource(Protocol):
    """The source of an answer: a `ProxyExchange`, or something that behaves like one."""

    @property
    def has_length(self) -> bool:
        """True if the answer's length was promised, so that nothing can be added to it."""
        ...

    @property
    def has_chunk(self) -> bool:
        """True if bytes of the answer's body have come with its head."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait for the head of the answer; None if it has not come by `until` (the clock of trio)."""
        ...

    async def chunk(self) -> bytes:
        """Return the next bytes of the answer; empty at its end."""
        ...

    async def chunk_by(self, until: float) -> bytes | None:
        """Return what `chunk` returns; None if nothing has come by `until` (the clock of trio)."""
        ...

    async def pass_on(self, take: TakePiece) -> None:
        """Hand the next bytes to `take` whenever some come, until it returns False; those that follow are left."""
        ...

    async def refusal(self, status: int) -> EngineRefused:
        """Return the engine's own error answer as an error."""
        ...


class Sink(Protocol):
    """A client's connection that takes pieces of an answer without a task: those that follow the first one."""

    def put(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a piece, given also as an HTTP chunk where it came as one. Returns False where not all of it could be sent at once: then nothing more may be put."""
        ...

    async def flush(self) -> None:
        """Send what is left of the last piece.

        Raises:
            ConnectionLost: the client has gone.
        """
        ...


@define(kw_only=True, eq=False, repr=False)
class StreamOptions:
    """The options of one client's answer: its keep-alive frames, its progress, its errors.

    Attributes:
        make_frames: makes the frames for a client that asked for a stream.
        must_splice: the answer passes through `keep_alive` even if nothing was sent before it.
        interval_s: seconds of silence after which a waiting client gets a frame; infinity for never.
        on_error: called with an error that ends an answer which has begun.
        progress: a line about the wait for people to read, where that is wanted.
        sink: what takes most pieces of the answer instead of them being yielded; None where all are.
        began_at: when the client began to wait, by trio's clock.
    """

    dialect: Dialect
    make_frames: Callable[[], KeepAliveFrames]
    interval_s: float
    on_error: Callable[[RouterError], object]
    must_splice: bool = False
    progress: Callable[[], str | None] = lambda: None
    sink: Sink | None = None
    began_at: float = field(factory=trio.current_time)
    _keep_alive: KeepAliveFrames | None = None

    @property
    def keep_alive(self) -> KeepAliveFrames:
        """The frames for this one client: made when first needed, for few need them."""
        if self._keep_alive is None:
            self._keep_alive = self.make_frames()
        return self._keep_alive

    def frame(self) -> bytes:
        """Return the frame that is due now."""
        progress = self.progress()
        if progress or trio.current_time() - self.began_at >= LIVELY_AFTER_S:
            return self.keep_alive.lively(progress)
        return self.keep_alive.quiet()


async def plain_body(
    exchange: ResponseSource,
    options: StreamOptions,
    *,
    streams: bool,
    waits: bool = True,
    has_waited: bool = False,
) -> AsyncGenerator[bytes, None]:
    """Yield the body of an answer whose own head has been sent. Only whole frames go out where an error can follow.

    Args:
        streams: it is a stream in the client's dialect, in which frames may be added and errors be told.
        waits: no bytes of it have come with its head.
        has_waited: frames have been sent already.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    may_add = has_waited or (streams and not exchange.has_length)
    frames = _WholeFrames(options.dialect) if may_add else None
    keep_alive = options.keep_alive if may_add and (has_waited or options.must_splice) else None
    try:
        data: bytes | None = None
        if may_add and waits and options.interval_s != math.inf:
            while (data := await exchange.chunk_by(trio.current_time() + options.interval_s)) is None:
                yield options.frame()
                keep_alive = options.keep_alive
        else:
            data = await exchange.chunk()
        pieces = _Pieces(frames, keep_alive, options.sink)
        while data:
            if out := pieces.feed(data):
                yield out
                pieces.have_begun = True
            if len(data) < COALESCE_BYTES:
                await pieces.pass_on(exchange)
            data = await exchange.chunk()
        if last := _rest(frames, keep_alive):
            yield last
    except RouterError as error:
        exchange.close()
        if frames is None or frames.are_none:
            raise BrokenAnswer(error) from error
        options.on_error(error)
        yield options.keep_alive.failure(error)


async def waiting_body(exchange: ResponseSource, options: StreamOptions) -> AsyncGenerator[bytes, None]:
    """Yield keep-alive frames until the answer begins, then its body. The status 200 has been sent already.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    try:
        head: ResponseHead | None = None
        while head is None:
            yield options.frame()
            head = await exchange.head(trio.current_time() + options.interval_s)
        if head.status >= 400:
            raise await exchange.refusal(head.status)
    except RouterError as error:
        exchange.close()
        options.on_error(error)
        yield options.keep_alive.failure(error)
        return
    async with contextlib.aclosing(plain_body(exchange, options, streams=True, has_waited=True)) as body:
        async for data in body:
            yield data


async def blank_body(exchange: ResponseSource, options: StreamOptions) -> AsyncGenerator[bytes, None]:
    """Yield blanks, which mean nothing in JSON, until the answer begins, then its body. 200 has been sent already.

    Raises:
        BrokenAnswer: there is no answer, or it broke off. The error has been yielded, for people to read, but the
            connection has to break: at a status of 200 a client takes what ends properly for an answer.
    """
    try:
        head: ResponseHead | None = None
        while head is None:
            yield b" "
            head = await exchange.head(trio.current_time() + options.interval_s)
        if head.status >= 400:
            raise await exchange.refusal(head.status)
        while data := await exchange.chunk():
            yield data
    except RouterError as error:
        exchange.close()
        yield to_json(options.dialect.error(error))
        raise BrokenAnswer(error) from error


def _rest(frames: _WholeFrames | None, keep_alive: KeepAliveFrames | None) -> bytes:
    """Return what was held back, now that the answer has ended."""
    rest = b"" if frames is None else frames.rest
    if keep_alive is None:
        return rest
    return (keep_alive.splice(rest) if rest else b"") + keep_alive.end()


@define(eq=False, repr=False)
class _WholeFrames:
    """Holds back the part of a stream behind its last complete frame, until the frame is complete.

    Attributes:
        rest: what is held back.
        are_none: the stream does not come in frames after all: everything is passed on as it comes.
    """

    _dialect: Dialect
    rest: bytes = b""
    are_none: bool = False

    def feed(self, data: bytes) -> bytes:
        """Take in bytes; return those that may go out."""
        if self.are_none:
            return data
        data = self.rest + data if self.rest else data
        end = self._dialect.frames_end(data)
        if end == len(data):
            self.rest = b""
            return data
        if end == 0 and len(data) > MAX_FRAME_BYTES:
            self.are_none, self.rest = True, b""
            return data
        self.rest = data[end:]
        return data[:end]


@define(eq=False, repr=False)
class _Pieces:
    """The pieces of an answer on their way to its client.

    Attributes:
        are_fast: the last two came within a millisecond.
        have_begun: one has gone out with the answer's head, so that the sink may take the next one.
    """

    _frames: _WholeFrames | None
    _keep_alive: KeepAliveFrames | None
    sink: Sink | None
    are_fast: bool = False
    have_begun: bool = False
    _last_at: float = -math.inf
    _now: Clock = field(factory=lambda: trio.lowlevel.current_clock().current_time)

    def feed(self, data: bytes) -> bytes:
        """Take in a piece; return what may go out."""
        whole = data if self._frames is None else self._frames.feed(data)
        return whole if self._keep_alive is None or not whole else self._keep_alive.splice(whole)

    def put(self, data: bytes, chunk: bytes) -> bool:
        """Hand a piece to the sink; see `TakePiece`. Returns whether the next one should go the same way."""
        now = self._now()
        self.are_fast = now - self._last_at < COALESCE_S and len(data) < COALESCE_BYTES
        self._last_at = now
        out = self.feed(data)
        is_sent = not out or self.sink is None or self.sink.put(out, chunk if out is data else b"")
        return is_sent and not self.are_fast

    async def pass_on(self, exchange: ResponseSource) -> None:
        """Hand the next pieces to the sink while they come at a pace; then let the faster ones gather for a moment."""
        now = self._now()
        self.are_fast = now - self._last_at < COALESCE_S
        self._last_at = now
        if self.sink is not None and self.have_begun and not self.are_fast:
            await exchange.pass_on(self.put)
            await self.sink.flush()
        if self.are_fast:
            await trio.sleep(COALESCE_S)
            self._last_at = self._now()


@define(eq=False, repr=False)
class StreamEnd:
    """A filter that changes nothing, and refuses the end of a stream that lacks the mark of its endpoint's ends.

    For a body without framing: the connection's end is its end, and an engine's death looks the same.
    """

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


def has_end(target: str, tail: bytes) -> bool:
    """Tell whether the last bytes of a stream have the mark of its endpoint's ends in them."""
    mark = _END_MARKS.get(target.partition("?")[0])
    return mark is not None and mark.search(tail) is not None


def stream_end_of(target: str, head: ResponseHead) -> StreamEnd | None:
    """Return the filter for an answer whose end only its connection's end tells; None where its framing, or nothing, does."""
    mark = _END_MARKS.get(target.partition("?")[0])
    if mark is None or head.status >= 400:
        return None
    kind = b""
    for name, value in head.headers:
        if name in _FRAMING:
            return None
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
    return StreamEnd(mark) if kind in _STREAMS else None


def is_stream(head: ResponseHead, dialect: Dialect) -> bool:
    """Tell whether frames can be put into an answer: not where it is encoded, an error, or something else."""
    kind = b""
    for name, value in head.headers:
        if name == b"content-encoding" and value != b"identity":
            return False
        if name == b"content-type" and not kind:
            kind = value.partition(b";")[0].strip().lower()
    return head.status < 400 and kind == dialect.stream_type.encode()
