"""From a whole request to the beginning of its answer: what both tiers of the HTTP server share.

A tier reads a request in its own way, hands it in as `IncomingRequest`, and writes the `Reply` in its own way. What
happens in between, and every decision in it, is here and below.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from engine_router.config import Config
from engine_router.dialects import OLLAMA, dialect_of
from engine_router.dialects.base import Dialect
from engine_router.dialects.ollama.loading import keep_alive_s, load_answer, loads
from engine_router.dialects.routed import Routed
from engine_router.errors import BadRequest, RouterError
from engine_router.in_flight import HeldShare, Request
from engine_router.models.registry import Target
from engine_router.proxy.credentials import priority_of
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ForwardPlanner
from engine_router.proxy.load_only import LoadOnly
from engine_router.proxy.plan import ForwardPlan
from engine_router.proxy.request_body import IncomingRequest, off_loop, read
from engine_router.proxy.request_scope import RequestScope
from engine_router.proxy.response_body import StreamOptions, blank_body, plain_body, waiting_body
from engine_router.proxy.routes import answers_json
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.proxy.wait_status import progress_of
from engine_router.residency.ledger import Phase
from engine_router.router import Router
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


class ProxyHandler:
    """Answers requests to the proxied routes by relaying them to the engine that owns their model."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._configure(router.config)

    def _configure(self, config: Config) -> None:
        router, server = self._router, config.server
        self._config = config
        self._courses = ForwardPlanner(
            config, router.endpoint_support, router.known_models.traits_of, strip_keys=bool(server.api_keys)
        )
        self._interval_s = float(server.keepalive_interval_s) or math.inf
        self._blanks_after_s = float(server.nonstreaming_keepalive_after_s) or math.inf
        self._max_body_bytes = int(server.max_body_mb * 1_000_000)

    async def answer(self, incoming: IncomingRequest, scope: RequestScope) -> Reply:
        """Wait for the engine and for the head of its answer, or for the first keep-alive frame to be due.

        What the request holds hangs on `scope`; cancellation leaves it there.

        Raises:
            RouterError: there is no answer but this error.
        """
        self._in_force()
        dialect = dialect_of(incoming.path)
        held = self._router.held_bodies.share()
        scope.stack.callback(held.release)
        routed = await read(
            dialect,
            incoming,
            max_body_bytes=self._max_body_bytes,
            held=held,
            passes=self._passes,
            default_model=self._config.server.default_model,
        )
        scope.model = routed.model
        target = await self._router.resolve(routed.model)
        # Those of the configuration by which it was found, whatever is read again from now on.
        planner = self._in_force()
        scope.model, scope.engine = target.model, target.engine
        if incoming.path == COUNT_TOKENS and isinstance(routed, Routed) and not await self._can_count(target):
            from engine_router.dialects.anthropic.tokens import count_tokens_body  # noqa: PLC0415 - few need it

            return _whole(await off_loop(len(routed.body), lambda: count_tokens_body(routed.data())))
        passage = await self._passage(incoming, routed, target, planner, held)
        scope.queue_wait_s = lambda: passage.queue_wait_s
        scope.first_byte_s = lambda: passage.first_byte_s
        scope.stack.callback(passage.close)
        entered = Request(scope.id, incoming.path, target.model, passage)
        scope.stack.callback(self._router.in_flight.enter(entered))
        passage.enter(
            priority=priority_of(incoming.headers, self._config.server.key_priorities),
            keep_alive_s=_keep_alive_s(incoming.path, routed),
            client=scope.client,
        )
        return await self._begin(passage, incoming.path, routed, scope)

    async def _passes(self, path: str, model: str) -> bool:
        target = await self._router.resolve(model)
        return self._in_force().passes(path, model, target)

    def _in_force(self) -> ForwardPlanner:
        """Return the courses of the configuration in force."""
        if self._config is not self._router.config:  # it was read again
            self._configure(self._router.config)
        return self._courses

    async def _can_count(self, target: Target) -> bool:
        """Tell whether the engine runs and counts tokens itself: nothing is loaded for a mere count."""
        status = self._router.read_model.resident(target.resident)
        if status.phase is not Phase.READY or status.base_url is None:
            return False
        return await self._router.endpoint_support.serves(target.engine, status.base_url, COUNT_TOKENS)

    async def _passage(
        self,
        incoming: IncomingRequest,
        routed: Routed | StreamedRequest,
        target: Target,
        planner: ForwardPlanner,
        held: HeldShare,
    ) -> ProxyExchange | LoadOnly:
        router = self._router
        if (
            isinstance(routed, Routed)
            and dialect_of(incoming.path) is OLLAMA
            and loads(incoming.path, routed.body)
        ):
            wish = _keep_alive_s(incoming.path, routed)
            answer = load_answer(incoming.path, routed.model, unloaded=wish == 0)
            return LoadOnly(router.supervisor, target.resident, answer, unloads=wish == 0)
        passage: ProxyExchange
        native = planner.is_native(incoming.path, target)
        size_bytes = len(routed.body) if isinstance(routed, Routed) else 0
        make_footer = functools.partial(self._footer, incoming.path, routed, lambda: passage)
        footer = await off_loop(size_bytes, make_footer)

        async def plan(*, native: bool) -> ForwardPlan:
            make = functools.partial(
                planner.plan,
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
                native=await router.endpoint_support.serves(target.engine, base_url, incoming.path)
            )

        way = choose if native is None else await plan(native=native)
        passage = ProxyExchange(router.supervisor, router.upstream, target.resident, way)
        return passage

    def _footer(
        self, path: str, routed: Routed | StreamedRequest, passage: Callable[[], ProxyExchange]
    ) -> Footer | None:
        if not self._router.config.server.footer or isinstance(routed, StreamedRequest):
            return None
        from engine_router.dialects.footer import footer_for  # noqa: PLC0415 - few need it

        return footer_for(
            path,
            _request_of(routed),
            sent_at=lambda: passage().sent_at,
            load_s=lambda: _load_s(passage()) or math.nan,
            clock=trio.current_time,
        )

    async def _begin(
        self,
        passage: ProxyExchange | LoadOnly,
        path: str,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
    ) -> Reply:
        """Answer with the engine's own status and headers, or keep the client's connection open until they come."""
        dialect = dialect_of(path)
        try:
            head = await self._head(passage, path, routed)
        except RouterError:
            passage.close()
            raise
        options = self._manner(passage, path, routed, scope)
        if head is None and routed.streams:
            head = ResponseHead(200, [(b"content-type", dialect.stream_type.encode())])
            return Reply(head, waiting_body(passage, options), has_body=True)
        if head is None:
            head = ResponseHead(200, [(b"content-type", b"application/json")])
            return Reply(head, blank_body(passage, options), has_body=True)
        is_open = routed.streams and _is_stream(head, dialect)
        return Reply(head, plain_body(passage, options, streams=is_open), has_body=passage.has_chunk)

    async def _head(
        self, passage: ProxyExchange | LoadOnly, path: str, routed: Routed | StreamedRequest
    ) -> ResponseHead | None:
        """Wait for the head of the answer; None when the client should hear something before."""
        blanks_at = trio.current_time() + self._blanks_after_s if answers_json(path) else math.inf
        # Whether a stream is asked for may come after what the engine is asked for.
        if not (routed.streams or isinstance(routed, StreamedRequest)):
            return await passage.head(blanks_at)
        while True:
            streams, now = routed.streams, trio.current_time()
            due = now + self._interval_s
            head = await passage.head(due if streams else min(due, blanks_at))
            if head is not None or streams:
                return head
            # Where it turned out to be a stream, nothing is due before its first keep-alive.
            is_due = due < math.inf if routed.streams else trio.current_time() >= blanks_at
            if is_due:
                return None

    def _manner(
        self,
        passage: ProxyExchange | LoadOnly,
        path: str,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
    ) -> StreamOptions:
        shows = self._router.config.server.show_progress
        return StreamOptions(
            dialect=dialect_of(path),
            make_patience=lambda: _patience(path, routed),
            # An error in a stream of this endpoint has to go on from what was sent of it.
            must_splice=path == "/v1/responses",
            interval_s=self._interval_s,
            on_error=scope.note_error,
            progress=(lambda: self._progress(passage)) if shows else (lambda: None),
        )

    def _progress(self, passage: ProxyExchange | LoadOnly) -> str | None:
        return None if passage.lease is None else progress_of(self._router.read_model, passage.lease)


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
