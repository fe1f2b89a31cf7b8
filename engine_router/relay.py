"""A lease and an exchange with an engine become the answer to one request.

The way of a request has two steps that may take minutes, the wait for its engine and the wait for the
answer's head. Both can be interrupted for a keep-alive frame and taken up again, without a task of their own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

import trio
from attrs import define, field, frozen

from engine_router.dialects.base import Dialect, Octets, Translation, dig_error
from engine_router.engines.base import ResidentId
from engine_router.errors import EngineBroke, EngineRefused, EngineUnreachable, RouterError
from engine_router.residency.lease import Lease
from engine_router.residency.supervisor import Supervisor
from engine_router.wire.upstream import Arriving, Exchange, Headers, ResponseHead, Upstream, UpstreamRequest

T = TypeVar("T")

# Seconds that a broken connection waits for the news why: a process's death is known within milliseconds.
NEWS_GRACE_S = 0.25
# Seconds that an engine gets to confirm that it is gone, before the request is given up.
DOUBT_GRACE_S = 2.0
# What is read of an engine's error answer, for its message.
ERROR_BODY_BYTES = 65536

# Pieces that come faster than one in a millisecond, far faster than anybody reads, are let gather for a
# millisecond: each piece costs a turn of the loop and two system calls, whatever its size.
COALESCE_S = 0.001
COALESCE_BYTES = 16_384
# A frame longer than this is passed on before it is complete.
MAX_FRAME_BYTES = 262_144

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# The router may put frames into the body, so it asks for it unencoded; cookies are between client and router.
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"accept-encoding", b"cookie"}
_NOT_RETURNED = HOP_BY_HOP | {b"set-cookie", b"server", b"date"}
_KEYS = frozenset((b"authorization", b"x-api-key"))


class BrokenAnswer(Exception):
    """The answer broke off where no error can be told any more: the client's connection has to break too."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(str(error))
        self.error = error


def request_headers(headers: Headers, *, strip_keys: bool, added: Mapping[str, str]) -> Headers:
    """Return the headers that an engine gets of a client's.

    Args:
        strip_keys: the router has keys of its own, which are nobody else's business.
        added: headers that the configuration adds; they win over the client's.
    """
    dropped = _NOT_FORWARDED | named_in_connection(headers) | (_KEYS if strip_keys else frozenset())
    dropped |= {name.lower().encode("latin-1") for name in added}
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    return [*kept, *((name.encode("latin-1"), value.encode("utf-8")) for name, value in added.items())]


def response_headers(headers: Headers) -> Headers:
    """Return the headers that a client gets of an engine's."""
    dropped = _NOT_RETURNED | named_in_connection(headers)
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def named_in_connection(headers: Headers) -> frozenset[bytes]:
    """Return the headers that a Connection header declares to be for one hop only."""
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    )


@frozen(kw_only=True)
class Outgoing:
    """A request as it will be sent, once it is known where the resident answers."""

    engine: str
    resident: ResidentId
    method: str
    target: str
    headers: Headers
    body: Octets | Arriving
    connect_timeout_s: float

    def to(self, base_url: str) -> UpstreamRequest:
        """Address the request."""
        return UpstreamRequest(
            engine=self.engine,
            base_url=base_url,
            method=self.method,
            target=self.target,
            headers=self.headers,
            body=self.body,
            connect_timeout_s=self.connect_timeout_s,
        )


@define(eq=False)
class Passage:
    """One request on its way to its engine, and its answer on the way back.

    `close` is synchronous and idempotent: it gives back the lease, or the place in the queue, and ends the
    exchange. Cancellation of any method loses nothing; `head` may be called again. Once it is closed, nothing
    begins any more: who waits for the answer then gets an error, who waits for the engine has to be cancelled.

    Attributes:
        queue_wait_s: seconds until the lease was granted; NaN before.
        first_byte_s: seconds until the answer's first byte; NaN before.
    """

    _supervisor: Supervisor
    _upstream: Upstream
    _outgoing: Outgoing
    _translation: Translation | None = None
    queue_wait_s: float = math.nan
    first_byte_s: float = math.nan
    _began_at: float = field(factory=trio.current_time)
    _lease: Lease | None = None
    _exchange: Exchange | None = None
    _head: ResponseHead | None = None
    _retried: bool = False
    _closed: bool = False

    @property
    def resident(self) -> ResidentId:
        """What the request needs."""
        return self._outgoing.resident

    @property
    def has_length(self) -> bool:
        """Whether the answer's length was promised, so that nothing can be added to it."""
        return (
            self._translation is None
            and self._head is not None
            and self._head.header(b"content-length") is not None
        )

    @property
    def has_chunk(self) -> bool:
        """Whether bytes of the answer's body have come with its head."""
        return self._exchange is not None and self._exchange.has_chunk

    def enter(self) -> None:
        """Take a place in the queue."""
        self._lease = self._supervisor.request(self._outgoing.resident)

    def close(self) -> None:
        """Give everything back. Never waits; may be called again."""
        self._closed = True
        if self._exchange is not None:
            self._exchange.close()
        if self._lease is not None:
            self._lease.release()

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait for the head of the answer; None if it has not come by `until` (the clock of trio).

        Raises:
            RouterError: there will be none.
        """
        while True:
            try:
                return await self._advance(until)
            except EngineUnreachable as error:
                await self._consider_retry(error)
            except EngineBroke as error:
                raise await self._explained(error) from error

    async def chunk(self) -> bytes:
        """Return the next bytes of the answer; empty at its end, when everything has been given back.

        Raises:
            RouterError: the answer broke off.
        """
        if self._exchange is None or self._closed:
            return b""
        try:
            while True:
                data = await self._exchange.chunk()
                if not data:
                    last = self._translated(lambda translation: translation.end())
                    self.close()
                    return last
                if self._translation is not None:
                    data = self._translated(lambda translation, data=data: translation.feed(data))  # type: ignore[misc]
                if data:
                    return data
        except EngineBroke as error:
            raise await self._explained(error) from error

    async def _advance(self, until: float) -> ResponseHead | None:
        if self._lease is None:
            raise RuntimeError("a passage is entered before it is used")
        if self._exchange is None:
            await self._ensure_open()
            await _by(until, self._lease.granted)
            await self._ensure_open()
            # The grant may have come in the very step in which the time was up.
            if (endpoint := self._lease.endpoint) is None or self._lease.error is not None:
                return None
            self.queue_wait_s = self._lease.queue_wait_s
            exchange = self._exchange = await self._upstream.send(self._outgoing.to(endpoint.base_url))
            if self._closed:
                exchange.close()
                await self._ensure_open()
            self._lease.on_revoke(exchange.close)
        if self._head is None:
            self._head = await _by(until, self._exchange.head)
            if self._head is None:
                return None
            self.first_byte_s = trio.current_time() - self._began_at
        if self._translation is not None:
            return await self._translated_head(self._head, self._translation)
        return ResponseHead(self._head.status, response_headers(self._head.headers))

    async def _ensure_open(self) -> None:
        """See that nothing begins for a request that has been closed while it waited.

        Its task learns of that by cancellation, one step later than by the wait that just ended.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the passage has been closed")

    async def _translated_head(self, head: ResponseHead, translation: Translation) -> ResponseHead:
        if head.status >= 400:
            raise await self.refusal(head.status)
        return ResponseHead(head.status, [(b"content-type", translation.content_type.encode())])

    async def refusal(self, status: int) -> EngineRefused:
        """Read the engine's own error answer and return it as an error that any dialect can render."""
        body = b""
        with contextlib.suppress(EngineBroke):  # the status, and what came of the message, say enough
            while (
                self._exchange is not None
                and len(body) < ERROR_BODY_BYTES
                and (data := await self._exchange.chunk())
            ):
                body += data
        self.close()
        return EngineRefused(
            self._outgoing.engine, status, dig_error(body) or f"the engine answered {status}"
        )

    def _translated(self, step: Callable[[Translation], bytes]) -> bytes:
        if self._translation is None:
            return b""
        try:
            return step(self._translation)
        except ValueError as error:
            raise EngineBroke(self._outgoing.engine, f"broke off: {error}") from error

    async def _consider_retry(self, error: EngineUnreachable) -> None:
        """Nothing was sent: if the engine turns out to be gone, queue up again, once. Else raise the error."""
        lease = self._lease
        if lease is None or self._retried:
            raise error
        self._supervisor.doubt(self._outgoing.resident)
        with trio.move_on_after(DOUBT_GRACE_S):
            await lease.lost()
        await self._ensure_open()
        if lease.error is None:
            raise error
        self._retried = True
        lease.release()
        self._lease = self._supervisor.request(self._outgoing.resident)

    async def _explained(self, error: EngineBroke) -> RouterError:
        """Wait a moment for the news why the connection broke: a death, or a revocation, says more."""
        lease = self._lease
        if lease is None or self._closed:  # what was closed here is nothing that the engine did
            return error
        if lease.error is None:
            self._supervisor.doubt(self._outgoing.resident)
            with trio.move_on_after(NEWS_GRACE_S):
                await lease.lost()
        return lease.error or error


def plain_body(
    passage: Passage, dialect: Dialect, on_error: Callable[[RouterError], object], *, streams: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the body of an answer whose own head has been sent.

    Args:
        on_error: called with an error that the client is told in the stream.
        streams: errors may be told in the stream, in the client's dialect.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    return _body(passage, dialect, on_error, may_add=streams and not passage.has_length)


async def waiting_body(
    passage: Passage, dialect: Dialect, interval_s: float, on_error: Callable[[RouterError], object]
) -> AsyncGenerator[bytes, None]:
    """Yield keep-alive frames until the answer begins, then its body. The status 200 has been sent already.

    Raises:
        BrokenAnswer: it broke off where no error can be told.
    """
    try:
        head: ResponseHead | None = None
        while head is None:
            yield dialect.keepalive
            head = await passage.head(trio.current_time() + interval_s)
        if head.status >= 400:
            raise await passage.refusal(head.status)
    except RouterError as error:
        passage.close()
        on_error(error)
        yield dialect.stream_error(error)
        return
    async with contextlib.aclosing(_body(passage, dialect, on_error, may_add=True)) as body:
        async for data in body:
            yield data


async def _by(until: float, wait: Callable[[], Awaitable[T]]) -> T | None:
    """Wait for something until a time of trio's clock; None when it passes. No end costs no cancel scope."""
    if until == math.inf:
        return await wait()
    with trio.move_on_at(until):
        return await wait()
    return None


async def _body(
    passage: Passage, dialect: Dialect, on_error: Callable[[RouterError], object], *, may_add: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the body. Where a frame may be added, only whole frames go out, so that an error can always follow."""
    frames = _WholeFrames(dialect) if may_add else None
    last_at = -math.inf
    try:
        while data := await passage.chunk():
            if whole := data if frames is None else frames.feed(data):
                yield whole
            if len(data) < COALESCE_BYTES:
                if trio.current_time() - last_at < COALESCE_S:
                    await trio.sleep(COALESCE_S)
                last_at = trio.current_time()
        if frames is not None and frames.rest:
            yield frames.rest
    except RouterError as error:
        passage.close()
        if frames is None or frames.are_none:
            raise BrokenAnswer(error) from error
        on_error(error)
        yield dialect.stream_error(error)


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
