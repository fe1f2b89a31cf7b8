"""Requests that are passed to one model's engine under a path of its own, whatever the path means there."""

from __future__ import annotations

import functools
import re
from urllib.parse import quote, unquote

from quart import Response, request

from engine_router.config import OllamaConfig, RemoteConfig, is_template
from engine_router.errors import BadRequest, Forbidden, NotResident
from engine_router.guards.foreign_text import shown
from engine_router.in_flight import RequestScope
from engine_router.models.registry import Target
from engine_router.proxy.cache_guard import Ended, guarded
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.remote_paths import check_remote_path
from engine_router.proxy.routes import VISIBLE, is_proxied
from engine_router.proxy.routing import marks, route_named
from engine_router.proxy.snapshot import Snapshot
from engine_router.router import Router
from engine_router.upstream.http1 import ResponseHead
from engine_router.web.connection import scope_of, whole_body, wire_headers
from engine_router.web.proxy import direct_exchange, relayed
from engine_router.web.responses import as_response, pieces_of

# Ids are looked for in so many pieces of a path; the deepest ones are paths of files.
_MOST_SEGMENTS = 64
# What a page that chats with a model reads of its engine, beside what it asks of the model.
_SEEN_BY_ALL = frozenset(("/", "/health", "/props", "/v1/models"))
_SAFE_METHODS = frozenset(("GET", "HEAD"))
_SEPARATOR = re.compile(r"[/\\]")


async def pass_to_resident(router: Router, target: Target, path: str) -> Response:
    """Pass a GET on to a model that is resident: without a swap and without a lease, so that it keeps nothing busy.

    Args:
        path: decoded.

    Raises:
        NotResident: it is not there, or not ready.
        EngineError: there is no answer.
    """
    status = router.read_model.resident(target.resident)
    settings = router.snapshot.config.engines[target.engine]
    if isinstance(settings, RemoteConfig):
        check_remote_path(settings, target.engine, path)
    if not status.is_usable or status.base_url is None:
        raise NotResident(f"model '{target.model}' is not resident, and is not loaded for this")
    requests = router.snapshot.planner.requests[target.engine]
    return await relayed(await direct_exchange(router, requests, status.base_url, path))


def segments_of(raw_path: bytes) -> list[str]:
    """Return what comes behind `/upstream/`, piece by piece, not decoded: an id may have an encoded slash in it.

    Raises:
        BadRequest: it has no such parts.
    """
    raw = raw_path.partition(b"?")[0].decode("latin-1")
    _, first, *segments = raw.split("/") if raw.startswith("/") else ("", "")
    if unquote(first) != "upstream" or not segments:
        raise BadRequest("the path is /upstream/, the id of a model, and what its engine is asked for")
    return segments


async def model_in(router: Router, segments: list[str], scope: RequestScope) -> tuple[int, Snapshot, Target]:
    """Find the longest name with which a path begins. Returns of how many segments it is, and the model with its snapshot.

    Args:
        scope: of the request, which must be allowed to use the model: no other refusal tells what there is.

    Raises:
        BadRequest: it begins with a name that is longer than any model's.
        UnknownModel: the path begins with the name of no model, and of no route.
        ModelNotForKey: the request's key is for other models.
        NoModelForRoute: none of the route's models may be asked.
    """
    decoded = [unquote(segment) for segment in segments[:_MOST_SEGMENTS]]
    counts = range(len(decoded), 0, -1)
    names = {count: "/".join(decoded[:count]) for count in counts}
    count = next((count for count, name in names.items() if _is_name(router, name)), 1)
    return count, *await model_named(router, names[count], scope)


def _is_name(router: Router, name: str) -> bool:
    return router.registry.is_name(name) or route_named(router.snapshot, name) is not None


async def model_named(router: Router, name: str, scope: RequestScope) -> tuple[Snapshot, Target]:
    """Find a model by its name, or the one that a route of that name chooses for a request of which nothing is known.

    Raises:
        UnknownModel: there is none.
        ModelNotForKey: the request's key is for other models.
        NoModelForRoute: none of the route's models may be asked.
    """
    snapshot = router.snapshot
    if (route := route_named(snapshot, name)) is not None:
        return snapshot, await router.routing.target(snapshot, route, scope, None)
    snapshot, target = await router.find(name)
    scope.check_model(name, target)
    return snapshot, target


def check_path(snapshot: Snapshot, target: Target, method: str, path: str, scope: RequestScope) -> None:
    """See that a path may be passed on to a model's engine.

    Args:
        scope: of the request: who is no admin may use the model, and not manage its engine or read of others.

    Raises:
        BadRequest: the path leads up.
        Forbidden: the engine is a daemon that others rely on, too, or the request's key may not do this.
    """
    config = snapshot.config
    decoded = unquote(path)
    if ".." in _SEPARATOR.split(unquote(decoded)) or any(ord(char) < 32 for char in decoded):
        raise BadRequest("the path behind the model's id must not lead up")
    is_daemon = isinstance(config.engines[target.engine], OllamaConfig)
    if is_daemon and not config.server.allow_destructive_ollama_api:
        raise Forbidden(
            "what goes straight to Ollama could remove models: use /api and /v1 of this router, "
            "or allow it (server.allow_destructive_ollama_api in engines.toml)"
        )
    settings = config.engines[target.engine]
    if isinstance(settings, RemoteConfig):
        check_remote_path(settings, target.engine, decoded)
    if not scope.is_admin:
        _check_use(snapshot, target, method, decoded, scope)


def _check_use(snapshot: Snapshot, target: Target, method: str, path: str, scope: RequestScope) -> None:
    """See that a request which is no admin's uses the model, and no other one of the same server.

    Raises:
        Forbidden: it does not.
    """
    if not is_proxied(path) and not (method in _SAFE_METHODS and path in _SEEN_BY_ALL):
        scope.need_admin(f"{method} {shown(path)} of an engine")
    settings = snapshot.config.engines[target.engine]
    has_own_server = is_template(settings)
    if has_own_server or all(
        scope.may_use(other) for other in snapshot.registry.targets() if other.engine == target.engine
    ):
        return
    raise Forbidden(
        f"engine '{target.engine}' serves other models than the key '{shown(scope.key_name or '')}' may use, and a request "
        "that goes straight to it may name any; use /v1 or /api of this router"
    )


async def pass_on(router: Router, snapshot: Snapshot, target: Target, path: str) -> Response:
    """Pass a request of any method on to a model, which is made resident for it and kept so until it is answered.

    Args:
        snapshot: the one that the request began with.
        path: as it came, and as it goes on; begins with a slash.

    Raises:
        BadRequest: the path leads up, or the request's priority is none.
        Forbidden: the engine is a daemon that others rely on, too, or the request's key may not do this.
        RouterError: there is no answer but this error.
    """
    scope, sent = scope_of(request), wire_headers(request)
    check_path(snapshot, target, request.method, path, scope)
    trace = router.handler.trace(snapshot, scope, request.method, sent)
    await router.in_flight.count(scope)
    query = quote(request.query_string, safe=VISIBLE)
    outgoing = snapshot.planner.requests[target.engine].outgoing(
        request.method,
        quote(path, safe=VISIBLE) + (f"?{query}" if query else ""),
        sent if trace is None else trace.headers,
        await whole_body(request),
        is_encoded=True,
    )
    plan: ForwardPlan | ChoosePlan = ForwardPlan(outgoing=outgoing)
    ended: Ended | None = None
    if target.engine in snapshot.config.guarded_engines:
        plan, ended = guarded(plan, target, snapshot.config, scope.key, sent, router.context)
    exchange = ProxyExchange(router.supervisor, target.resident, upstream=router.upstream, plan=plan)
    if ended is not None:
        scope.on_leave(functools.partial(ended, exchange))
    router.handler.enter(scope, target, exchange, sent, snapshot.config.server)
    head = await exchange.head()
    if head is None:
        raise RuntimeError("a head that was waited for without end has not come")
    return as_response(ResponseHead(head.status, [*head.headers, *marks(scope.choice)]), pieces_of(exchange))
