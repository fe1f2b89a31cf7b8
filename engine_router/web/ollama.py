"""`/api/*` beside the proxied routes: what Ollama's clients ask before they talk, and what is handed on."""

from __future__ import annotations

import datetime as dt
import hashlib
import posixpath
from collections.abc import AsyncIterator
from typing import Any

from quart import Response, request

from engine_router.answering import API_ROUTES, wire_target
from engine_router.config import OllamaConfig
from engine_router.dialects import OLLAMA
from engine_router.dialects.base import route_json
from engine_router.discovery import Target
from engine_router.errors import Forbidden, NoSuchRoute, RouterError, WrongMethod
from engine_router.relay import BrokenAnswer, request_headers, response_headers
from engine_router.residency.ledger import Phase
from engine_router.router import Router
from engine_router.web.openai import json_response
from engine_router.web.proxy import Proxy, as_response, wire_headers
from engine_router.web.scope import scope_of, whole_body
from engine_router.wire.upstream import Exchange, ResponseHead, UpstreamRequest

# Clients read features from the version: Codex wants 0.13.4 or newer, VS Code 0.6.4.
OLLAMA_VERSION = "0.14.0"
# What may be handed to the daemon by anybody. Everything else changes or removes what others rely on, or is
# not known, and is handed on only where the configuration allows it.
HARMLESS = frozenset(("pull", "show", "tags", "ps", "version"))


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
            if request.method != "POST":
                raise WrongMethod(f"/api/{path} takes POST")
            return await self._proxy.answer(f"/api/{path}")
        known = {"version": self._version, "tags": self._tags, "ps": self._ps}
        if path in known and request.method in ("GET", "HEAD"):
            return json_response(known[path]())
        if path == "show" and request.method == "POST":
            return await self._show()
        return await self._hand_on(path)

    def _version(self) -> dict[str, Any]:
        return {"version": OLLAMA_VERSION}

    def _tags(self) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for target in self._router.discovery.targets():
            entries += [self._entry(name, target) for name in (target.model, *target.aliases)]
        return {"models": entries}

    def _ps(self) -> dict[str, Any]:
        residents = {}
        for pool in self._router.supervisor.pools.values():
            present = pool.ledger.present
            if present is not None and present.phase in (Phase.READY, Phase.DRAINING):
                residents[present.resident] = self._router.state.of(present.resident).footprint_bytes or 0
        never = "9999-12-31T23:59:59Z"
        return {
            "models": [
                {**self._entry(target.model, target), "size": size, "size_vram": size, "expires_at": never}
                for target in self._router.discovery.targets()
                if (size := residents.get(target.resident)) is not None
            ]
        }

    def _entry(self, name: str, target: Target) -> dict[str, Any]:
        since = dt.datetime.fromtimestamp(self._router.started_at, tz=dt.timezone.utc)
        return {
            "name": name,
            "model": name,
            "modified_at": since.isoformat().replace("+00:00", "Z"),
            "size": self._router.state.of(target.resident).footprint_bytes or 0,
            "digest": hashlib.sha256(target.model.encode()).hexdigest(),
            "details": _details(target),
        }

    async def _show(self) -> Response:
        routed = route_json(OLLAMA, "/api/show", await whole_body(request))
        target = self._router.discovery.resolve(routed.model)
        config = self._router.config.engines[target.engine]
        if isinstance(config, OllamaConfig):
            return await self._relay(target.engine, config, "show", routed.renamed(target.upstream))
        return json_response(
            {
                "modelfile": f"# {target.model}, served by {target.engine}",
                "parameters": "",
                "template": "",
                "details": _details(target),
                "model_info": {"general.architecture": "unknown", "general.basename": target.model},
                "capabilities": ["completion"],
            }
        )

    def _daemon(self) -> tuple[str, OllamaConfig] | None:
        for name, config in self._router.config.engines.items():
            if isinstance(config, OllamaConfig):
                return name, config
        return None

    async def _hand_on(self, path: str) -> Response:
        """Relay to the Ollama daemon, without a swap and without a lease.

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
        return await self._relay(*found, path, await whole_body(request))

    async def _relay(self, name: str, config: OllamaConfig, path: str, body: bytes | bytearray) -> Response:
        keys = bool(self._router.config.server.api_keys)
        exchange = await self._router.upstream.send(
            UpstreamRequest(
                engine=name,
                base_url=config.base_url,
                method=request.method,
                target=wire_target(f"/api/{path}", request.query_string),
                headers=request_headers(wire_headers(request), strip_keys=keys, added=config.headers),
                body=body,
                connect_timeout_s=config.connect_timeout_s,
            )
        )
        scope_of(request).stack.callback(exchange.close)
        head = await exchange.head()
        return as_response(ResponseHead(head.status, response_headers(head.headers)), _chunks(exchange))


async def _chunks(exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        while data := await exchange.chunk():
            yield data
    except RouterError as error:
        raise BrokenAnswer(error) from error


def _details(target: Target) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": target.engine,
        "families": [target.engine],
        "parameter_size": "",
        "quantization_level": "",
    }
