"""`POST /admin/discover`: which engine has which models, and where each of them is known from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import trio
from quart import Response
from quart_trio import QuartTrio

from engine_router.errors import BadRequest, NoSuchRoute, UnknownModel
from engine_router.guards.foreign_text import shown
from engine_router.models.target import KnownId
from engine_router.router import Router
from engine_router.web.params import fields
from engine_router.web.responses import json_response

_AT_ONCE: Final = 200  # models for which the loop is held


async def report(router: Router, engines: Sequence[str]) -> dict[str, Any]:
    """Return what is known of the models of some engines; those that are gone meanwhile are left out."""
    return {"engines": {name: await _engine(router, name) for name in engines if name in router.engines}}


async def _engine(router: Router, name: str) -> dict[str, Any]:
    config = router.config.engines[name]
    known = list(router.registry.known_ids(name))
    has_answered = config.discover and name not in router.lister.silent
    models: list[dict[str, Any]] = []
    for number, entry in enumerate(known):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        models.append(_model(router, entry))
    return {
        "type": config.type,
        "asked": config.discover,
        "answered": has_answered,
        "error": router.lister.errors.get(name) if config.discover else None,
        "files_error": router.discovery.faults.get(name),
        "models": models,
    }


def _model(router: Router, known: KnownId) -> dict[str, Any]:
    target = known.target
    owner = _owner(router, target.model)
    return {
        "id": target.model,
        "learned_from": list(known.origins),
        "served": owner == target.engine,
        "shadowed_by": None if owner == target.engine else owner,
        "upstream": target.upstream,
        "aliases": list(target.aliases),
        "last_seen": None if known.seen_at is None else round(known.seen_at, 3),
    }


def _owner(router: Router, model: str) -> str | None:
    """Return the engine to which requests for an id go; None for none, as where an alias leads nowhere."""
    try:
        return router.registry.resolve(model).engine
    except (BadRequest, UnknownModel):
        return None


async def ask(router: Router, engine: str | None) -> dict[str, Any]:
    """Ask one engine, or all, for their models now, and return what is known then.

    Each is given a few seconds, all of them the same. What they say is learned as ever; nothing else changes.
    Cancellation ends only the wait.
    """
    if engine is None:
        await router.lister.ask()
        return await report(router, list(router.engines))
    if router.config.engines[engine].discover:
        await router.lister.ask_one(engine, router.engines[engine])
    return await report(router, [engine])


def add_discovery(app: QuartTrio, router: Router) -> None:
    """Add the route."""

    async def discover() -> Response:
        engine = (await fields("engine")).get("engine")
        if engine is not None and not isinstance(engine, str):
            raise BadRequest('"engine" must be the name of an engine')
        if engine is not None and engine not in router.engines:
            there_are = ", ".join(router.engines)
            raise NoSuchRoute(f"no engine is called '{shown(engine)}'; there are: {there_are}")
        return json_response(await ask(router, engine))

    app.add_url_rule("/admin/discover", "admin discover", discover, methods=["POST"])
