"""Serving a router's app with Hypercorn, from the first socket to the last request."""

from __future__ import annotations

import errno
import importlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from engine_router.config import ServerConfig, is_open_to_network
from engine_router.guards.limits import LARGE_BYTES
from engine_router.in_flight import RequestScope
from engine_router.proxy.access import place_of
from engine_router.proxy.handler import Reply
from engine_router.proxy.request_body import IncomingRequest
from engine_router.proxy.response_body import Sink
from engine_router.proxy.routes import is_proxied
from engine_router.router import Router
from engine_router.server.accept import MakeFast, Server
from engine_router.server.fast_connection import FastConnection
from engine_router.server.fast_parser import RequestReader
from engine_router.upstream.hops import HOP_HEADERS
from engine_router.upstream.http1 import Headers, ResponseHead
from engine_router.upstream.socket_stream import RawStream
from engine_router.web import monitoring

if TYPE_CHECKING:
    from engine_router.server.ordinary_tier import OrdinaryTier

# Seconds that an idle connection of a client is kept: longer than clients' pools keep theirs (httpx 5, Node 5,
# Go 90), so that it is the client that closes and no request meets a closing connection.
KEEP_ALIVE_S = 120
BACKLOG = 1024
# Seconds after the last lease has ended in which answers still reach their clients.
FLUSH_S = 2.0
_NOT_HERE = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))


_MONITORED = frozenset(path.encode() for path in monitoring.PATHS)
_ANY_ADDRESS = "::"


class CannotListen(OSError):
    """The address to listen on cannot be used; the message says why and what to do."""


def listen(server: ServerConfig, port: int | None = None) -> list[socket.socket]:
    """Open the listening sockets. Clients can connect from now on, and wait until the router serves them.

    Args:
        port: instead of the configured one; 0 takes a free one.

    Raises:
        CannotListen: the address is in use, not allowed, or not one of this machine.
    """
    port = server.port if port is None else port
    sockets: list[socket.socket] = []
    try:
        for host in server.host:
            # A free port, once taken, is the port of every address.
            sockets += _listen_at(host, sockets[0].getsockname()[1] if sockets else port, sockets)
    except CannotListen:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _listen_at(host: str, port: int, others: Sequence[socket.socket]) -> list[socket.socket]:
    """Open the sockets of one host, but for the addresses that others have already."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise CannotListen(f"server.host {host} cannot be used: {error.strerror}") from None
    except UnicodeError:
        raise CannotListen(f"server.host {host} is no name of a host") from None
    taken = {sock.getsockname()[0] for sock in others}
    sockets: list[socket.socket] = []
    refusals: list[OSError] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):  # a hosts file may say it twice
        if address[0] in taken:
            continue
        free = sockets[0].getsockname()[1] if sockets else address[1]
        try:
            sockets.append(_opened(family, kind, protocol, (address[0], free, *address[2:])))
        except OSError as error:
            refusals.append(error)
    # `localhost` may name an address of a family that this machine has switched off: the others will do.
    fatal = [error for error in refusals if error.errno not in _NOT_HERE or not sockets]
    if fatal:
        for opened in sockets:
            opened.close()
        raise CannotListen(_why(host, port, fatal[0]))
    return sockets


def _opened(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is every address of this machine, the old ones too, as with other servers.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != _ANY_ADDRESS))
        sock.bind(address)
        # At once: two sockets can be bound to one port, and only the second one's listening would fail.
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _why(host: str, port: int, error: OSError) -> str:
    host = f"[{host}]" if ":" in host else host
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is in use already (another router?); stop that, or change server.port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{host}:{port} is not allowed for this user; take a server.port above 1023"
    return f"{host}:{port} cannot be listened on: {error.strerror or error}; check server.host"


async def serve(
    router: Router,
    *,
    sockets: Sequence[socket.socket] | None = None,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    when_loaded: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a router until `shutdown_trigger` returns, or until cancelled.

    At the trigger no new connection is accepted, requests in flight go on for at most
    `server.shutdown_timeout_s`, then this returns. Cancellation ends them at once.

    Args:
        sockets: from `listen`; opened as configured when absent.
        when_loaded: called when the app is loaded, which is when the first request comes that needs it.
        task_status: reports the URLs that are served.

    Raises:
        CannotListen: the configured address cannot be used.
    """
    server = router.config.server
    opened = list(sockets) if sockets is not None else listen(server)
    if is_open_to_network(server):
        router.note(
            f"{', '.join(server.host)} is reachable from other machines and server.api_keys is empty: "
            "anybody on the network can use the models; set api_keys, or listen on 127.0.0.1"
        )
    grace_s = server.shutdown_timeout_s + FLUSH_S
    make_fast = _fast_tier(router) if server.fast_path else None
    load = partial(_load_ordinary_tier, router, grace_s)
    running = Server(load, make_fast, KEEP_ALIVE_S, grace_s, when_loaded)
    if router.has_app:  # with a lifespan of its own, perhaps
        running.want_ordinary()
    await running.run(opened, shutdown_trigger or trio.sleep_forever, task_status=task_status)


async def _load_ordinary_tier(router: Router, grace_s: float) -> OrdinaryTier:
    await trio.to_thread.run_sync(_import_ordinary_tier)  # the fast tier serves meanwhile
    from engine_router.server.ordinary_tier import OrdinaryTier, hypercorn_config  # noqa: PLC0415 - see above

    return OrdinaryTier.of(router.app, hypercorn_config(KEEP_ALIVE_S, grace_s, BACKLOG))


def _import_ordinary_tier() -> None:
    for name in ("engine_router.server.ordinary_tier", "engine_router.web.app"):
        importlib.import_module(name)


def _as_reply(content_type: str, body: bytes) -> Reply:
    headers = ((b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)))
    return Reply(ResponseHead(200, headers), body)


def _fast_tier(router: Router) -> MakeFast:
    """Return what makes the fast tier's side of each connection."""
    limit = int(router.config.server.max_body_mb * 1_000_000)

    def answer_headers(headers: Headers) -> Headers:
        return router.snapshot.access.answer_headers(headers)

    def make(stream: RawStream) -> FastConnection:
        peer = stream.peer()
        client = place_of(peer)

        def admit(path: str, query: bytes, headers: Headers) -> None:
            router.snapshot.access.admit("POST", path, query, headers, peer)
            router.snapshot.access.hops(headers)

        async def answer(incoming: IncomingRequest, scope: RequestScope, sink: Sink) -> Reply:
            access, headers = router.snapshot.access, incoming.headers
            is_monitoring = incoming.path in monitoring.PATHS and not incoming.query
            method = "GET" if is_monitoring else "POST"
            scope.client, scope.key = (
                client,
                access.admit(method, incoming.path, incoming.query, headers, peer),
            )
            if not HOP_HEADERS.isdisjoint(dict(headers)):  # few have one
                scope.hops = access.hops(headers)
            if is_monitoring:
                return _as_reply(*await monitoring.answer(router, incoming.path, scope.may_use))
            return await router.handler.answer(incoming, scope, sink)

        reader = RequestReader(is_proxied, limit, LARGE_BYTES, _MONITORED)
        return FastConnection(stream, reader, answer, router.hub, answer_headers, admit)

    return make
