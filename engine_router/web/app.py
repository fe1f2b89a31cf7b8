"""The Quart-Trio app: routes, keys, and errors in the dialect of the request."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from quart import Response, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
)
from werkzeug.routing import BaseConverter

from engine_router.dialects import OPENAI
from engine_router.dialects.base import error_headers
from engine_router.errors import (
    AmbiguousRequest,
    BadRequest,
    BodyTooLarge,
    NoSuchRoute,
    RequestTooSlow,
    RouterError,
    Unauthorized,
    WrongMethod,
)
from engine_router.guards.foreign_text import shown
from engine_router.proxy.access import place_of
from engine_router.proxy.routes import ROOT_PREFIXES, ROOT_ROUTES, base_url_hint
from engine_router.router import Router
from engine_router.upstream.forwarding import as_streamed
from engine_router.upstream.http1 import Headers
from engine_router.web import monitoring
from engine_router.web.admin import add_admin
from engine_router.web.anthropic import dialect_for
from engine_router.web.assets import asset
from engine_router.web.compat import add_compat
from engine_router.web.configuration import add_configuration
from engine_router.web.connection import (
    BODY_TIMEOUT_S,
    SCOPE_KEY,
    connection_class,
    peer_of,
    scope_of,
    wire_headers,
)
from engine_router.web.discovery import add_discovery
from engine_router.web.doctor import add_doctor
from engine_router.web.explain import add_explain
from engine_router.web.history import add_history
from engine_router.web.hub import add_hub
from engine_router.web.in_flight import add_in_flight
from engine_router.web.logs import LogRoutes
from engine_router.web.model_page import add_model_page
from engine_router.web.models import ModelList
from engine_router.web.ollama import OllamaApi
from engine_router.web.pages import own_headers, root, wants_html
from engine_router.web.params import switch
from engine_router.web.proxy import Proxy
from engine_router.web.responses import json_response, with_headers
from engine_router.web.session import add_session
from engine_router.web.websockets import add_websockets

logger = logging.getLogger(__name__)

App = QuartTrio
_ROUTED_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class IdConverter(BaseConverter):
    """The part of a path that is a model's id: it may have slashes in it, and begin with one."""

    regex = ".+?"
    weight = 200
    part_isolating = False


def create_app(router: Router) -> App:
    """Make the ASGI app of a router."""
    app = QuartTrio("engine_router", static_folder=None)
    app.asgi_http_class = connection_class(router.hub)
    # Quart's own limits would cut long streams and large bodies, the first one in silence.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    app.config["MAX_CONTENT_LENGTH"] = int(router.config.server.max_body_mb * 1_000_000)
    app.url_map.merge_slashes = False
    app.url_map.converters["id"] = IdConverter
    app.before_request(_before(router))
    app.before_websocket(_before_websocket(router))
    app.after_request(_after(router))
    _add_routes(app, router)
    _add_error_handlers(app, router)
    return app


def _before(router: Router):  # type: ignore[no-untyped-def]  # noqa: ANN202 - Quart's own type is not public
    async def check() -> Response | None:
        headers, access = wire_headers(request), router.snapshot.access
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise AmbiguousRequest(
                "the request has a Content-Length and a Transfer-Encoding; it must have one"
            )
        access.check_host(headers)
        allowed = access.preflight(request.method, headers)
        if allowed is not None:
            return _empty(allowed)
        scope, peer = scope_of(request), peer_of(request)
        scope.client = place_of(peer)
        is_route = request.routing_exception is None
        scope.key = access.check_key(request.method, request.path, headers, peer, is_route=is_route)
        scope.hops = access.hops(headers)
        access.check_page(request.method, request.path, request.query_string, headers)
        return None

    return check


def _before_websocket(router: Router):  # type: ignore[no-untyped-def]  # noqa: ANN202 - likewise
    async def check() -> None:
        headers = wire_headers(websocket)
        access = router.snapshot.access
        access.check_host(headers)
        scope, peer = scope_of(websocket), peer_of(websocket)
        scope.client = place_of(peer)
        is_route = websocket.routing_exception is None
        scope.key = access.check_key("GET", websocket.path, headers, peer, is_route=is_route)
        scope.hops = access.hops(headers)
        access.check_page("GET", websocket.path, websocket.query_string, headers)

    return check


def _empty(headers: Headers) -> Response:
    response = Response(b"", status=204)
    response.headers.clear()
    return with_headers(response, headers)


def _after(router: Router):  # type: ignore[no-untyped-def]  # noqa: ANN202 - likewise
    async def add(response: Response) -> Response:
        for name, value in own_headers(request.path).items():
            response.headers.setdefault(name, value)
        own = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in response.headers.items()
        ]
        response.headers.clear()
        with_headers(response, as_streamed(response.status_code, own))
        return with_headers(response, router.snapshot.access.answer_headers(wire_headers(request)))

    return add


def _add_routes(app: App, router: Router) -> None:
    limit = int(router.config.server.max_body_mb * 1_000_000)
    proxy, models = Proxy(router.handler, limit), ModelList(router)
    ollama = OllamaApi(router, proxy)
    app.add_url_rule("/", "root", root, methods=["GET"])
    app.add_url_rule("/ui/<path:name>", "asset", asset, methods=["GET"])
    for path in monitoring.ANSWERS:
        app.add_url_rule(path, path.removeprefix("/"), _monitoring(path, router), methods=["GET"])
    app.add_url_rule("/admin/logs", "logs", LogRoutes(router).logs, methods=["GET"])
    add_session(app, router)
    add_admin(app, router)
    add_model_page(app, router)
    add_configuration(app, router)
    add_doctor(app, router)
    add_in_flight(app, router)
    add_hub(app, router)
    add_history(app, router)
    add_discovery(app, router)
    add_explain(app, router)
    add_compat(app, router, models)
    add_websockets(app, router)
    app.add_url_rule("/v1/models", "models", models.listed, methods=["GET"])
    for rule in ("v1/<path:rest>", *ROOT_ROUTES, *(f"{prefix}<path:rest>" for prefix in ROOT_PREFIXES)):
        app.add_url_rule(f"/{rule}", rule, proxy.routed, methods=_ROUTED_METHODS)
    app.add_url_rule("/api/<path:rest>", "api", ollama.answer, methods=ANY_METHOD)


def _monitoring(path: str, router: Router) -> Callable[[], Awaitable[Response]]:
    async def respond() -> Response:
        if path == "/metrics" and switch("engines"):
            content_type, body = await monitoring.metrics_with_engines(router)
        else:
            content_type, body = await monitoring.watched(router, path)
        return Response(body, content_type=content_type)

    return respond


def _add_error_handlers(app: App, router: Router) -> None:
    limit = int(router.config.server.max_body_mb * 1_000_000)

    async def on_router_error(error: RouterError) -> Response:
        if not has_request_context():
            return _render_for_websocket(scope_of(websocket).as_answered(error))
        return _render(scope_of(request).as_answered(error) if SCOPE_KEY in request.scope else error)

    async def on_http_exception(error: HTTPException) -> Response:
        if not has_request_context():
            return _render_for_websocket(NoSuchRoute(f"there is no WebSocket at {shown(websocket.path)}"))
        return _render(_from_werkzeug(error, limit))

    async def on_defect(error: Exception) -> Response:
        defect = RouterError("the router failed at this request; its log has the details")
        if not has_request_context():
            logger.error("the WebSocket at %s failed", shown(websocket.path), exc_info=error)
            return _render_for_websocket(defect)
        logger.error("%s %s failed", shown(request.method), shown(request.path), exc_info=error)
        return _render(defect)

    app.register_error_handler(RouterError, on_router_error)
    app.register_error_handler(HTTPException, on_http_exception)
    app.register_error_handler(Exception, on_defect)


def _from_werkzeug(error: HTTPException, limit: int) -> RouterError:
    """Return our error for one that Quart raised."""
    if isinstance(error, RequestEntityTooLarge):
        return BodyTooLarge(limit)
    if isinstance(error, RequestTimeout):
        return RequestTooSlow(f"the request body did not arrive within {BODY_TIMEOUT_S} s")
    if isinstance(error, NotFound):
        hint = shown(base_url_hint(request.path))
        return NoSuchRoute(f"there is no {shown(request.method)} {shown(request.path)} here{hint}")
    if isinstance(error, MethodNotAllowed):
        return WrongMethod(f"{shown(request.path)} takes {', '.join(sorted(error.valid_methods or ()))}")
    return BadRequest(error.description or "the request cannot be understood")


def _render_for_websocket(error: RouterError) -> Response:
    """Return the answer to a handshake that is refused."""
    if SCOPE_KEY in websocket.scope:
        websocket.scope[SCOPE_KEY].note_error(error)  # type: ignore[literal-required]
    response = json_response(OPENAI.error(error), error.status)
    response.headers.update(error_headers(error))
    return response


def _render(error: RouterError) -> Response:
    if SCOPE_KEY in request.scope:
        scope_of(request).error = str(error)
    response = json_response(dialect_for(request).error(error), error.status)
    response.headers.update(error_headers(error))
    if isinstance(error, AmbiguousRequest):
        response.headers["Connection"] = "close"
    if isinstance(error, Unauthorized) and wants_html(request):
        response.headers["WWW-Authenticate"] = (
            'Basic realm="engine-router: any name, the API key as password"'
        )
    return response
