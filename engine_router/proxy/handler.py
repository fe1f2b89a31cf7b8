"""From a whole request to the beginning of its answer: what both tiers of the HTTP server share.

A tier reads a request in its own way, hands it in as `IncomingRequest`, and writes the `Reply` in its own way. What
happens in between, and every decision in it, is here and below.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, frozen

from engine_router.config import ServerConfig
from engine_router.dialects import OLLAMA, dialect_of
from engine_router.dialects.base import Dialect
from engine_router.dialects.ollama.load_only import keep_alive_s, load_answer, loads
from engine_router.dialects.routed import Routed
from engine_router.errors import BadRequest, RouterError
from engine_router.in_flight import HeldBodies, HeldShare, InFlight, Request
from engine_router.models.registry import Target
from engine_router.proxy.credentials import priority_of
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.load_only import LoadOnly
from engine_router.proxy.plan import ForwardPlan
from engine_router.proxy.request_body import IncomingRequest, off_loop, read
from engine_router.proxy.request_scope import RequestScope
from engine_router.proxy.response_body import StreamOptions, blank_body, plain_body, waiting_body
from engine_router.proxy.routes import answers_json
from engine_router.proxy.snapshot import Snapshot
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.proxy.wait_status import progress_of
from engine_router.residency.ledger import Phase
from engine_router.residency.read_model import ReadModel
from engine_router.residency.supervisor import Supervisor
from engine_router.upstream.client import Upstream
from engine_router.upstream.http1 import ResponseHead

if TYPE_CHECKING:
    from engine_router.dialects.footer import Footer
    from engine_router.dialects.keep_alive import KeepAliveFrames

COUNT_TOKENS = "/v1/messages/count_tokens"
# Waiting for less than this, in seconds, is no load of a model.
WARM_S = 0.001


@frozen
class Reply:
    """The beginning of an answer: its head, and a body that comes in pieces.

    Attributes:
        has_body: the first piece of the body is there already, so that head and piece can go out together.
    """

    head: ResponseHead
    body: AsyncGenerator[bytes, None]
    has_body: bool


@define(eq=False)
class ProxyHandler:
    """Answers requests to the proxied routes by relaying them to the engine that owns their model.

    Args:
        snapshot: returns the configuration in force. Each request keeps the one that it began with.
        resolve: finds a model in a snapshot, or raises `UnknownModel`.
    """

    _snapshot: Callable[[], Snapshot]
    _resolve: Callable[[str, Snapshot], Awaitable[Target]]
    _supervisor: Supervisor
    _read_model: ReadModel
    _upstream: Upstream
    _in_flight: InFlight
    _held_bodies: HeldBodies

    async def answer(self, incoming: IncomingRequest, scope: RequestScope) -> Reply:
        """Wait for the engine and for the head of its answer, or for the first keep-alive frame to be due.

        What the request holds hangs on `scope`; cancellation leaves it there.

        Raises:
            RouterError: there is no answer but this error.
        """
        snapshot = self._snapshot()
        server = snapshot.config.server
        dialect = dialect_of(incoming.path)
        held = self._held_bodies.share()
        scope.stack.callback(held.release)
        routed = await read(
            dialect,
            incoming,
            max_body_bytes=int(server.max_body_mb * 1_000_000),
            held=held,
            passes=functools.partial(self._passes, snapshot),
            default_model=server.default_model,
        )
        scope.model = routed.model
        target = await self._resolve(routed.model, snapshot)
        scope.model, scope.engine = target.model, target.engine
        if (
            incoming.path == COUNT_TOKENS
            and isinstance(routed, Routed)
            and not await self._can_count(snapshot, target)
        ):
            from engine_router.dialects.anthropic.tokens import count_tokens_body  # noqa: PLC0415 - few need it

            return _whole(await off_loop(len(routed.body), lambda: count_tokens_body(routed.data())))
        passage = await self._passage(incoming, routed, target, snapshot, held)
        scope.queue_wait_s = lambda: passage.queue_wait_s
        scope.first_byte_s = lambda: passage.first_byte_s
        scope.stack.callback(passage.close)
        entered = Request(scope.id, incoming.path, target.model, passage)
        scope.stack.callback(self._in_flight.enter(entered))
        passage.enter(
            priority=priority_of(incoming.headers, server.key_priorities),
            keep_alive_s=_keep_alive_s(incoming.path, routed),
            client=scope.client,
        )
        return await self._begin(passage, incoming.path, routed, scope, server)

    async def _passes(self, snapshot: Snapshot, path: str, model: str) -> bool:
        return snapshot.planner.passes(path, model, await self._resolve(model, snapshot))

    async def _can_count(self, snapshot: Snapshot, target: Target) -> bool:
        """Tell whether the engine runs and counts tokens itself: nothing is loaded for a mere count."""
        status = self._read_model.resident(target.resident)
        if status.phase is not Phase.READY or status.base_url is None:
            return False
        return await snapshot.endpoint_support.serves(target.engine, status.base_url, COUNT_TOKENS)

    async def _passage(
        self,
        incoming: IncomingRequest,
        routed: Routed | StreamedRequest,
        target: Target,
        snapshot: Snapshot,
        held: HeldShare,
    ) -> ProxyExchange | LoadOnly:
        if (
            isinstance(routed, Routed)
            and dialect_of(incoming.path) is OLLAMA
            and loads(incoming.path, routed.body)
        ):
            wish = _keep_alive_s(incoming.path, routed)
            answer = load_answer(incoming.path, routed.model, unloaded=wish == 0)
            return LoadOnly(self._supervisor, target.resident, answer, unloads=wish == 0)
        passage: ProxyExchange
        native = snapshot.planner.is_native(incoming.path, target)
        size_bytes = len(routed.body) if isinstance(routed, Routed) else 0
        make_footer = functools.partial(_footer, incoming.path, routed, lambda: passage)
        footer = await off_loop(size_bytes, make_footer) if snapshot.config.server.footer else None

        async def plan(*, native: bool) -> ForwardPlan:
            make = functools.partial(
                snapshot.planner.plan,
                incoming,
                routed,
                target,
                native=native,
                load_s=lambda: passage.queue_wait_s,
                footer=footer,
            )
            made = await off_loop(size_bytes, make)
            body = made.outgoing.body
            if body is not routed.body and isinstance(body, (bytes, bytearray)):
                held.grow(len(body))
            return made

        async def choose(base_url: str) -> ForwardPlan:
            return await plan(
                native=await snapshot.endpoint_support.serves(target.engine, base_url, incoming.path)
            )

        way = choose if native is None else await plan(native=native)
        passage = ProxyExchange(self._supervisor, self._upstream, target.resident, way)
        return passage

    async def _begin(
        self,
        passage: ProxyExchange | LoadOnly,
        path: str,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
        server: ServerConfig,
    ) -> Reply:
        """Answer with the engine's own status and headers, or keep the client's connection open until they come."""
        dialect = dialect_of(path)
        try:
            head = await _head(passage, path, routed, server)
        except RouterError:
            passage.close()
            raise
        options = self._options(passage, path, routed, scope, server)
        if head is None and routed.streams:
            head = ResponseHead(200, [(b"content-type", dialect.stream_type.encode())])
            return Reply(head, waiting_body(passage, options), has_body=True)
        if head is None:
            head = ResponseHead(200, [(b"content-type", b"application/json")])
            return Reply(head, blank_body(passage, options), has_body=True)
        is_open = routed.streams and _is_stream(head, dialect)
        return Reply(head, plain_body(passage, options, streams=is_open), has_body=passage.has_chunk)

    def _options(
        self,
        passage: ProxyExchange | LoadOnly,
        path: str,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
        server: ServerConfig,
    ) -> StreamOptions:
        return StreamOptions(
            dialect=dialect_of(path),
            make_patience=lambda: _patience(path, routed),
            # An error in a stream of this endpoint has to go on from what was sent of it.
            must_splice=path == "/v1/responses",
            interval_s=server.keepalive_interval_s or math.inf,
            on_error=scope.note_error,
            progress=(lambda: self._progress(passage)) if server.show_progress else (lambda: None),
        )

    def _progress(self, passage: ProxyExchange | LoadOnly) -> str | None:
        return None if passage.lease is None else progress_of(self._read_model, passage.lease)


async def _head(
    passage: ProxyExchange | LoadOnly, path: str, routed: Routed | StreamedRequest, server: ServerConfig
) -> ResponseHead | None:
    """Wait for the head of the answer; None when the client should hear something before."""
    blanks_after_s = server.nonstreaming_keepalive_after_s or math.inf
    blanks_at = trio.current_time() + blanks_after_s if answers_json(path) else math.inf
    interval_s = server.keepalive_interval_s or math.inf
    # Whether a stream is asked for may come after what the engine is asked for.
    if not (routed.streams or isinstance(routed, StreamedRequest)):
        return await passage.head(blanks_at)
    while True:
        streams, now = routed.streams, trio.current_time()
        due = now + interval_s
        head = await passage.head(due if streams else min(due, blanks_at))
        if head is not None or streams:
            return head
        # Where it turned out to be a stream, nothing is due before its first keep-alive.
        is_due = due < math.inf if routed.streams else trio.current_time() >= blanks_at
        if is_due:
            return None


def _footer(
    path: str, routed: Routed | StreamedRequest, passage: Callable[[], ProxyExchange]
) -> Footer | None:
    if isinstance(routed, StreamedRequest):
        return None
    from engine_router.dialects.footer import footer_for  # noqa: PLC0415 - few need it

    return footer_for(
        path,
        _request_of(routed),
        sent_at=lambda: passage().sent_at,
        load_s=lambda: _load_s(passage()) or math.nan,
        clock=trio.current_time,
    )


def _patience(path: str, routed: Routed | StreamedRequest) -> KeepAliveFrames:
    from engine_router.dialects.keep_alive import keep_alive_for  # noqa: PLC0415 - who need not wait need it not

    return keep_alive_for(path, routed.model, request=lambda: _request_of(routed))


def _keep_alive_s(path: str, routed: Routed | StreamedRequest) -> float | None:
    """Return for how long the model shall stay after this request, in seconds; None where nothing is said of it."""
    if isinstance(routed, StreamedRequest) or dialect_of(path) is not OLLAMA:
        return None
    return keep_alive_s(routed.keep_alive)


def _request_of(routed: Routed | StreamedRequest) -> Mapping[str, Any]:
    """Return the whole request; empty where it is not to be had."""
    if isinstance(routed, Routed):
        with contextlib.suppress(BadRequest):
            return routed.data()
    return {}


def _load_s(passage: ProxyExchange) -> float:
    """Return for how long a request waited for its model; 0 where it was there already."""
    waited = passage.queue_wait_s
    return waited if waited >= WARM_S else 0.0


def _is_stream(head: ResponseHead, dialect: Dialect) -> bool:
    """Tell whether frames can be put into an answer: not where it is encoded, an error, or something else."""
    kind = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    is_plain = head.header(b"content-encoding") in (None, b"identity")
    return head.status < 400 and is_plain and kind == dialect.stream_type.encode()


def _whole(body: bytes) -> Reply:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Reply(ResponseHead(200, headers), once(), has_body=True)
