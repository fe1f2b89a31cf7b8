"""WebSockets, relayed message by message to the engine of a model, which is resident for as long as they last.

A client that leaves gives the lease back in the step in which that is noticed. The router answers the client's
handshake when it knows the engine's answer to its own, so that a refusal reaches the client as one.
"""

from __future__ import annotations

import ssl
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope
from quart import websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIWebsocketConnection

from engine_router.config import Config, RemoteConfig
from engine_router.errors import EngineRefused, EngineUnreachable, NoModelNamed, NoSuchRoute, RouterError
from engine_router.events import EventHub
from engine_router.guards.foreign_text import printable
from engine_router.guards.limits import MAX_MESSAGE_BYTES, MAX_QUEUED
from engine_router.in_flight import LeaseHolder, RequestScope
from engine_router.models.registry import Target
from engine_router.proxy.keys import KEY_PROTOCOL
from engine_router.proxy.routes import VISIBLE, WEBSOCKET_ROUTES, model_in_query, query_for
from engine_router.proxy.routing import marks
from engine_router.proxy.snapshot import Snapshot
from engine_router.router import Router
from engine_router.upstream.http1 import Headers
from engine_router.web.compat.passed_through import check_path, model_in, model_named, segments_of
from engine_router.web.connection import SCOPE_KEY, scope_of, tidy, wire_headers

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection as EngineConnection

_MAX_REASON_BYTES: Final = 123  # RFC 6455, 5.5: a control frame has 125, two of them for the code
_ENGINE_FAILED, _TRY_AGAIN = 1011, 1013
# Codes that stand for the absence of one, and never go on the wire (RFC 6455, 7.4.1).
_NOT_SENT: Final = frozenset((1004, 1005, 1006, 1015))
_HANDSHAKE: Final = b"sec-websocket-"


EngineStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
"""A connection to an engine, before it is a WebSocket."""


class WebSocketConnection(TrioASGIWebsocketConnection):
    """Quart-Trio's handling of one WebSocket, with a `RequestScope` around it."""

    hub: EventHub

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        tidy(scope)
        super().__init__(app, scope)
        self.request_scope = RequestScope(scope["path"], self.hub)
        scope[SCOPE_KEY] = self.request_scope  # type: ignore[literal-required]

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the connection; give back what it holds however it ends."""
        try:
            await super().__call__(receive, send)
        finally:
            self.request_scope.leave()

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, receive: ASGIReceiveCallable
    ) -> None:
        """Take in the client's messages; when it leaves, give everything back before anything else happens."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                data = event.get("bytes")
                await self.send_channel.send(event.get("text") or "" if data is None else data)
            elif event["type"] == "websocket.disconnect":
                break
        self.request_scope.leave()
        nursery.cancel_scope.cancel()


def websocket_connection_class(hub: EventHub) -> type[WebSocketConnection]:
    """Return the class for an app whose events go to `hub`."""
    return type("WebSocketConnection", (WebSocketConnection,), {"hub": hub})


class WebSockets:
    """Relays the WebSockets of `/upstream/{id}/...` and `/v1/realtime`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def upstream(self, rest: str) -> None:  # noqa: ARG002 - decoded, which is not what goes on
        """`/upstream/{id}/...`: straight to the model's engine.

        Raises:
            RouterError: it cannot be connected.
        """
        segments = segments_of(websocket.scope["raw_path"])
        count, snapshot, target = await model_in(self._router, segments, scope_of(websocket))
        path = "/" + "/".join(segments[count:])
        check_path(snapshot, target, "GET", path, scope_of(websocket))
        await self._relay(snapshot, target, quote(path, safe=VISIBLE), websocket.query_string)

    async def routed(self) -> None:
        """`/v1/realtime?model=...`: to the engine of the model in the query, or of the default model.

        Raises:
            NoModelNamed: there is neither.
            RouterError: it cannot be connected.
        """
        model = model_in_query(websocket.query_string) or self._router.snapshot.default_model
        if model is None:
            raise NoModelNamed("a WebSocket names its model in its address: add ?model=...")
        snapshot, target = await model_named(self._router, model, scope_of(websocket))
        query = query_for(websocket.query_string, target.upstream)
        await self._relay(snapshot, target, websocket.path, query)

    async def _relay(self, snapshot: Snapshot, target: Target, path: str, query: bytes) -> None:
        if isinstance(snapshot.config.engines[target.engine], RemoteConfig):
            raise NoSuchRoute(f"no WebSocket is opened to '{target.engine}', a remote")
        scope, sent = scope_of(websocket), wire_headers(websocket)
        trace = self._router.handler.trace(snapshot, scope, "GET", sent)
        await self._router.in_flight.count(scope)
        holder = LeaseHolder(self._router.supervisor, target.resident)
        lease = self._router.handler.enter(scope, target, holder, sent, snapshot.config.server)
        endpoint = await holder.granted()
        resource = path + (f"?{quote(query, safe=VISIBLE)}" if query else "")
        failure: RouterError | None = None
        with trio.CancelScope() as revoked:
            lease.on_revoke(revoked.cancel)
            try:
                async with await self._dialled(snapshot.config, target, endpoint.base_url) as stream:
                    holder.sent_at = trio.current_time()
                    onward = sent if trace is None else trace.headers
                    await _converse(snapshot, target, endpoint.base_url, stream, resource, onward)
            except RouterError as error:
                failure = error
        await _send_error(lease.error or failure, scope)

    async def _dialled(self, config: Config, target: Target, base_url: str) -> EngineStream:
        """Open a connection to an engine.

        Raises:
            EngineUnreachable: it does not accept one, or not in time.
        """
        url = urlsplit(base_url)
        host = url.hostname or "127.0.0.1"
        try:
            with trio.fail_after(config.engines[target.engine].connect_timeout_s):
                if url.scheme == "https":
                    return await trio.open_ssl_over_tcp_stream(
                        host, url.port or 443, https_compatible=True, ssl_context=ssl.create_default_context()
                    )
                return await trio.open_tcp_stream(host, url.port or 80)
        except (OSError, trio.TooSlowError) as error:
            self._router.supervisor.doubt(target.resident)
            raise EngineUnreachable(target.engine, f"does not accept a connection: {error}") from None


async def _converse(
    snapshot: Snapshot, target: Target, base_url: str, stream: EngineStream, resource: str, sent: Headers
) -> None:
    """Shake hands with an engine, then with the client, and relay messages until either closes.

    Args:
        sent: the headers of the client's handshake, as they go on.

    Raises:
        EngineRefused: the engine answers the handshake with an HTTP status of its own.
        EngineUnreachable: it does not answer, or not in time.
    """
    import trio_websocket  # noqa: PLC0415 - most routers never need it

    failure: RouterError | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(snapshot.config.engines[target.engine].connect_timeout_s):
                    engine = await trio_websocket.wrap_client_stream(
                        nursery,
                        stream,
                        urlsplit(base_url).netloc,
                        resource,
                        subprotocols=_subprotocols(strip_keys=bool(snapshot.config.server.api_keys)),
                        extra_headers=_handshake_headers(snapshot, target, sent),
                        message_queue_size=MAX_QUEUED,
                        max_message_size=MAX_MESSAGE_BYTES,
                    )
            except (trio.TooSlowError, trio_websocket.ConnectionClosed) as error:
                words = f"does not answer a WebSocket's handshake: {error}"
                failure = EngineUnreachable(target.engine, words)
            else:
                scope = scope_of(websocket)
                scope.status = 101
                said = {name.decode(): words.decode() for name, words in marks(scope.choice)}
                await websocket.accept(headers=said, subprotocol=engine.subprotocol)
                await _exchange(engine)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # which the library's task raises into our nursery
        refused, others = group.split(trio_websocket.ConnectionRejected)
        if refused is None or others is not None:
            raise
        status = _status_in(refused)
        words = f"the engine answers the WebSocket's handshake with status {status}"
        failure = EngineRefused(target.engine, status, words)
    if failure is not None:
        raise failure


def _handshake_headers(snapshot: Snapshot, target: Target, sent: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of the handshake with an engine; those of the protocol itself are made anew."""
    headers = snapshot.planner.requests[target.engine].headers(sent)
    return [(name, value) for name, value in headers if not name.startswith(_HANDSHAKE)]


async def _exchange(engine: EngineConnection) -> None:
    """Relay messages both ways until the engine closes the connection; a client that leaves cancels this."""
    import trio_websocket  # noqa: PLC0415 - as above

    async def from_client() -> None:
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await engine.send_message(await websocket.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(from_client)
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await websocket.send(await engine.get_message())
        nursery.cancel_scope.cancel()
    reason = engine.closed
    code = _ENGINE_FAILED if reason is None or reason.code == 1006 else reason.code
    await websocket.close(1000 if code in _NOT_SENT else code, _bounded(reason.reason if reason else None))


async def _send_error(error: RouterError | None, scope: RequestScope) -> None:
    """Send the client an error, if there is one.

    Raises:
        RouterError: the handshake is not answered yet, and can be refused.
    """
    if error is None:
        return
    if scope.status != 101:
        raise error.with_traceback(None)
    scope.note_error(error)
    await websocket.close(_TRY_AGAIN if error.retryable else _ENGINE_FAILED, _bounded(str(error)))


def _bounded(reason: str | None) -> str:
    """Return a reason that fits into a closing frame."""
    return printable(reason or "").encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def _status_in(group: BaseExceptionGroup[BaseException]) -> int:
    """Return the status with which an engine refused a handshake, from the library's nested groups."""
    import trio_websocket  # noqa: PLC0415 - as above

    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _status_in(error)
        if isinstance(error, trio_websocket.ConnectionRejected):
            return error.status_code
    return 502


def _subprotocols(*, strip_keys: bool) -> list[str]:
    """Return the subprotocols that the engine is offered: the client's, without the router's keys."""
    offered = websocket.requested_subprotocols
    return [name for name in offered if not (strip_keys and name.startswith(KEY_PROTOCOL))]


def add_websockets(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = WebSockets(router)
    app.asgi_websocket_class = websocket_connection_class(router.hub)
    app.add_websocket("/upstream/<path:rest>", "upstream WebSockets", routes.upstream)
    for path in sorted(WEBSOCKET_ROUTES):
        app.add_websocket(path, f"{path} WebSockets", routes.routed)
