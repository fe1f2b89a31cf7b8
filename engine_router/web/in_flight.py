"""`/admin/requests`: the requests under way, with what is known of their answers so far."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import trio
from quart import Response, request
from quart_trio import QuartTrio

from engine_router.in_flight import InFlightRequest
from engine_router.router import Router
from engine_router.web.connection import scope_of
from engine_router.web.params import whole_number
from engine_router.web.responses import json_response

DEFAULT_LISTED: Final = 200


class InFlightRoutes:
    """The routes by which people see what is under way."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def requests(self) -> Response:
        """`GET /admin/requests?limit=N`: every request that waits or runs, the oldest first.

        A key that is not an admin's sees its own requests.
        """
        scope, now, wall_now = scope_of(request), trio.current_time(), time.time()
        seen = [
            held
            for held in self._router.in_flight.by_ticket().values()
            if scope.is_admin
            or (held.scope is not None and held.scope.key_name == scope.key_name is not None)
        ]
        listed = seen[: whole_number("limit", DEFAULT_LISTED)]
        return json_response(
            {"total": len(seen), "requests": [_entry(held, now, wall_now) for held in listed]}
        )


def _entry(held: InFlightRequest, now: float, wall_now: float) -> dict[str, Any]:
    holder, scope = held.holder, held.scope
    figures, frames_per_s = holder.figures(), holder.frames_per_s()
    elapsed_s = 0.0 if math.isnan(holder.entered_at) else now - holder.entered_at
    runs = holder.lease is not None and holder.lease.endpoint is not None
    return {
        "id": held.id,
        "at": round(wall_now - elapsed_s, 3),
        "model": held.model,
        "engine": holder.resident.engine,
        "endpoint": held.path,
        "key": None if scope is None else scope.key_name,
        "client": None if scope is None else scope.client or None,
        "state": "running" if runs else "waiting",
        "elapsed_s": round(elapsed_s, 3),
        "first_token_s": None if figures.first_token_s is None else round(figures.first_token_s, 3),
        "tokens_out": figures.tokens_out,
        "tokens_per_s": None if figures.tokens_per_s is None else round(figures.tokens_per_s, 1),
        # Most engines send one for each token, which nobody promises.
        "frames_per_s": None if frames_per_s is None else round(frames_per_s, 1),
    }


def add_in_flight(app: QuartTrio, router: Router) -> None:
    """Add the route."""
    app.add_url_rule("/admin/requests", "admin requests", InFlightRoutes(router).requests, methods=["GET"])
