"""The routes of llama-swap: what runs, unload, and straight to the engine of a model."""

from __future__ import annotations

import math
import shlex
from typing import Any
from urllib.parse import quote

from quart import Response, redirect, request
from quart_trio import QuartTrio

from engine_router.config import RemoteConfig, StartedConfig
from engine_router.models.in_force import shown_command
from engine_router.models.registry import Target
from engine_router.proxy.routes import VISIBLE
from engine_router.router import Router
from engine_router.web.admin import present, unload
from engine_router.web.compat.passed_through import model_in, pass_on, segments_of
from engine_router.web.connection import scope_of
from engine_router.web.params import model_itself
from engine_router.web.responses import json_response
from engine_router.web.state_words import LLAMA_SWAP

_ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_SAFE = ("GET", "HEAD")


class LlamaSwap:
    """The routes of llama-swap."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def running(self) -> Response:
        """`GET /running`. The commands are shown to admins only."""
        scope = scope_of(request)
        found = [
            self._entry(target, shows_command=scope.is_admin)
            for target in filter(scope.may_use, self._router.registry.targets())
        ]
        running = sorted(
            (entry for entry in found if entry is not None), key=lambda entry: str(entry["model"])
        )
        return json_response({"running": running})

    async def unload(self) -> Response:
        """`GET /unload`, `POST /unload`: everything."""
        await unload(self._router, present(self._router))
        return _ok()

    async def unload_all(self) -> Response:
        """`POST /api/models/unload`."""
        await unload(self._router, present(self._router))
        return json_response({"msg": "ok"})

    async def unload_one(self, model: str) -> Response:
        """`POST /api/models/unload/{id}`."""
        target = await model_itself(self._router, model)
        await unload(
            self._router, [resident for resident in present(self._router) if resident == target.resident]
        )
        return _ok()

    async def upstream(self, rest: str) -> Response:  # noqa: ARG002 - decoded, which is not what goes on
        """`/upstream/{id}/...`, whatever the method: straight to the model's engine, which is loaded for it.

        Raises:
            UnknownModel: the path begins with no model's id.
        """
        segments = segments_of(request.scope["raw_path"])
        count, snapshot, target = await model_in(self._router, segments, scope_of(request))
        if len(segments) == count:  # so that relative links in the engine's pages lead somewhere
            return _with_slash(segments)
        return await pass_on(self._router, snapshot, target, "/" + "/".join(segments[count:]))

    def _entry(self, target: Target, *, shows_command: bool) -> dict[str, Any] | None:
        status = self._router.read_model.resident(target.resident)
        config = self._router.config.engines[target.engine]
        if status.phase is None or isinstance(config, RemoteConfig):
            return None
        idle_timeout_s = self._router.read_model.profile(target.resident).idle_timeout_s
        return {
            "model": target.model,
            "state": LLAMA_SWAP.of(status),
            "cmd": self._command(config) if shows_command and isinstance(config, StartedConfig) else "",
            "proxy": status.base_url or config.base_url or "",
            "ttl": int(idle_timeout_s) if math.isfinite(idle_timeout_s) else 0,
            "name": "",
            "description": "",
        }

    def _command(self, config: StartedConfig) -> str:
        """Return an engine's command as it may be shown."""
        return shlex.join(shown_command(self._router.config, config.argv))


def _with_slash(segments: list[str]) -> Response:
    """Send the client to the same address with a slash at its end.

    The address is relative to the one that was asked: what stood in front of it, such as a key, stays there.
    """
    query = quote(request.query_string, safe=VISIBLE)
    path = "./" + quote(segments[-1], safe="%:@!$&'()*+,;=~") + "/"
    location = path + (f"?{query}" if query else "")
    return redirect(location, 301 if request.method in _SAFE else 308)  # type: ignore[return-value]


def _ok() -> Response:
    return Response("OK", content_type="text/plain; charset=utf-8")


def add_llama_swap(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = LlamaSwap(router)
    app.add_url_rule("/running", "running", routes.running, methods=["GET"])
    app.add_url_rule("/unload", "unload everything", routes.unload, methods=["GET", "POST"])
    app.add_url_rule("/api/models/unload", "unload all", routes.unload_all, methods=["POST"])
    app.add_url_rule("/api/models/unload/<id:model>", "unload one", routes.unload_one, methods=["POST"])
    app.add_url_rule("/upstream/<id:rest>", "upstream", routes.upstream, methods=_ANY_METHOD)
