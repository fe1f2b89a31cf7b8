"""`/api/*` beside the proxied routes: what Ollama's clients ask before they talk, and what is handed on."""

from __future__ import annotations

import datetime as dt
import posixpath
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio
from quart import Response, request

from engine_router.config import OllamaConfig
from engine_router.dialects import OLLAMA
from engine_router.dialects.base import route_json, to_json
from engine_router.discovery import Target
from engine_router.engines.base import ResidentId
from engine_router.errors import (
    BadRequest,
    EngineError,
    Forbidden,
    NoSuchRoute,
    UnknownModel,
    WrongMethod,
)
from engine_router.relay import AddedHeaders, request_headers, response_headers
from engine_router.residency.residence import Phase
from engine_router.router import Router
from engine_router.routes import API_ROUTES, wire_target
from engine_router.web import ollama_shapes
from engine_router.web.openai import json_response
from engine_router.web.proxy import Proxy, as_response, pieces_of, wire_headers
from engine_router.web.scope import scope_of, whole_body
from engine_router.web.status import state_of
from engine_router.wire.upstream import Exchange, ResponseHead, UpstreamRequest

# Clients read features from the version: Codex wants 0.13.4 or newer, VS Code 0.6.4.
OLLAMA_VERSION = "0.14.0"
# What may be handed to the daemon by anybody. Everything else changes or removes what others rely on, or is
# not known, and is handed on only where the configuration allows it.
HARMLESS = frozenset(("pull",))
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
        lists = {"version": self._version, "tags": self._tags, "ps": self._ps}
        if path in lists:
            _check_method(path, "GET", "HEAD")
            return json_response(lists[path]())
        asked = {"show": self._show, "pull": self._pull}
        if path in asked:
            _check_method(path, "POST")
            return await asked[path]()
        return await self._hand_on(path)

    def _version(self) -> dict[str, Any]:
        return {"version": OLLAMA_VERSION}

    def _tags(self) -> dict[str, Any]:
        since = self._router.started_at
        entries: list[dict[str, Any]] = []
        for target in self._router.discovery.offered():
            facts = self._router.catalogue.of(target)
            entries += [
                ollama_shapes.tag(name, target, facts, since=since)
                for name in (target.model, *target.aliases)
            ]
        return {"models": entries}

    def _ps(self) -> dict[str, Any]:
        present = (Phase.READY.value, Phase.DRAINING.value)
        targets = self._router.discovery.offered()
        return {"models": [self._loaded(t) for t in targets if state_of(self._router, t) in present]}

    def _loaded(self, target: Target) -> dict[str, Any]:
        return ollama_shapes.loaded(
            target,
            self._router.catalogue.of(target),
            since=self._router.started_at,
            size_bytes=self._router.state.of(target.resident).footprint_bytes or 0,
            expires_at=expires_at(self._router, target.resident),
        )

    async def _show(self) -> Response:
        """Answer what is known; an Ollama daemon is asked about its own models, if it answers soon."""
        routed = route_json(OLLAMA, "/api/show", await whole_body(request))
        target = await self._router.resolve(routed.model)
        config = self._router.config.engines[target.engine]
        if isinstance(config, OllamaConfig):
            with trio.move_on_after(SHOW_TIMEOUT_S):
                answered = await self._asked(target.engine, config, routed.renamed(target.upstream))
                if answered is not None:
                    return answered
        facts = self._router.catalogue.of(target)
        return json_response(ollama_shapes.show(target, facts, since=self._router.started_at))

    async def _asked(self, name: str, config: OllamaConfig, body: bytes | bytearray) -> Response | None:
        """Return a daemon's whole answer to `/api/show`; None where it gives none."""
        try:
            exchange = await self._exchange(name, config, "show", body)
            head = await exchange.head()
            pieces = []
            while data := await exchange.chunk():
                pieces.append(data)
        except EngineError:
            return None
        return as_response(ResponseHead(head.status, response_headers(head.headers)), _pieces(pieces))

    async def _pull(self) -> Response:
        """Let a client have what is there already: some pull whatever they are told to use.

        Only an Ollama daemon can pull something new, and it is the one to ask for its own models.
        """
        body = await whole_body(request)
        try:
            routed = route_json(OLLAMA, "/api/pull", body)
            target = await self._router.resolve(routed.model)
        except (BadRequest, UnknownModel):
            return await self._hand_on("pull", body)
        if isinstance(self._router.config.engines[target.engine], OllamaConfig):
            return await self._hand_on("pull", body)
        if routed.data().get("stream") is False:
            return json_response(_PULLED[-1])
        lines = b"".join(to_json(line) + b"\n" for line in _PULLED)
        return Response(lines, content_type=OLLAMA.stream_type)

    def _daemon(self) -> tuple[str, OllamaConfig] | None:
        for name, config in self._router.config.engines.items():
            if isinstance(config, OllamaConfig):
                return name, config
        return None

    async def _hand_on(self, path: str, body: bytes | None = None) -> Response:
        """Relay to the Ollama daemon, without a swap and without a lease.

        Args:
            body: the request's, where it was read already.

        Raises:
            Forbidden: it could remove or change what others rely on, and the configuration does not allow it.
            NoSuchRoute: no Ollama is configured.
        """
        if path not in HARMLESS and not self._router.config.server.allow_destructive_ollama_api:
            raise Forbidden(
                f"/api/{path} is not allowed through this router (server.allow_destructive_ollama_api in engines.toml)"
            )
        found = self._daemon()
        if found is None:
            raise NoSuchRoute(f'there is no /api/{path} here: no engine of type "ollama" is configured')
        return await self._relay(*found, path, await whole_body(request) if body is None else body)

    async def _relay(self, name: str, config: OllamaConfig, path: str, body: bytes | bytearray) -> Response:
        exchange = await self._exchange(name, config, path, body)
        head = await exchange.head()
        return as_response(ResponseHead(head.status, response_headers(head.headers)), pieces_of(exchange))

    async def _exchange(
        self, name: str, config: OllamaConfig, path: str, body: bytes | bytearray
    ) -> Exchange:
        keys = bool(self._router.config.server.api_keys)
        exchange = await self._router.upstream.send(
            UpstreamRequest(
                engine=name,
                base_url=config.base_url,
                method=request.method,
                target=wire_target(f"/api/{path}", request.query_string),
                headers=request_headers(
                    wire_headers(request), strip_keys=keys, added=AddedHeaders(config.headers)
                ),
                body=body,
                connect_timeout_s=config.connect_timeout_s,
            )
        )
        scope_of(request).stack.callback(exchange.close)
        return exchange


def expires_at(router: Router, resident: ResidentId) -> dt.datetime:
    """Return when a resident will be unloaded if nobody uses it; where that is never, what Ollama says then.

    One that is in use counts as used now, as with Ollama.
    """
    now = trio.current_time()
    ends_at = router.supervisor.pool(resident).ledger.expires_at(resident, now)
    longest_s = ollama_shapes.FOR_EVER.total_seconds()
    left_s = longest_s if ends_at is None else min(ends_at - now, longest_s)
    return dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=left_s)


def _check_method(path: str, *methods: str) -> None:
    if request.method not in methods:
        raise WrongMethod(f"/api/{path} takes {' and '.join(methods)}")


async def _pieces(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
