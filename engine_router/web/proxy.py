"""The proxied routes of the ordinary tier: Quart's request in, Quart's response out."""

from __future__ import annotations

from quart import Response, request

from engine_router.errors import NoSuchRoute, WrongMethod
from engine_router.guards.foreign_text import shown
from engine_router.proxy.handler import ProxyHandler
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.routes import base_url_hint, is_proxied, model_in_query, wire_target
from engine_router.router import Router
from engine_router.upstream.client import Exchange
from engine_router.upstream.forwarding import EngineRequests, response_headers
from engine_router.upstream.http1 import ResponseHead
from engine_router.web.connection import body_of, scope_of, wire_headers
from engine_router.web.responses import as_response, pieces_of


class Proxy:
    """Answers requests by relaying them to the engine that owns their model."""

    def __init__(self, handler: ProxyHandler, max_body_bytes: int) -> None:
        self._handler = handler
        self._max_body_bytes = max_body_bytes

    async def routed(self, rest: str = "") -> Response:  # noqa: ARG002 - the path says it, too
        """Answer a request of any method to a path that is not the router's own: `/v1/...`, and engines' root paths.

        Raises:
            WrongMethod: only a POST can name its model in a body, and the query names none.
            RouterError: there is no answer but this error.
        """
        if request.path == "/v1/models":
            raise WrongMethod("/v1/models takes GET")
        if request.method != "POST" and is_proxied(request.path) and not model_in_query(request.query_string):
            raise WrongMethod(
                f"{shown(request.path)} takes POST; any other method needs the model in the query (?model=...)"
            )
        return await self.answer(request.path)

    async def answer(self, path: str) -> Response:
        """Answer a request to one of the proxied routes.

        Raises:
            NoSuchRoute: it is not one of them.
            RouterError: there is no answer but this error.
        """
        if not is_proxied(path):
            hint = shown(base_url_hint(path))
            raise NoSuchRoute(f"there is no {shown(request.method)} {shown(path)} here{hint}")
        body = await body_of(request, self._max_body_bytes)
        incoming = IncomingRequest(path, request.query_string, wire_headers(request), body, request.method)
        reply = await self._handler.answer(incoming, scope_of(request))
        return as_response(reply.head, reply.body)


async def direct_exchange(
    router: Router, requests: EngineRequests, base_url: str, path: str, body: bytes | bytearray = b""
) -> Exchange:
    """Send the client's request to an engine without a swap and without a lease; its end hangs on the request's scope.

    Args:
        requests: makes requests to the engine.
        path: decoded; the query is the client's.

    Raises:
        EngineUnreachable: no connection could be made.
        TooManyInFlight: the client's key has as many requests in flight as it may.
    """
    scope, sent = scope_of(request), wire_headers(request)
    trace = router.handler.trace(router.snapshot, scope, request.method, sent)
    await router.in_flight.count(scope)
    outgoing = requests.outgoing(
        request.method,
        wire_target(path, request.query_string),
        sent if trace is None else trace.headers,
        body,
    )
    if trace is not None:
        trace.asked(outgoing.engine)
    exchange = await router.upstream.send(outgoing.to(base_url))
    scope.on_leave(exchange.close)
    return exchange


async def relayed(exchange: Exchange) -> Response:
    """Wait for the head of an engine's answer, and return the answer as it comes.

    Raises:
        EngineBroke: there is none.
    """
    head = await exchange.head()
    return as_response(ResponseHead(head.status, response_headers(head.headers)), pieces_of(exchange))
