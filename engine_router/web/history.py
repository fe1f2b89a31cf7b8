"""`/admin/activity`, `/admin/figures`, `/admin/captures`: what the history knows."""

from __future__ import annotations

from typing import Final

import trio
from quart import Response, request
from quart_trio import QuartTrio

from engine_router.config import rights_of
from engine_router.errors import BadRequest, NoSuchRoute
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MOST_LISTED_ACTIVITY
from engine_router.router import Router
from engine_router.telemetry import activity
from engine_router.telemetry.captures import hidden_values
from engine_router.telemetry.figures import figures
from engine_router.telemetry.histogram import histograms
from engine_router.web.connection import scope_of
from engine_router.web.params import whole_number
from engine_router.web.responses import json_response

DEFAULT_LISTED: Final = 50
DEFAULT_SPAN_S: Final = 3600
DEFAULT_POINTS: Final = 240
_PAGE: Final = ("limit", "offset", "sort", "order")


class HistoryRoutes:
    """The routes of the history."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def activity(self) -> Response:
        """`GET /admin/activity?limit=&offset=&sort=&order=` and filters: past requests, in pages."""
        where, order = _where(*_PAGE), request.args.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest('"order" must be asc or desc')
        return json_response(
            await activity.listed(
                self._router.history,
                where,
                sort=request.args.get("sort", "at"),
                descending=order == "desc",
                limit=min(whole_number("limit", DEFAULT_LISTED), MOST_LISTED_ACTIVITY),
                offset=whole_number("offset", 0),
                has_capture=self._router.captures.has,
            )
        )

    async def activity_csv(self) -> Response:
        """`GET /admin/activity.csv` and the same filters: all of them, the last one first."""
        body = b"" if request.method == "HEAD" else activity.as_csv(self._router.history, _where())
        response = Response(body, content_type="text/csv; charset=utf-8")
        response.headers["Content-Disposition"] = 'attachment; filename="activity.csv"'
        response.timeout = None
        return response

    async def histogram(self) -> Response:
        """`GET /admin/activity/histogram` and the same filters: first token and tokens per second of the last ones."""
        return json_response(await histograms(self._router.history, _where()))

    async def figures(self) -> Response:
        """`GET /admin/figures?span_s=3600&points=240`: memory, requests, swaps, queues and GPUs over time."""
        span_s, points = whole_number("span_s", DEFAULT_SPAN_S), whole_number("points", DEFAULT_POINTS)
        router = self._router
        return json_response(await figures(router.history, router.sampler, span_s=span_s, points=points))

    async def captures(self) -> Response:
        """`GET /admin/captures`: the requests that are kept whole, the last one first."""
        return json_response(self._router.captures.listed())

    async def capture(self, capture_id: str) -> Response:
        """`GET /admin/captures/{id}`: one of them, with its headers and bodies.

        Raises:
            NoSuchRoute: there is none, or it made room for others.
        """
        capture, config = self._router.captures.get(capture_id), self._router.config
        if capture is None:
            raise NoSuchRoute(
                f"no request '{shown(capture_id)}' is kept; [history] captures says of which models the last ones are"
            )
        hidden = hidden_values([rights.key for rights in rights_of(config.server.api_keys)], config.hidden)
        return json_response(await trio.to_thread.run_sync(capture.as_dict, hidden))

    async def clear_captures(self) -> Response:
        """`DELETE /admin/captures`: remove all."""
        return json_response({"removed": self._router.captures.clear()})


def _where(*others: str) -> activity.Where:
    """Return the condition that the request's query asks for. A key that is not an admin's sees its own requests.

    Raises:
        BadRequest: a parameter means nothing here: a typo must not mean "all".
    """
    known = (*activity.FILTERS, *others)
    if unknown := [name for name in request.args if name not in known]:
        raise BadRequest(f'"{shown(unknown[0])}" means nothing here; there are: {", ".join(known)}')
    where = activity.where_of(request.args)
    scope = scope_of(request)
    return where if scope.is_admin else where.of_key(scope.key_name)


def add_history(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = HistoryRoutes(router)
    app.add_url_rule("/admin/activity", "admin activity", routes.activity, methods=["GET"])
    app.add_url_rule("/admin/activity.csv", "admin activity.csv", routes.activity_csv, methods=["GET"])
    path = "/admin/activity/histogram"
    app.add_url_rule(path, "admin activity histogram", routes.histogram, methods=["GET"])
    app.add_url_rule("/admin/figures", "admin figures", routes.figures, methods=["GET"])
    app.add_url_rule("/admin/captures", "admin captures", routes.captures, methods=["GET"])
    app.add_url_rule("/admin/captures", "admin clear captures", routes.clear_captures, methods=["DELETE"])
    app.add_url_rule("/admin/captures/<capture_id>", "admin capture", routes.capture, methods=["GET"])
