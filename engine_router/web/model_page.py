"""`/admin/models/{id}`: all that is known of one model."""

from __future__ import annotations

import time
from typing import Any

import attrs
import trio
from quart import Response
from quart_trio import QuartTrio

from engine_router.models.in_force import settings_in_force, shown_command
from engine_router.models.registry import Target
from engine_router.residency.speeds import speed_entry
from engine_router.router import Router
from engine_router.telemetry.starts import past_starts
from engine_router.web.params import permitted
from engine_router.web.responses import json_response
from engine_router.web.status import failure_entry, prefix_cache_entry, resident_entry, state_of


class ModelRoutes:
    """The route of one model."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def model(self, model: str) -> Response:
        """`GET /admin/models/{id}`: its settings and where they come from, its file, its state, and its starts.

        Raises:
            UnknownModel: nobody serves it; close matches are named.
        """
        router, target = self._router, permitted(self._router, model)
        starts = await past_starts(router.history, str(target.resident))
        settings = await trio.to_thread.run_sync(settings_in_force, router.config, target)
        return json_response(
            {
                **_known(router, target),
                **_measured(router, target),
                "settings": [
                    {"name": setting.name, "value": setting.value, "from": setting.origin}
                    for setting in settings
                ],
                "starts": None if starts is None else [attrs.asdict(start) for start in starts],
                "last_error": _last_error(router, target)
                or next((start.error for start in reversed(starts or ()) if start.error), None),
            }
        )


def _known(router: Router, target: Target) -> dict[str, Any]:
    """Return what is known of a model without its ever having run."""
    facts, status = router.known_models.of(target), router.read_model.resident(target.resident)
    weights, now = facts.weights, trio.current_time()
    command = router.engines[target.engine].command(target.resident)
    file = router.known_models.file_of(target)
    return {
        "id": target.model,
        "engine": target.engine,
        "upstream": target.upstream,
        "resident": str(target.resident),
        "aliases": list(target.aliases),
        "origin": target.origin,
        "pool": status.pool,
        "state": state_of(router, target),
        "present": None if status.phase is None else resident_entry(status, now),
        "failure": None if status.failure is None else failure_entry(status.failure, now),
        "file": None if file is None else str(file),
        "size_bytes": facts.size_bytes or None,
        "format": None if weights is None else weights.format,
        "architecture": (weights.architecture or None) if weights is not None else None,
        "quantization": (weights.quantization or None) if weights is not None else None,
        "parameters": facts.parameters or None,
        "context": facts.context_length,
        "capabilities": list(facts.capabilities),
        "prefix_cache": prefix_cache_entry(router, target.engine),
        "command": None if command is None else shown_command(router.config, command),
    }


def _measured(router: Router, target: Target) -> dict[str, Any]:
    """Return what a model needs, and what it took when it last ran."""
    profile = router.read_model.profile(target.resident)
    measured = router.read_model.measured(target.resident)
    return {
        "need_bytes": profile.need_bytes,
        "need_is_estimated": profile.is_estimated,
        "measured": attrs.asdict(measured),
        **speed_entry(router.state.speeds.of(target.engine, target.model)),
        "cache_saved_s": round(_cache_saved_s(router, target), 1),
        "load_cost_s": profile.start_s,
        "unload_cost_s": profile.stop_s,
    }


def _cache_saved_s(router: Router, target: Target) -> float:
    """Return how many seconds of reading the prefix cache of a model's resident has saved lately."""
    resident_of = router.snapshot.residency.resident_of
    return router.state.speeds.saved_s(target.resident, resident_of, time.time())


def _last_error(router: Router, target: Target) -> str | None:
    status = router.read_model.resident(target.resident)
    if status.stop_error is not None:
        return str(status.stop_error)
    return None if status.failure is None else str(status.failure.error)


def add_model_page(app: QuartTrio, router: Router) -> None:
    """Add the route."""
    app.add_url_rule("/admin/models/<id:model>", "admin model", ModelRoutes(router).model, methods=["GET"])
