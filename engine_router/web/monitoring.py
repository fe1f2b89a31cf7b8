"""`/health`, `/status` and `/metrics`."""

from __future__ import annotations

from quart import Response

from engine_router.router import Router
from engine_router.server import health
from engine_router.web.responses import json_response
from engine_router.web.status import status


class MonitoringRoutes:
    """The routes by which a person or a program watches the router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def health(self) -> Response:
        """`GET /health`: the router lives. Most who ask are answered by the fast tier."""
        return Response(health.BODY, content_type="application/json")

    async def status(self) -> Response:
        """`GET /status`."""
        return json_response(status(self._router))

    async def metrics(self) -> Response:
        """`GET /metrics`."""
        return Response(
            self._router.metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8"
        )
