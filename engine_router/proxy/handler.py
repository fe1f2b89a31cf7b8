"""The handler of proxied requests, which both tiers of the HTTP server share.

A tier parses a request, hands it in as `IncomingRequest`, and writes the `Reply`. Everything in between, and every
decision, is here and below.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING

import trio
from attrs import define

from engine_router.config import ServerConfig
from engine_router.config.families import named_by
from engine_router.dialects import OLLAMA, dialect_of
from engine_router.dialects.ollama.load_only import CONTENT_TYPE, keep_alive_s, load_answer, loads
from engine_router.dialects.routed import Routed
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.errors import RouterError
from engine_router.in_flight import InFlight, LeaseHolder, RequestScope
from engine_router.models.registry import Target
from engine_router.proxy.additions import footer_of, keep_alive_frames
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.held_bodies import HeldBodies, HeldShare
from engine_router.proxy.keys import priority_of
from engine_router.proxy.load_only import LoadOnly, load_only
from engine_router.proxy.placement import Placement
from engine_router.proxy.request_body import IN_THE_LOOP_BYTES, IncomingRequest, off_loop, read
from engine_router.proxy.response_body import (
    Sink,
    StreamOptions,
    blank_body,
    is_stream,
    plain_body,
    waiting_body,
)
from engine_router.proxy.route_exchange import MakeExchange
from engine_router.proxy.routes import answers_json
from engine_router.proxy.routing import Routing, features_in, marked, route_named
from engine_router.proxy.snapshot import Snapshot
from engine_router.proxy.streamed_body import StreamedRequest
from engine_router.proxy.token_counts import COUNT_TOKENS, counted_tokens
from engine_router.proxy.wait_status import progress_of
from engine_router.residency.lease import Lease
from engine_router.residency.read_model import ReadModel
from engine_router.residency.supervisor import Supervisor
from engine_router.telemetry.captures import Captures
from engine_router.telemetry.traces.sender import Traces
from engine_router.upstream.client import Upstream
from engine_router.upstream.http1 import Headers, ResponseHead

if TYPE_CHECKING:
    from engine_router.dialects.footer import Footer
    from engine_router.proxy.cache_guard import Ended
    from engine_router.proxy.tracing import RequestTrace


@define(eq=False, repr=False)
class Reply:
    """The beginning of an answer: its head, and its body, whole or in pieces that come one by one.

    Attributes:
        has_body: the first piece of the body is there already, so that head and piece can go out together.
    """

    head: ResponseHead
    body: bytes | AsyncGenerator[bytes, None]
    has_body: bool = True


@define(eq=False, repr=False)
class ProxyHandler:
    """Answers requests to the proxied routes by relaying them to the engine that owns their model.

    Args:
        snapshot: returns the configuration in force. Each request keeps the one that it began with.
        find: finds a model, and the snapshot that has it, or raises `UnknownModel`.
    """

    _snapshot: Callable[[], Snapshot]
    _find: Callable[[str, Snapshot], Awaitable[tuple[Snapshot, Target]]]
    _supervisor: Supervisor
    _read_model: ReadModel
    _upstream: Upstream
    _in_flight: InFlight
    _held_bodies: HeldBodies
    _captures: Captures
    _traces: Traces
    _routing: Routing
    _context: ContextKeeper | None
    _placement: Placement

    async def answer(self, incoming: IncomingRequest, scope: RequestScope, sink: Sink | None = None) -> Reply:
        """Wait for the engine and for the head of its answer, or for the first keep-alive frame to be due.

        What the request holds hangs on `scope`; cancellation leaves it there.

        Args:
            sink: takes pieces of the answer's body that come after the first one, in the place of whoever iterates
                over the body, and in between; the body yields the others.

        Raises:
            RouterError: there is no answer but this error.
        """
        snapshot, path = self._snapshot(), incoming.path
        server, dialect = snapshot.config.server, dialect_of(path)
        trace = None
        if snapshot.traces is not None:
            trace = self.trace(snapshot, scope, incoming.method, incoming.headers)
        if scope.key is not None:
            await self._in_flight.count(scope)
        held = HeldShare(self._held_bodies)
        scope.on_leave(held.release)
        snapshot, target, routed = await self._read(incoming, scope, snapshot, held)
        scope.model, scope.engine = target.model, target.engine
        capture = None
        if (wanted := snapshot.config.history.captures) and named_by(wanted, (target.model, routed.model)):
            from engine_router.proxy.capturing import CapturingSink, begin_capture, captured_body  # noqa: PLC0415 - as a rule nobody looks

            capture = begin_capture(self._captures, incoming, routed, scope)
            sink = None if sink is None else CapturingSink(sink, capture)
        if trace is not None:
            incoming.headers = trace.headers
        keep_alive: float | None = None
        if isinstance(routed, Routed) and (path == COUNT_TOKENS or dialect is OLLAMA):
            own, keep_alive = await self._answer_here(incoming, routed, target, scope, snapshot)
            if own is not None:
                return own
        make = None
        if scope.choice is not None or target.places:
            placed = await self._placement.placed(target, routed, scope)
            target = placed.first
            turn = functools.partial(self._exchange, incoming, routed, snapshot, held, scope)
            make = self._routing.turning(self._in_flight, self._upstream, snapshot, scope, turn, placed)
        exchange = await self._exchange(incoming, routed, snapshot, held, scope, target, make)
        self.enter(scope, target, exchange, incoming.headers, server, keep_alive)
        reply = await self._begin(exchange, path, routed, scope, server, sink)
        if scope.choice is not None:
            reply.head = marked(reply.head, scope.choice)
        if capture is not None:
            reply.body = captured_body(capture, reply.head, reply.body)
        return reply

    def trace(
        self, snapshot: Snapshot, scope: RequestScope, method: str, headers: Headers
    ) -> RequestTrace | None:
        """Begin the trace of a client's request, whatever its route; None where none is made, as for all when off."""
        if snapshot.traces is None:
            return None
        from engine_router.proxy.tracing import begin_trace  # noqa: PLC0415 - most routers never need it

        return begin_trace(self._traces, snapshot, scope, method, headers)

    async def _read(
        self, incoming: IncomingRequest, scope: RequestScope, snapshot: Snapshot, held: HeldShare
    ) -> tuple[Snapshot, Target, Routed | StreamedRequest]:
        """Read a request, as far as it has to be known, and find its model.

        With a key for some models it is read as a whole, so that nothing in it can name another one.

        Raises:
            RouterError: it cannot be understood, or there is no such model, or none for its key.
        """
        server, is_narrow = snapshot.config.server, scope.key is not None and scope.key.models is not None
        routed = await read(
            dialect_of(incoming.path),
            incoming,
            max_body_bytes=int(server.max_body_mb * 1_000_000),
            held=held,
            passes=_never if is_narrow else functools.partial(self._passes, snapshot),
            default_model=server.default_model and snapshot.default_model,
        )
        scope.model = routed.model
        if is_narrow and isinstance(routed, Routed):
            await off_loop(len(routed.body), routed.check_one_model)
        target = snapshot.registry.remembered(routed.model)
        if target is None:
            snapshot, target = await self._named(incoming, routed, scope, snapshot)
        if scope.key is not None:
            scope.check_model(routed.model, target)
        return snapshot, target, routed

    async def _named(
        self,
        incoming: IncomingRequest,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
        snapshot: Snapshot,
    ) -> tuple[Snapshot, Target]:
        """Find the model that a request names, or that the route chooses that it names.

        Raises:
            RouterError: there is none.
        """
        if (route := route_named(snapshot, routed.model)) is None:
            return await self._find(routed.model, snapshot)
        features = await features_in(incoming, routed, scope)
        return snapshot, await self._routing.target(snapshot, route, scope, features)

    def enter(
        self,
        scope: RequestScope,
        target: Target,
        holder: LeaseHolder,
        headers: Headers,
        server: ServerConfig,
        keep_alive_s: float | None = None,
    ) -> Lease:
        """Let a client's request take its place in the queue for a model, with the priority that its headers ask for.

        Every route that uses an engine on behalf of a client enters here. What the request holds hangs on its scope.

        Args:
            keep_alive_s: seconds that the resident shall stay afterwards; None leaves that as it is.

        Raises:
            BadRequest: the priority is none.
            ModelNotForKey: its key is for other models.
            RouterError: the queue is full, or the router ends.
        """
        client = scope.client
        if scope.key is not None:
            scope.check_model(target.model, target)
            client = scope.share
        priority = priority_of(headers, server.key_priorities, scope.key)
        scope.model, scope.engine, scope.holder = target.model, target.engine, holder
        scope.on_leave(self._in_flight.enter(scope.id, scope.path, target.model, holder, scope).close)
        return holder.enter(priority=priority, keep_alive_s=keep_alive_s, client=client)

    async def _passes(self, snapshot: Snapshot, path: str, model: str) -> bool:
        if route_named(snapshot, model) is not None:
            return False
        snapshot, target = await self._find(model, snapshot)
        return not target.places and snapshot.planner.passes(path, model, target)

    async def _answer_here(
        self,
        incoming: IncomingRequest,
        routed: Routed,
        target: Target,
        scope: RequestScope,
        snapshot: Snapshot,
    ) -> tuple[Reply | None, float | None]:
        """Answer what needs no engine: tokens to count that it cannot count, and requests that only load or unload.

        Returns:
            the answer, None where the engine gives it; and how many seconds its model shall stay.
        """
        path = incoming.path
        if path == COUNT_TOKENS:
            counted = await counted_tokens(self._read_model, snapshot, routed, target)
            return None if counted is None else _whole_reply(counted, "application/json"), None
        # How long a model stays is not for those to say who may neither load nor unload it.
        stay_s = keep_alive_s(routed.keep_alive) if scope.is_admin else None
        if not loads(path, routed.body):
            return None, stay_s
        load = load_only(self._supervisor, path, routed, target, scope)
        if load is None:
            return _whole_reply(load_answer(path, routed.model, unloaded=True), CONTENT_TYPE), None
        server = snapshot.config.server
        self.enter(scope, target, load, incoming.headers, server, stay_s)
        return await self._begin(load, path, routed, scope, server), None

    async def _exchange(
        self,
        incoming: IncomingRequest,
        routed: Routed | StreamedRequest,
        snapshot: Snapshot,
        held: HeldShare,
        scope: RequestScope,
        target: Target,
        make: MakeExchange | None = None,
    ) -> ProxyExchange:
        """Return the exchange of a request, with its plan where that is known before its engine runs."""
        path, planner = incoming.path, snapshot.planner
        size_bytes = len(routed.body) if isinstance(routed, Routed) else 0
        exchange: ProxyExchange
        footer: Footer | None = None
        if snapshot.config.server.footer and isinstance(routed, Routed):
            make_footer = functools.partial(footer_of, path, routed, lambda: exchange)
            footer = await off_loop(size_bytes, make_footer)

        def make_plan(*, native: bool) -> ForwardPlan:
            load_s = lambda: exchange.queue_wait_s  # noqa: E731 - for a translation
            made = planner.plan(incoming, routed, target, native=native, load_s=load_s, footer=footer)
            body = made.outgoing.body
            if body is not routed.body and isinstance(body, (bytes, bytearray)):
                held.grow(len(body))
            return made

        async def choose(base_url: str) -> ForwardPlan:
            native = await snapshot.endpoint_support.serves(target.engine, base_url, path)
            return await off_loop(size_bytes, functools.partial(make_plan, native=native))

        native = planner.is_native(path, target)
        plan: ForwardPlan | ChoosePlan
        if native is None:
            plan = choose
        elif size_bytes <= IN_THE_LOOP_BYTES:
            plan = make_plan(native=native)
        else:
            plan = await off_loop(size_bytes, functools.partial(make_plan, native=native))
        ended: Ended | None = None
        if target.engine in snapshot.config.guarded_engines:
            from engine_router.proxy.cache_guard import guarded  # noqa: PLC0415 - few engines need it

            headers, config = incoming.headers, snapshot.config
            plan, ended = guarded(plan, target, config, scope.key, headers, self._context)
        if make is None:
            exchange = ProxyExchange(self._supervisor, target.resident, upstream=self._upstream, plan=plan)
        else:
            exchange = make(target.resident, plan)
        if ended is not None:
            scope.on_leave(functools.partial(ended, exchange))
        return exchange

    async def _begin(
        self,
        exchange: ProxyExchange | LoadOnly,
        path: str,
        routed: Routed | StreamedRequest,
        scope: RequestScope,
        server: ServerConfig,
        sink: Sink | None = None,
    ) -> Reply:
        """Answer with the engine's own status and headers, or keep the client's connection open until they come."""
        dialect = dialect_of(path)
        try:
            head = await _head(exchange, path, routed, server)
            is_open = head is None or (routed.streams and is_stream(head, dialect))
            if head is not None and not is_open and (whole := exchange.take_whole()) is not None:
                return Reply(head, whole)
        except RouterError:
            exchange.close()
            raise
        options = StreamOptions(
            dialect=dialect,
            make_frames=lambda: keep_alive_frames(path, routed),
            # An error in a stream of this endpoint has to go on from what was sent of it.
            must_splice=path == "/v1/responses",
            interval_s=server.keepalive_interval_s or math.inf,
            on_error=scope.note_error,
            progress=(lambda: self._progress(exchange, scope)) if server.show_progress else (lambda: None),
            sink=sink,
        )
        if head is None and routed.streams:
            head = ResponseHead(200, [(b"content-type", dialect.stream_type.encode())])
            return Reply(head, waiting_body(exchange, options))
        if head is None:
            head = ResponseHead(200, [(b"content-type", b"application/json")])
            return Reply(head, blank_body(exchange, options))
        has_chunk = exchange.has_chunk
        body = plain_body(exchange, options, streams=is_open, waits=not has_chunk)
        return Reply(head, body, has_body=has_chunk)

    def _progress(self, exchange: ProxyExchange | LoadOnly, scope: RequestScope) -> str | None:
        if exchange.lease is None:
            return None
        names_others = scope.key is None or scope.key.models is None
        there = self._placement.peers.words(exchange.resident.engine, scope.model or "")
        return progress_of(self._read_model, exchange.lease, names_others=names_others, there=there)


async def _head(
    exchange: ProxyExchange | LoadOnly, path: str, routed: Routed | StreamedRequest, server: ServerConfig
) -> ResponseHead | None:
    """Wait for the head of the answer; None when the client should hear something before."""
    blanks_after_s = server.nonstreaming_keepalive_after_s or math.inf
    now = exchange.entered_at
    blanks_at = now + blanks_after_s if answers_json(path) else math.inf
    interval_s = server.keepalive_interval_s or math.inf
    # Whether a stream is asked for may come after what the engine is asked for.
    if not (routed.streams or isinstance(routed, StreamedRequest)):
        return await exchange.head(blanks_at)
    while True:
        streams, due = routed.streams, now + interval_s
        head = await exchange.head(due if streams else min(due, blanks_at))
        if head is not None or streams:
            return head
        # Where it turned out to be a stream, nothing is due before its first keep-alive.
        is_due = due < math.inf if routed.streams else trio.current_time() >= blanks_at
        if is_due:
            return None
        now = trio.current_time()


async def _never(_path: str, _model: str) -> bool:
    """Let no body go on before it is known as a whole."""
    return False


def _whole_reply(body: bytes, content_type: str) -> Reply:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    return Reply(ResponseHead(200, headers), body)
