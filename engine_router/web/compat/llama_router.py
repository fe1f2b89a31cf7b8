"""The routes of llama-router: one engine's health, props and slots; reload and rescan."""

from __future__ import annotations

from functools import partial

from quart import Response, request
from quart_trio import QuartTrio

from engine_router.errors import BadConfiguration, ConfigError, NotResident, NotSupported
from engine_router.models.registry import Target
from engine_router.residency.resident_state import Phase
from engine_router.router import Router
from engine_router.web.compat.passed_through import pass_to_resident
from engine_router.web.connection import scope_of
from engine_router.web.params import permitted
from engine_router.web.responses import json_response
from engine_router.web.scan_entries import scan_entry

ENGINE_ROUTES = ("health", "props", "slots")


class LlamaRouter:
    """The routes of llama-router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def of_model(self, model: str, *, route: str) -> Response:
        """`GET /{id}/health`, `/{id}/props`, `/{id}/slots`: the model's engine is asked, if it is resident.

        Raises:
            UnknownModel: there is none of that id.
            NotResident: it is not there; nothing is loaded for this.
        """
        return await pass_to_resident(self._router, permitted(self._router, model), f"/{route}")

    async def of_last(self, *, route: str) -> Response:
        """`GET /props`, `/slots`: of the model that `?model=` names, or of the one that was started last.

        Raises:
            NotResident: nothing is resident.
        """
        if name := request.args.get("model"):
            return await self.of_model(name, route=route)
        return await pass_to_resident(self._router, self._started_last(), f"/{route}")

    async def reload(self) -> Response:
        """`POST /admin/reload`: read the configuration again.

        Raises:
            NotSupported: the router was not made from a file.
            BadConfiguration: it has faults, or what only a restart can take over; nothing was changed.
        """
        if not self._router.can_reload:
            raise NotSupported("this router was not made from a file that it could read again: restart it")
        try:
            changed = await self._router.reload()
        except ConfigError as error:
            raise BadConfiguration(str(error)) from error
        return json_response({"status": "ok", **changed.as_dict()})

    async def rescan(self) -> Response:
        """`GET /admin/rescan`, `POST`: look through the folders of models, and ask engines that run which they have."""
        changes = await self._router.rescan()
        await self._router.discover()
        count = len(self._router.registry.targets())
        return json_response(
            {
                "status": "ok",
                "models": count,
                "found": changes.found,
                "gone": changes.gone,
                **scan_entry(self._router.scans),
            }
        )

    def _started_last(self) -> Target:
        targets = [*filter(scope_of(request).may_use, self._router.registry.targets())]
        statuses = [self._router.read_model.resident(target.resident) for target in targets]
        ready = [
            (status.started_at or 0.0, index)
            for index, status in enumerate(statuses)
            if status.phase is Phase.READY
        ]
        if not ready:
            raise NotResident("no model is resident, and none is loaded for this")
        return targets[max(ready)[1]]


def add_llama_router(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = LlamaRouter(router)
    for route in ENGINE_ROUTES:
        of_model = partial(routes.of_model, route=route)
        app.add_url_rule(f"/<id:model>/{route}", f"{route} of a model", of_model, methods=["GET"])
    for route in ("props", "slots"):
        app.add_url_rule(
            f"/{route}", f"{route} of the last", partial(routes.of_last, route=route), methods=["GET"]
        )
    app.add_url_rule("/admin/reload", "reload", routes.reload, methods=["POST"])
    app.add_url_rule("/admin/rescan", "rescan", routes.rescan, methods=["GET", "POST"])
