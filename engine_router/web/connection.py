"""Quart-Trio's handling of one request, with a `RequestScope` around it.

Hypercorn shields its sends from cancellation. So when a client leaves, what its request holds is given back
first, in the step in which the departure is noticed, and only then is the handler cancelled.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    WebsocketScope,
)
from quart import Request, Response, Websocket
from quart.asgi import ASGIHTTPConnection
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import RequestEntityTooLarge

from engine_router.dialects import dialect_of
from engine_router.dialects.json_body import to_json
from engine_router.errors import BadRequest, BodyTooLarge, RequestTooSlow
from engine_router.events import EventHub
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import LARGE_BYTES
from engine_router.in_flight import RequestScope
from engine_router.proxy.response_body import BrokenAnswer
from engine_router.proxy.routes import VISIBLE, tidied, without_key
from engine_router.proxy.streamed_body import Upload
from engine_router.server.fast_connection import LINGER_S
from engine_router.upstream.forwarding import KEY_HEADER

if TYPE_CHECKING:
    from quart_trio import QuartTrio

logger = logging.getLogger(__name__)

# A body that trickles in holds nothing but its connection; still it has to end some day. Seconds.
BODY_TIMEOUT_S = 600
SCOPE_KEY = "engine_router.request"


def scope_of(request: Request | Websocket) -> RequestScope:
    """Return the scope of a request, or of a WebSocket."""
    found: Any = request.scope[SCOPE_KEY]  # type: ignore[literal-required]
    if not isinstance(found, RequestScope):
        raise TypeError("the request has no scope")
    return found


def peer_of(incoming: Request | Websocket) -> str | None:
    """Return the address that a connection comes from; None where it is not known."""
    client = incoming.scope["client"]
    return None if client is None else str(client[0])


def wire_headers(incoming: Request | Websocket) -> list[tuple[bytes, bytes]]:
    """Return the headers that the client sent, their names in lower case whatever the server hands over."""
    return [(name.lower(), value) for name, value in incoming.scope["headers"]]


async def whole_body(request: Request) -> bytes:
    """Read a request's body.

    Raises:
        RequestEntityTooLarge, RequestTimeout: of werkzeug; the app renders them in the request's dialect.
    """
    data: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    return data


async def body_of(request: Request, max_bytes: int) -> bytes | Upload:
    """Return a request's body: all of it, or one that is read as it comes where it is, or may be, large.

    Raises:
        RequestEntityTooLarge, RequestTimeout: of werkzeug; the app renders them in the request's dialect.
    """
    length = request.content_length
    if length is not None and length <= LARGE_BYTES:
        return await whole_body(request)
    # Looked up now: it may be read by the answer's body, when the request is not Quart's current one any more.
    body = request.body

    async def piece() -> bytes:
        try:
            with trio.fail_after(BODY_TIMEOUT_S):
                return bytes(await anext(body, b""))
        except trio.TooSlowError:
            raise RequestTooSlow(f"nothing of the request body came within {BODY_TIMEOUT_S} s") from None
        except RequestEntityTooLarge:
            raise BodyTooLarge(max_bytes) from None

    return Upload(length, piece, max_bytes)


class Connection(TrioASGIHTTPConnection):
    """Quart-Trio's handling of one request, with a `RequestScope` around it."""

    hub: EventHub

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        tidy(scope)
        if not scope["query_string"].isascii():  # which HTTP/1.1 does not allow; HTTP/2 lets it pass
            scope["query_string"] = quote(scope["query_string"], safe=VISIBLE).encode("ascii")
        super().__init__(app, scope)
        self.request_scope = RequestScope(scope["path"], self.hub)
        self.uploaded = trio.Event()
        scope[SCOPE_KEY] = self.request_scope  # type: ignore[literal-required]

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request; give back what it holds however it ends."""
        try:
            await super().__call__(receive, send)
        finally:
            self.request_scope.leave()

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Take in the body; when the client leaves, give everything back before anything else happens.

        The server says that the client left when the answer is complete, too, from within the last send. To
        cancel that would keep it from closing the connection, or from waiting for the next request on it.
        """

        async def noting_receive() -> ASGIReceiveEvent:
            message = await receive()
            if message["type"] == "http.request":
                if not message.get("more_body", False):
                    self.uploaded.set()
                if (
                    self.request_scope.finished
                ):  # answered: nobody reads what still comes, a refused body above all
                    request.body.clear()
                    message["body"] = b""
            return message

        await ASGIHTTPConnection.handle_messages(self, request, noting_receive)
        self.uploaded.set()  # nothing more will come
        if self.request_scope.client_left():
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request. There is no time limit: a stream goes on for as long as its engine generates."""
        try:
            response = await self.app.handle_request(request)
        except Exception as error:  # noqa: BLE001 - the app handles its own; this came before it could begin
            why = shown(repr(error))
            logger.info("%s %s cannot be understood: %s", shown(request.method), shown(request.path), why)
            response = _not_understood(request.path)
        self.request_scope.status = response.status_code

        async def send_on(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # All of the answer is on its way: from here on the client's departure is no loss to anybody.
                self.request_scope.leave()
                with trio.move_on_after(LINGER_S):
                    await self.uploaded.wait()
            await send(message)

        try:
            await self._send_response(send_on, response)
        except BrokenAnswer as error:
            # Returning without the last message makes the server break the connection, so that no client
            # takes what it got for the whole answer.
            self.request_scope.note_error(error.error)
        self.request_scope.leave()
        nursery.cancel_scope.cancel()


def tidy(scope: HTTPScope | WebsocketScope) -> None:
    """Put the path of a request into the form by which everything else judges it, the access checks first."""
    scope["path"] = _path_in(scope["path"])
    raw = _path_in(scope["raw_path"].partition(b"?")[0].decode("latin-1")).encode("latin-1")
    key, path = without_key(raw)
    if key is not None:
        scope["headers"] = [*scope["headers"], (KEY_HEADER, key)]
    if (plain := tidied(path)) != raw:
        scope["path"], scope["raw_path"] = unquote_to_bytes(plain).decode("utf-8", "replace"), plain


def _path_in(target: str) -> str:
    """Return the path in a request's target, which may be a whole URL."""
    if target.startswith("/"):
        return target
    with contextlib.suppress(ValueError):
        target = urlsplit(target).path
    return target if target.startswith("/") else f"/{target}"


def _not_understood(path: str) -> Response:
    error = BadRequest("the request cannot be understood: its Host header or its target is malformed")
    body = to_json(dialect_of(path).error(error))
    return Response(body, status=error.status, content_type="application/json")


def connection_class(hub: EventHub) -> type[Connection]:
    """Return the class for an app whose events go to `hub`."""
    return type("Connection", (Connection,), {"hub": hub})
