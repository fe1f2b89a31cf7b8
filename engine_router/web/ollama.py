"""`/api/*` beside the proxied routes: the lists that Ollama's clients read first, and routes that are handed on."""

from __future__ import annotations

import posixpath
import re
from collections.abc import AsyncIterator

import trio
from quart import Response, request

from engine_router.config import OllamaConfig
from engine_router.dialects import OLLAMA
from engine_router.dialects.json_body import Octets, to_json
from engine_router.dialects.routed import route_json
from engine_router.errors import (
    BadRequest,
    EngineError,
    Forbidden,
    NoSuchRoute,
    UnknownModel,
    WrongMethod,
)
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import CONTROL_ANSWER_BYTES
from engine_router.models.hub.names import is_hub_name
from engine_router.models.target import Target
from engine_router.proxy.routes import API_ROUTES, base_url_hint
from engine_router.proxy.routing import route_named
from engine_router.proxy.snapshot import Snapshot
from engine_router.router import Router
from engine_router.upstream.forwarding import EngineRequests, response_headers
from engine_router.upstream.http1 import ResponseHead
from engine_router.web import ollama_shapes
from engine_router.web.connection import scope_of, whole_body
from engine_router.web.hub import pull_for_ollama
from engine_router.web.ollama_lists import LISTS
from engine_router.web.proxy import Proxy, direct_exchange, relayed
from engine_router.web.responses import as_response, json_response

# Routes of the daemon that change or remove what others rely on, or act in the name of its owner's account at
# ollama.com. They are handed on only where the configuration allows it, like whatever is not known here.
GUARDED = re.compile(r"(create|copy|delete|push|me|signin|signout|user|blobs|experimental)(/.*)?")
# A daemon that is busy with a load may leave its clients waiting; what is known of the model must do then.
SHOW_TIMEOUT_S = 2.0
# What a pull of a model says that is there already.
_PULLED = ({"status": "pulling manifest"}, {"status": "success"})


class OllamaApi:
    """Answers `/api/*`."""

    def __init__(self, router: Router, proxy: Proxy) -> None:
        self._router = router
        self._proxy = proxy

    async def answer(self, rest: str) -> Response:
        """Answer any method on any path below `/api/`.

        The path is put into its plain form first (`./delete` and `chat/../delete` are `delete`), and that form
        is what is checked and what is handed on.
        """
        path = posixpath.normpath(f"/{rest}").strip("/")
        if path in API_ROUTES:
            _check_method(path, "POST")
            return await self._proxy.answer(f"/api/{path}")
        if (make := LISTS.get(path)) is not None:
            _check_method(path, "GET", "HEAD")
            return json_response(await make(self._router, scope_of(request).may_use))
        posted = {"show": self._show, "pull": self._pull}
        if path in posted:
            _check_method(path, "POST")
            return await posted[path]()
        return await self._hand_on(path)

    async def _show(self) -> Response:
        """Answer what is known; an Ollama daemon is asked about its own models, if it answers soon."""
        routed = route_json(OLLAMA, "/api/show", await whole_body(request))
        snapshot, target = await self._shown(routed.model)
        scope_of(request).check_model(routed.model, target)
        config = snapshot.config.engines[target.engine]
        if isinstance(config, OllamaConfig):
            requests = snapshot.planner.requests[target.engine]
            with trio.move_on_after(SHOW_TIMEOUT_S):
                answer = await self._daemon_show(requests, config.base_url, routed.renamed(target.upstream))
                if answer is not None:
                    return answer
        facts = await snapshot.known_models.whole(target)
        return json_response(ollama_shapes.show(target, facts, since=self._router.started_at))

    async def _shown(self, name: str) -> tuple[Snapshot, Target]:
        """Find a model by its name, or the one to which a route leads now.

        Raises:
            UnknownModel: there is none.
        """
        snapshot = self._router.snapshot
        if (route := route_named(snapshot, name)) is not None:
            target = self._router.routing.leads_to(snapshot, route, scope_of(request).may_use)
            if target is not None:
                return snapshot, target
        return await self._router.find(name)

    async def _daemon_show(self, requests: EngineRequests, base_url: str, body: Octets) -> Response | None:
        """Return a daemon's whole answer to `/api/show`; None where it gives none."""
        try:
            exchange = await direct_exchange(self._router, requests, base_url, "/api/show", body)
            head = await exchange.head()
            body = bytearray()
            while data := await exchange.chunk():
                body += data
                if len(body) > CONTROL_ANSWER_BYTES:
                    return None
        except EngineError:
            return None
        return as_response(ResponseHead(head.status, response_headers(head.headers)), _piece(bytes(body)))

    async def _pull(self) -> Response:
        """Let a client have what is there already: some pull whatever they are told to use.

        An Ollama daemon pulls something new, and is the one to ask for its own models. Where there is none, a model
        on the hub (`hf.co/user/repo`) is downloaded here.
        """
        body = await whole_body(request)
        try:
            routed = route_json(OLLAMA, "/api/pull", body)
            snapshot, target = await self._router.find(routed.model)
        except UnknownModel as unknown:
            if self._daemon() is None and is_hub_name(unknown.model):
                streams = routed.data().get("stream") is not False
                return await pull_for_ollama(self._router, unknown.model, streams=streams)
            return await self._hand_on("pull", body)
        except BadRequest:
            return await self._hand_on("pull", body)
        if isinstance(snapshot.config.engines[target.engine], OllamaConfig):
            return await self._hand_on("pull", body)
        if routed.data().get("stream") is False:
            return json_response(_PULLED[-1])
        lines = b"".join(to_json(line) + b"\n" for line in _PULLED)
        return Response(lines, content_type=OLLAMA.stream_type)

    def _daemon(self) -> tuple[EngineRequests, str] | None:
        """Return what makes requests to the Ollama daemon, and its base URL; None where none is configured."""
        snapshot = self._router.snapshot
        for name, config in snapshot.config.engines.items():
            if isinstance(config, OllamaConfig):
                return snapshot.planner.requests[name], config.base_url
        return None

    async def _hand_on(self, path: str, body: bytes | None = None) -> Response:
        """Relay to the Ollama daemon, without a swap and without a lease.

        Args:
            body: the request's, where it was read already.

        Raises:
            Forbidden: it could remove or change what others rely on, and the configuration does not allow it.
            NoSuchRoute: Ollama has no such route, or no Ollama is configured.
        """
        if path != "pull" and not self._router.config.server.allow_destructive_ollama_api:
            if not GUARDED.fullmatch(path):
                raise NoSuchRoute(
                    f"there is no /api/{shown(path)} here{shown(base_url_hint(f'/api/{path}'))}"
                )
            raise Forbidden(
                f"/api/{shown(path)} is not allowed through this router (server.allow_destructive_ollama_api in engines.toml)"
            )
        found = self._daemon()
        if found is None:
            raise NoSuchRoute(
                f'there is no /api/{shown(path)} here: no engine of type "ollama" is configured'
            )
        requests, base_url = found
        body = await whole_body(request) if body is None else body
        return await relayed(await direct_exchange(self._router, requests, base_url, f"/api/{path}", body))


def _check_method(path: str, *methods: str) -> None:
    if request.method not in methods:
        raise WrongMethod(f"/api/{shown(path)} takes {' and '.join(methods)}")


async def _piece(data: bytes) -> AsyncIterator[bytes]:
    yield data
