"""The proxied routes of the ordinary tier: Quart's request in, Quart's response out."""

from __future__ import annotations

from quart import Response, request

from engine_router.errors import NoSuchRoute, WrongMethod
from engine_router.guards.foreign_text import shown
from engine_router.proxy.handler import ProxyHandler
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.routes import base_url_hint, is_proxied, model_in_query
from engine_router.web.connection import body_of, scope_of, wire_headers
from engine_router.web.responses import as_response


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
