"""`/v1/models`, as the clients of OpenAI and of Anthropic read it."""

from __future__ import annotations

from typing import Any

from quart import Response, request

from engine_router.errors import UnknownModel
from engine_router.proxy.routing import route_named
from engine_router.router import Router
from engine_router.web.anthropic import model_info, model_page, speaks_anthropic
from engine_router.web.connection import scope_of
from engine_router.web.openai import model_entries, model_entry, model_list, route_entry
from engine_router.web.params import permitted
from engine_router.web.responses import json_response


class ModelList:
    """The model list, and each of its models."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def listed(self) -> Response:
        """`GET /v1/models`."""
        if speaks_anthropic(request):
            return json_response(model_page(await self.entries(), request.args))
        return json_response(await model_list(self._router, scope_of(request).may_use))

    async def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the list, as far as whoever asks may see them."""
        return await model_entries(self._router, scope_of(request).may_use)

    async def one(self, model: str) -> Response:
        """`GET /v1/models/{id}`.

        Raises:
            UnknownModel: there is none.
        """
        if (route := route_named(self._router.snapshot, model)) is not None:
            entry = {**self._route(route), "id": model}
        else:
            entry = {**model_entry(self._router, permitted(self._router, model)), "id": model}
        return json_response(model_info(entry) if speaks_anthropic(request) else entry)

    def _route(self, name: str) -> dict[str, Any]:
        """Return the entry of a route.

        Raises:
            UnknownModel: it has no model that whoever asks may use.
        """
        target = self._router.routing.leads_to(self._router.snapshot, name, scope_of(request).may_use)
        if target is None:
            raise scope_of(request).as_answered(UnknownModel(name))
        return route_entry(self._router, name, target)
