"""One request: one cancel scope, one stack of what it holds, one record of how it went.

Everything that a request holds is given back synchronously. So the departure of a client gives it back in
the very step in which it is noticed, even where the handler itself is stuck in a send that nobody reads
(Hypercorn shields it from cancellation).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from quart import Request
from quart.asgi import ASGIHTTPConnection
from quart_trio.asgi import TrioASGIHTTPConnection

from engine_router.events import EventHub, RequestEnded
from engine_router.relay import BrokenAnswer

if TYPE_CHECKING:
    from quart_trio import QuartTrio

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
    _began_at: float = field(factory=trio.current_time)

    def leave(self) -> None:
        """Give everything back and record how it went. Never waits; only the first call counts."""
        if self.finished:
            return
        self.finished = True
        self.stack.close()
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
        """Take in the body; when the client leaves, give everything back before anything else happens."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self.request_scope.finished:
            self.request_scope.status = 0 if self.request_scope.status < 400 else self.request_scope.status
            self.request_scope.leave()
        nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request. There is no time limit: a stream goes on for as long as its engine generates."""
        response = await self.app.handle_request(request)
        self.request_scope.status = response.status_code

        async def send_on(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # All of the answer is on its way: from here on the client's departure is no loss to anybody.
                self.request_scope.leave()
            await send(message)

        try:
            await self._send_response(send_on, response)
        except BrokenAnswer as error:
            # Returning without the last message makes the server break the connection, so that no client
            # takes what it got for the whole answer.
            self.request_scope.error = str(error)
            self.request_scope.status = error.error.status
        self.request_scope.leave()
        nursery.cancel_scope.cancel()


def connection_class(hub: EventHub) -> type[Connection]:
    """Return the class for an app whose events go to `hub`."""
    return type("Connection", (Connection,), {"hub": hub})
