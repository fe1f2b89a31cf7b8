"""The body of an answer as its client gets it: with signs of life while nothing comes, and with errors told."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, field

from engine_router.dialects.base import Dialect
from engine_router.dialects.json_body import to_json
from engine_router.errors import EngineRefused, RouterError
from engine_router.guards.limits import MAX_FRAME_BYTES
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


class BrokenAnswer(Exception):
    """The answer broke off where no error can be told any more: the client's connection has to break too."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(str(error))
        self.error = error


class ResponseSource(Protocol):
    """What an answer comes from: a `ProxyExchange`, or something that behaves like one."""

    @property
    def has_length(self) -> bool:
        """Whether the answer's length was promised, so that nothing can be added to it."""
        ...

    @property
    def has_chunk(self) -> bool:
        """Whether bytes of the answer's body have come with its head."""
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

    async def refusal(self, status: int) -> EngineRefused:
        """Return the engine's own error answer as an error."""
        ...


@define(kw_only=True, eq=False)
class StreamOptions:
    """How the client of one request is kept waiting, and told of errors.

    Attributes:
        make_patience: makes the frames for a client that asked for a stream.
        must_splice: the answer passes through `patience` even if nothing was sent before it.
        interval_s: seconds of silence after which a waiting client gets a frame; infinity for never.
        on_error: called with an error that the client is told in an answer that has begun.
        progress: a line about the wait for people to read, where that is wanted.
        began_at: when the client began to wait, by trio's clock.
    """

    dialect: Dialect
    make_patience: Callable[[], KeepAliveFrames]
    interval_s: float
    on_error: Callable[[RouterError], object]
    must_splice: bool = False
    progress: Callable[[], str | None] = lambda: None
    began_at: float = field(factory=trio.current_time)
    _patience: KeepAliveFrames | None = None

    @property
    def patience(self) -> KeepAliveFrames:
        """The frames for this one client: made when first needed, for few need them."""
        if self._patience is None:
            self._patience = self.make_patience()
        return self._patience

    def frame(self) -> bytes:
        """Return the frame that is due now."""
        progress = self.progress()
        if progress or trio.current_time() - self.began_at >= LIVELY_AFTER_S:
            return self.patience.lively(progress)
        return self.patience.quiet()


def plain_body(
    passage: ResponseSource, options: StreamOptions, *, streams: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the body of an answer whose own head has been sent.

    Args:
        streams: it is a stream in the client's dialect, in which frames may be added and errors be told.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    return _body(passage, options, may_add=streams and not passage.has_length, splices=options.must_splice)


async def waiting_body(passage: ResponseSource, options: StreamOptions) -> AsyncGenerator[bytes, None]:
    """Yield keep-alive frames until the answer begins, then its body. The status 200 has been sent already.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    try:
        head: ResponseHead | None = None
        while head is None:
            yield options.frame()
            head = await passage.head(trio.current_time() + options.interval_s)
        if head.status >= 400:
            raise await passage.refusal(head.status)
    except RouterError as error:
        passage.close()
        options.on_error(error)
        yield options.patience.failure(error)
        return
    async with contextlib.aclosing(_body(passage, options, may_add=True, splices=True)) as body:
        async for data in body:
            yield data


async def blank_body(passage: ResponseSource, options: StreamOptions) -> AsyncGenerator[bytes, None]:
    """Yield blanks, which mean nothing in JSON, until the answer begins, then its body. 200 has been sent already.

    Raises:
        BrokenAnswer: there is no answer, or it broke off. The error has been yielded, for people to read, but the
            connection has to break: at a status of 200 a client takes what ends properly for an answer.
    """
    try:
        head: ResponseHead | None = None
        while head is None:
            yield b" "
            head = await passage.head(trio.current_time() + options.interval_s)
        if head.status >= 400:
            raise await passage.refusal(head.status)
        while data := await passage.chunk():
            yield data
    except RouterError as error:
        passage.close()
        yield to_json(options.dialect.error(error))
        raise BrokenAnswer(error) from error


async def _body(
    passage: ResponseSource, options: StreamOptions, *, may_add: bool, splices: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the body. Where a frame may be added, only whole frames go out, so that an error can always follow."""
    frames = _WholeFrames(options.dialect) if may_add else None
    patience = options.patience if splices and may_add else None
    last_at = -math.inf
    try:
        data: bytes | None
        while (data := await _first(passage, options, may_add=may_add)) is None:
            yield options.frame()
            patience = options.patience
        while data:
            whole = data if frames is None else frames.feed(data)
            if out := whole if patience is None or not whole else patience.splice(whole):
                yield out
            if len(data) < COALESCE_BYTES:
                if trio.current_time() - last_at < COALESCE_S:
                    await trio.sleep(COALESCE_S)
                last_at = trio.current_time()
            data = await passage.chunk()
        if last := _rest(frames, patience):
            yield last
    except RouterError as error:
        passage.close()
        if frames is None or frames.are_none:
            raise BrokenAnswer(error) from error
        options.on_error(error)
        yield options.patience.failure(error)


async def _first(passage: ResponseSource, options: StreamOptions, *, may_add: bool) -> bytes | None:
    """Wait for the first bytes of the answer; None when the client should hear something before."""
    if not may_add or passage.has_chunk or options.interval_s == math.inf:
        return await passage.chunk()
    return await passage.chunk_by(trio.current_time() + options.interval_s)


def _rest(frames: _WholeFrames | None, patience: KeepAliveFrames | None) -> bytes:
    """Return what was held back, now that the answer has ended."""
    rest = b"" if frames is None else frames.rest
    if patience is None:
        return rest
    return (patience.splice(rest) if rest else b"") + patience.end()


@define(eq=False)
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
        if end == 0 and len(data) > MAX_FRAME_BYTES:
            self.are_none, self.rest = True, b""
            return data
        self.rest = data[end:]
        return data[:end] if self.rest else data
