"""Faults of routes: one that hides a model, and names in it that no model has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.faults import Fault, quoted
from engine_router.config.model import ModelConfig
from engine_router.config.preload import name_faults, owners_of, tagged
from engine_router.config.routes import RouteConfig
from engine_router.config.values import shown


def route_faults(
    routes: Mapping[str, RouteConfig],
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
) -> Iterator[Fault]:
    """Yield each route that hides a model, and each name in it that no model has. Names of engines' lists are not known."""
    owners = owners_of(engines, models, aliases)
    for name, route in routes.items():
        place = f"routes.{quoted(name)}"
        bare = name.removesuffix(":latest")
        if hidden := next((other for other in (name, bare, f"{bare}:latest") if other in owners), None):
            yield place, f"{shown(hidden)} is the name of a model already; give the route another name"
        if not route.prefer:
            yield f"{place}.prefer", "is empty; name at least one model"
        yield from _prefer_faults(route.prefer, f"{place}.prefer", routes, engines, models, owners, aliases)
        for index, rule in enumerate(route.rules):
            inner = f"{place}.rules[{index}].prefer"
            if not rule.prefer:
                yield inner, "is empty; name at least one model"
            yield from _prefer_faults(rule.prefer, inner, routes, engines, models, owners, aliases)


def _prefer_faults(
    prefer: Collection[str],
    place: str,
    routes: Mapping[str, RouteConfig],
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    owners: Mapping[str, str],
    aliases: Mapping[str, str],
) -> Iterator[Fault]:
    for model in prefer:
        alias = next((name for name in tagged(model) if name in aliases), None)
        of = model if alias is None else aliases[alias]
        if any(name in routes for name in tagged(of)) and not any(name in owners for name in tagged(of)):
            what = "itself a route" if alias is None else f"an alias of {shown(of)}, which is a route"
            yield place, f"{shown(model)} is {what}; name models"
        else:
            yield from name_faults(model, place, engines, models, owners)
