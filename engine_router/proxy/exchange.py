"""The exchange of one request with its engine, from the queue to the end of the answer.

It has steps that may take minutes: the wait for the engine, and the wait for the answer. Each can be interrupted
for a keep-alive frame and taken up again, without a task of its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from attrs import define, field

from engine_router.dialects.base import Dialect
from engine_router.dialects.engine_errors import refused
from engine_router.dialects.usage import NO_FIGURES, AnswerFigures
from engine_router.engines.base import DOUBT_S, Endpoint
from engine_router.errors import EngineBroke, EngineRefused, EngineUnreachable, RequestCancelled, RouterError
from engine_router.guards.limits import ERROR_BODY_BYTES, ERROR_BODY_S, MAX_WHOLE_BYTES
from engine_router.in_flight import LeaseHolder
from engine_router.proxy.answer_stages import AnswerStages
from engine_router.proxy.answer_watch import AnswerWatch, watch_over
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.response_body import stream_end_of
from engine_router.proxy.whole_answer import WholeAnswer
from engine_router.residency.lease import Lease
from engine_router.upstream.body_watch import TakePiece
from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.forwarding import is_plain, is_stream_type, retry_after_s
from engine_router.upstream.http1 import Headers, ResponseHead, first_value

T = TypeVar("T")

# Seconds that a broken connection waits for the news why: a process's death is known soon on an idle machine.
NEWS_GRACE_S = 2.0
# Seconds that an engine gets to see that it is gone and to end what is left of it, before the request is given up.
DOUBT_GRACE_S = DOUBT_S + 3.0
# What says something of a body that is changed.
_OF_THE_BODY = frozenset((b"content-length", b"etag", b"content-md5", b"digest", b"content-digest"))
_OF_ITS_FORM = _OF_THE_BODY | {b"content-type"}

# Statuses below 500 after which the clients' libraries try again.
_RETRIED = frozenset((408, 409, 429))


@define(eq=False, repr=False)
class ProxyExchange(LeaseHolder):
    """The exchange of one request with its engine: the lease, the request as it is sent, the answer.

    `close` is synchronous and idempotent: it gives back the lease, or the place in the queue, and ends the
    exchange. Cancellation of any method loses nothing; `head` may be called again. Once it is closed, nothing
    begins any more: who waits for the answer then gets an error, who waits for the engine has to be cancelled.

    Attributes:
        has_length: the answer's length was promised, so that nothing can be added to it.
    """

    _upstream: Upstream = field(kw_only=True)
    _plan: ForwardPlan | ChoosePlan = field(kw_only=True)
    _choose: ChoosePlan | None = None
    has_length: bool = False
    _sending: trio.CancelScope | None = None
    _exchange: Exchange | None = None
    _raw_head: ResponseHead | None = None
    _head: ResponseHead | None = None
    _stages: AnswerStages = field(factory=AnswerStages)
    _whole: WholeAnswer | None = None
    _watch: AnswerWatch | None = None
    _retried: bool = False
    _closed: bool = False
    _on_end: Callable[[], None] | None = None

    @property
    def has_chunk(self) -> bool:
        """True if bytes of the answer's body have come with its head."""
        return self._whole is not None or (self._exchange is not None and self._exchange.has_chunk)

    def close(self) -> None:
        """Give everything back. Never waits; may be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._exchange is not None:
                self._exchange.close()
        finally:
            if self.lease is not None:
                self.lease.release()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()

    async def head(self, until: float = math.inf) -> ResponseHead | None:
        """Wait for the head of the answer; None if it has not come by `until` (the clock of trio).

        A translated answer in one piece is waited for to its end: a head promises that the body is understood.

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
        if self._whole is not None:
            return self._whole.take()
        if (exchange := self._exchange) is None or self._closed:
            return b""
        try:
            while True:
                data = await exchange.chunk()
                if not data:
                    last = self._ended()
                    self.close()
                    return last
                if self._stages:
                    data = self._stages.feed(data, self.resident.engine)
                if data:
                    return data
        except EngineBroke as error:
            raise await self._explained(error) from error

    def take_whole(self) -> bytes | None:
        """Return the answer's body where all of it has come, and give everything back; raises as `chunk` does."""
        if self._whole is not None:
            return self._whole.take()
        if self._exchange is None or (data := self._exchange.take_whole()) is None:
            return None
        if self._stages:
            data = self._stages.feed(data, self.resident.engine)
        data += self._ended()
        self.close()
        return data

    async def pass_on(self, take: TakePiece) -> None:
        """Hand the next bytes to `take` whenever some come, until it returns False; the rest is left for `chunk`.

        Raises:
            RouterError: the answer broke off.
        """

        def staged(data: bytes, _chunk: bytes) -> bool:
            data = self._stages.feed(data, self.resident.engine)
            return take(data, b"") if data else True

        try:
            if self._whole is None and self._exchange is not None and not self._closed:
                await self._exchange.pass_on(staged if self._stages else take)
        except EngineBroke as error:
            raise await self._explained(error) from error

    async def chunk_by(self, until: float) -> bytes | None:
        """Return what `chunk` returns; None if nothing has come by `until` (the clock of trio).

        Raises:
            RouterError: the answer broke off.
        """
        return await _by(until, self.chunk)

    def figures(self) -> AnswerFigures:
        """Return what the engine has told of its answer's tokens so far."""
        watch, at, sent = self._watch, self.entered_at, self.sent_at
        return NO_FIGURES if watch is None else watch.figures(entered_at=at, sent_at=sent)

    def answered_model(self) -> str | None:
        """See `LeaseHolder.answered_model`."""
        return None if self._watch is None else self._watch.model()

    def has_told_all(self) -> bool:
        """See `LeaseHolder.has_told_all`."""
        return self._watch is not None and self._watch.has_told_all()

    def frames_per_s(self) -> float | None:
        """See `StreamWatch.frames_per_s`."""
        return None if self._watch is None else self._watch.frames_per_s()

    async def refusal(self, status: int) -> EngineRefused:
        """Read the engine's own error answer and return it as an error that any dialect can render."""
        body = await self._error_body() if self._whole is None else self._whole.take()
        error = refused(self.resident.engine, status, body)
        error.retry_after_s = retry_after_s(self._raw_head)
        return error

    async def _error_body(self) -> bytes:
        """Read the engine's own error answer, as much of it as comes, and is worth it; then give everything back."""
        body, exchange = b"", self._exchange
        with contextlib.suppress(EngineBroke), trio.move_on_after(ERROR_BODY_S):
            while exchange is not None and len(body) < ERROR_BODY_BYTES and (data := await exchange.chunk()):
                body += data
        self.close()
        return body

    async def _advance(self, until: float) -> ResponseHead | None:
        if (exchange := self._exchange or await self._sent(until)) is None:
            return None
        if self._raw_head is None:
            self._raw_head = await exchange.head_by(until)
            if self._raw_head is None:
                return None
            self.first_byte_s = trio.current_time() - self.entered_at
            self._watch = watch_over(exchange, self._raw_head)
        if self._head is None:
            self._head = await self._begin(self._raw_head)
            self.has_length = first_value(self._head.headers, b"content-length") is not None
        if self._whole is not None and not self._whole.is_complete:
            whole = self._whole
            if await _by(until, lambda: self._gather(exchange, whole)) is None:
                return None
            self._head = ResponseHead(self._head.status, [*self._head.headers, whole.length])
            self.has_length = True
        return self._head

    async def _sent(self, until: float) -> Exchange | None:
        """Wait for the lease, and send the request; None if that has not come about by `until`.

        Whatever is done for the request ends when the lease is taken away: the question what the engine can do,
        the connecting, the upload.
        """
        lease = self.lease
        if lease is None:
            raise RuntimeError("a request is entered before it waits")
        if self._closed or lease.endpoint is None or lease.error is not None:
            await self._ensure_open()
            await _by(until, lease.granted)
            await self._ensure_open()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        # The grant may have come in the very step in which the time was up.
        if (endpoint := lease.endpoint) is None or lease.error is not None:
            return None
        self.queue_wait_s, self.load_wait_s = lease.granted_at - lease.requested_at, lease.load_wait_s
        exchange = self._sent_at_once(endpoint) or await self._sent_in_time(lease, endpoint, until)
        if exchange is not None and endpoint.on_use is not None:
            self._on_end = endpoint.on_use(exchange.target)
        return exchange

    def _sent_at_once(self, endpoint: Endpoint) -> Exchange | None:
        """Send the request where nothing has to be waited for; None where something has."""
        if isinstance(self._plan, ForwardPlan):
            self.sent_at = trio.current_time()
            self._exchange = self._upstream.send_at_once(self._plan.outgoing.to(endpoint.base_url))
        return self._exchange

    async def _sent_in_time(self, lease: Lease, endpoint: Endpoint, until: float) -> Exchange | None:
        """Send the request; None if it is not known what to send by `until`."""
        with trio.CancelScope() as self._sending:
            plan = self._plan
            if not isinstance(plan, ForwardPlan):
                chosen = await self._chosen(plan, endpoint.base_url, until)
                if chosen is None:
                    return None
                plan = chosen
            self.sent_at = trio.current_time()
            exchange = self._exchange = await self._upstream.send(plan.outgoing.to(endpoint.base_url))
            if self._closed:
                exchange.close()
                await self._ensure_open()
            return exchange
        raise lease.error or RuntimeError("a request was interrupted by nobody")

    def revoked(self) -> None:
        """End what is being done with a lease that was taken away; for the step in which it was."""
        if self._exchange is not None:
            self._exchange.close()
        elif self._sending is not None:
            self._sending.cancel()

    async def _gather(self, exchange: Exchange, whole: WholeAnswer) -> bool:
        """Take in an answer in one piece to its end. May be cancelled and called again."""
        while data := await exchange.chunk():
            whole.size_bytes += len(data)
            if whole.size_bytes > MAX_WHOLE_BYTES:
                limit = f"is longer than {MAX_WHOLE_BYTES / 1_000_000:.0f} MB"
                raise EngineBroke(self.resident.engine, f"broke off: its answer {limit}")
            whole.data += self._stages.feed(data, self.resident.engine)
        whole.data += self._ended()
        whole.is_complete = True
        self.close()
        return True

    async def _chosen(self, choose: ChoosePlan, base_url: str, until: float) -> ForwardPlan | None:
        """Return the plan, once it is chosen; None if that has not come about by `until`."""
        plan = await _by(until, lambda: choose(base_url))
        await self._ensure_open()
        if plan is not None:
            self._plan, self._choose = plan, choose
        return plan

    async def _ensure_open(self) -> None:
        """See that nothing begins for a request that has been closed while it waited.

        Its task learns of that by cancellation, one step later than by the wait that just ended.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the exchange has been closed")

    async def _begin(self, raw: ResponseHead) -> ResponseHead:
        """Return the head that the client gets, and prepare what the body passes through."""
        plan = self._plan
        if not isinstance(plan, ForwardPlan):
            raise TypeError("an answer without a plan")
        headers = plan.outgoing.answered(raw)
        is_native = plan.dialect is not None
        if plan.translation is not None and not (is_native and raw.status >= 400):
            if raw.status >= 400:
                raise await self.refusal(raw.status)
            content_type = plan.translation.content_type.encode()
            kept = [item for item in headers if is_native and item[0] not in _OF_ITS_FORM]
            headers = [*kept, (b"content-type", content_type)]
            self._stages.append(plan.translation)
            if not is_stream_type(content_type):
                self._whole = WholeAnswer()
        elif raw.status >= 400 and plan.dialect is not None and is_plain(headers):
            return await self._begin_error(raw.status, headers, plan.dialect)
        elif (end := stream_end_of(plan.outgoing.target, raw)) is not None:
            self._stages.append(end)
        if plan.filters:
            kind = (first_value(headers, b"content-type") or b"").decode("latin-1")
            encoding = (first_value(headers, b"content-encoding") or b"").decode("latin-1")
            changing = [step for step in plan.filters if step.begin(raw.status, kind, encoding)]
            if changing:
                headers = [item for item in headers if item[0] not in _OF_THE_BODY]
                self._stages += changing
        return ResponseHead(raw.status, headers)

    async def _begin_error(self, status: int, headers: Headers, dialect: Dialect) -> ResponseHead:
        """Return the head of the engine's own error answer, which goes on as it is where its client can read it.

        Raises:
            EngineRefused: the client could not.
        """
        body = await self._error_body()
        self._whole = WholeAnswer(bytearray(body), len(body), is_complete=True)
        if not dialect.is_error(body):
            error = await self.refusal(status)
            error.retryable = status in _RETRIED or status >= 500  # as clients take a bare status
            raise error
        kept = [item for item in headers if item[0] not in _OF_THE_BODY]
        return ResponseHead(status, [*kept, self._whole.length])

    def _ended(self) -> bytes:
        """Take in the end of the engine's answer; return what the client still gets."""
        if self._watch is not None:
            self._watch.end()
        return self._stages.end(self.resident.engine) if self._stages else b""

    async def _consider_retry(self, error: EngineUnreachable) -> None:
        """Nothing was sent: if the engine turns out to be gone, queue up again, once. Else raise the error."""
        lease = self.lease
        if lease is None or self._retried:
            raise error
        await self._word_of_its_end(lease, DOUBT_GRACE_S)
        await self._ensure_open()
        if lease.error is None:
            raise error
        if isinstance(lease.error, RequestCancelled):
            raise lease.error
        self._retried = True
        self._plan = self._choose or self._plan  # another server may get something else
        lease.release()
        ticket = lease.ticket
        self.enter(priority=ticket.priority, keep_alive_s=ticket.keep_alive_s, client=ticket.client)

    async def _explained(self, error: EngineBroke) -> RouterError:
        """Wait a moment for the news why the connection broke: a death, or a revocation, says more."""
        lease = self.lease
        if lease is None or self._closed:  # what was closed here is nothing that the engine did
            return error
        if lease.error is None:
            await self._word_of_its_end(lease, NEWS_GRACE_S)
        return lease.error or error

    async def _word_of_its_end(self, lease: Lease, grace_s: float) -> None:
        """Have the resident looked at, and wait a moment for the news of its end."""
        self._supervisor.doubt(self.resident)
        with trio.move_on_after(0 if lease.lasts else grace_s):
            await lease.lost()


async def _by(until: float, wait: Callable[[], Awaitable[T]]) -> T | None:
    """Wait for something until a time of trio's clock; None when it passes. No end costs no cancel scope."""
    if until == math.inf:
        return await wait()
    with trio.move_on_at(until):
        return await wait()
    return None
