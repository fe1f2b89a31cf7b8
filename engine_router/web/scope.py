"""One request: one cancel scope, one stack of what it holds, one record of how it went.

Everything that a request holds is given back synchronously. So the departure of a client gives it back in
the very step in which it is noticed, even where the handler itself is stuck in a send that nobody reads
(Hypercorn shields it from cancellation).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import trio
from attrs import define, field
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, HTTPScope
from quart import Request, Response
from quart.asgi import ASGIHTTPConnection
from quart_trio.asgi import TrioASGIHTTPConnection

from engine_router.dialects import dialect_of
from engine_router.dialects.base import to_json
from engine_router.errors import BadRequest, RouterError
from engine_router.events import EventHub, RequestEnded
from engine_router.relay import BrokenAnswer

if TYPE_CHECKING:
    from quart_trio import QuartTrio

logger = logging.getLogger(__name__)

VISIBLE = "".join(map(chr, range(33, 127)))
# Seconds that a refused upload may go on: a connection that is closed with bytes unread is reset, and the
# reset may overtake the answer that says why.
LINGER_S = 2.0
SCOPE_KEY = "engine_router.request"
CLIENT_LEFT = 499


@define(eq=False)
class RequestScope:
    """What one request holds and how it goes.

    Attributes:
        stack: what it holds; every exit callback is synchronous.
        model, engine: filled in once known.
        status: what the client got; 0 while nothing was sent.
        error: in words, where something failed.
        uploaded: set when all of the request's body has come.
    """

    path: str
    hub: EventHub
    stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    model: str | None = None
    engine: str | None = None
    status: int = 0
    queue_wait_s: Callable[[], float] = lambda: math.nan
    first_byte_s: Callable[[], float] = lambda: math.nan
    error: str | None = None
    finished: bool = False
    uploaded: trio.Event = field(factory=trio.Event)
    _began_at: float = field(factory=trio.current_time)

    def note_error(self, error: RouterError) -> None:
        """Record what the client is told of an error in an answer that has begun."""
        self.status, self.error = error.status, str(error)

    def leave(self) -> None:
        """Give everything back and record how it went. Never waits; may be called again.

        A handler that is about to run when its client leaves may still take something before it is cancelled:
        the next call gives that back.
        """
        self.stack.close()
        if self.finished:
            return
        self.finished = True
        if self.engine is not None or self.model is not None:
            self.hub.publish(
                RequestEnded(
                    at=time.time(),
                    model=self.model,
                    engine=self.engine,
                    path=self.path,
                    status=self.status or CLIENT_LEFT,
                    duration_s=trio.current_time() - self._began_at,
                    queue_wait_s=_known(self.queue_wait_s()),
                    first_byte_s=_known(self.first_byte_s()),
                    error=self.error,
                )
            )


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def scope_of(request: Request) -> RequestScope:
    """Return the scope of a request."""
    found: Any = request.scope[SCOPE_KEY]  # type: ignore[literal-required]
    if not isinstance(found, RequestScope):
        raise TypeError("the request has no scope")
    return found


async def whole_body(request: Request) -> bytes:
    """Read a request's body.

    Raises:
        RequestEntityTooLarge, RequestTimeout: of werkzeug; the app renders them in the request's dialect.
    """
    data: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    return data


class Connection(TrioASGIHTTPConnection):
    """Quart-Trio's handling of one request, with a `RequestScope` around it."""

    hub: EventHub

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        scope["path"] = _path_in(scope["path"])
        if not scope["query_string"].isascii():  # which HTTP/1.1 does not allow; HTTP/2 lets it pass
            scope["query_string"] = quote(scope["query_string"], safe=VISIBLE).encode("ascii")
        super().__init__(app, scope)
        self.request_scope = RequestScope(scope["path"], self.hub)
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
            if message["type"] == "http.request" and not message.get("more_body", False):
                self.request_scope.uploaded.set()
            return message

        await ASGIHTTPConnection.handle_messages(self, request, noting_receive)
        self.request_scope.uploaded.set()  # nothing more will come
        if not self.request_scope.finished:
            self.request_scope.status = 0 if self.request_scope.status < 400 else self.request_scope.status
            self.request_scope.leave()
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request. There is no time limit: a stream goes on for as long as its engine generates."""
        try:
            response = await self.app.handle_request(request)
        except Exception as error:  # noqa: BLE001 - the app handles its own; this came before it could begin
            logger.info("%s %s cannot be understood: %r", request.method, request.path, error)
            response = _not_understood(request.path)
        self.request_scope.status = response.status_code

        async def send_on(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # All of the answer is on its way: from here on the client's departure is no loss to anybody.
                self.request_scope.leave()
                with trio.move_on_after(LINGER_S):
                    await self.request_scope.uploaded.wait()
            await send(message)

        try:
            await self._send_response(send_on, response)
        except BrokenAnswer as error:
            # Returning without the last message makes the server break the connection, so that no client
            # takes what it got for the whole answer.
            self.request_scope.note_error(error.error)
        self.request_scope.leave()
        nursery.cancel_scope.cancel()


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
