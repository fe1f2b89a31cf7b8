"""The routes of llama.cpp's own router: its models, load and unload, and what happens to them as a stream."""

from __future__ import annotations

from functools import partial
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from engine_router.dialects.frames import data_event
from engine_router.errors import BadRequest
from engine_router.models.key_rights import MayUse
from engine_router.residency.read_model import ResidentStatus
from engine_router.router import Router
from engine_router.web.admin import load, present, unload
from engine_router.web.compat.model_status import model_statuses
from engine_router.web.connection import scope_of
from engine_router.web.event_stream import KEEP_ALIVE, KEEP_ALIVE_S, updates
from engine_router.web.models import ModelList
from engine_router.web.params import fields, model_itself, text, to_load
from engine_router.web.responses import json_response, stream_response
from engine_router.web.state_words import LLAMA_CPP
from engine_router.web.stream_reader import StreamReader


class LlamaCpp:
    """The routes of a llama.cpp server that serves many models."""

    def __init__(self, router: Router, models: ModelList) -> None:
        self._router = router
        self._models = models

    async def listed(self) -> Response:
        """`GET /models?reload=1`: with `reload`, engines that run are asked for their models first."""
        if request.args.get("reload", "0") not in ("", "0", "false"):
            scope_of(request).need_admin("reload the list of models")
            await self._router.discover()
        entries = await self._models.entries()
        states = self._states(scope_of(request).may_use)
        # A route has the status of its model. An engine may have taken a model from its list meanwhile.
        models = (entry.get("alias_of") or entry.get("leads_to") or entry["id"] for entry in entries)
        data = [
            {**entry, "status": states[model]}
            for entry, model in zip(entries, models, strict=True)
            if model in states
        ]
        return json_response({"object": "list", "data": data})

    async def load(self) -> Response:
        """`POST /models/load {model}`: begin to load it. That it is begun is all that is answered."""
        target = await to_load(self._router, {"model": text(await fields("model"), "model")})
        self._router.jobs.start("load", target.model, partial(load, self._router, target, None))
        return json_response({"success": True})

    async def unload(self) -> Response:
        """`POST /models/unload {model}`: begin to unload it.

        Raises:
            BadRequest: it is not loaded, or a route.
        """
        target = await model_itself(self._router, text(await fields("model"), "model"))
        if target.resident not in present(self._router):
            raise BadRequest("model is not loaded")
        self._router.jobs.start("unload", target.model, partial(unload, self._router, [target.resident]))
        return json_response({"success": True})

    async def events(self) -> Response:
        """`GET /models/sse`: the status of each model whenever it changes."""
        states = partial(self._states, scope_of(request).may_use)

        def changed(model: str) -> bytes:
            status = states()[model]
            return data_event({"model": model, "event": "model_status", "data": {"status": status["value"]}})

        reader = StreamReader(self._router)
        body = updates(self._router, reader, states, KEEP_ALIVE, changed, lambda: KEEP_ALIVE, KEEP_ALIVE_S)
        return stream_response(body)

    def _states(self, may_use: MayUse) -> dict[str, dict[str, Any]]:
        return {model: _status(status) for model, status in model_statuses(self._router, may_use).items()}


def _status(status: ResidentStatus) -> dict[str, Any]:
    has_failed = status.phase is None and status.failure is not None
    return {"value": LLAMA_CPP.of(status), **({"failed": True} if has_failed else {})}


def add_llama_cpp(app: QuartTrio, router: Router, models: ModelList) -> None:
    """Add the routes."""
    routes = LlamaCpp(router, models)
    app.add_url_rule("/models", "llama.cpp models", routes.listed, methods=["GET"])
    app.add_url_rule("/models/load", "llama.cpp load", routes.load, methods=["POST"])
    app.add_url_rule("/models/unload", "llama.cpp unload", routes.unload, methods=["POST"])
    app.add_url_rule("/models/sse", "llama.cpp events", routes.events, methods=["GET"])
