"""The parameters of a request: members of a JSON body, of the query, and the models and engines they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quart import request

from engine_router.config.routes import models_of
from engine_router.dialects.json_body import parse_object
from engine_router.errors import BadRequest, NoSuchRoute
from engine_router.guards.foreign_text import shown
from engine_router.models.registry import Target
from engine_router.proxy.routing import route_named
from engine_router.router import Router
from engine_router.web.connection import scope_of, whole_body


async def fields(*known: str) -> dict[str, Any]:
    """Read the members of a request's body; an empty body has none.

    Raises:
        BadRequest: it is no JSON object, or has members that mean nothing here: a typo must not mean "all".
    """
    body = await whole_body(request)
    data = parse_object(body) if body.strip() else {}
    if unknown := [name for name in data if name not in known]:
        there_are = ", ".join(f'"{name}"' for name in known)
        raise BadRequest(f'"{shown(unknown[0])}" means nothing here; there are: {there_are}')
    return data


def flag(data: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a member that is true or false.

    Raises:
        BadRequest: it is neither.
    """
    value = data.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f'"{name}" must be true or false')
    return value


def text(data: Mapping[str, Any], name: str) -> str:
    """Return a member that is a text, and not empty.

    Raises:
        BadRequest: it is not there, or something else.
    """
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f'name a "{name}"')
    return value


def whole_number(name: str, default: int) -> int:
    """Return a parameter of the request's query that is a whole number.

    Raises:
        BadRequest: it is something else.
    """
    given = request.args.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", given):
        raise BadRequest(f'"{name}" must be a whole number')
    return int(given)


def permitted(router: Router, model: str) -> Target:
    """Find a model that is known and that whoever asks may use.

    Raises:
        UnknownModel: there is none.
    """
    target = router.registry.resolve(model)
    scope_of(request).check_model(model, target)
    return target


def switch(name: str) -> bool:
    """Tell whether a parameter of the request's query is on: there, and neither 0 nor false."""
    return request.args.get(name, "") not in ("", "0", "false")


async def named(router: Router, data: Mapping[str, Any]) -> Target:
    """Find the `model` or the `engine` that is named.

    Raises:
        BadRequest: nothing is named, or a route, or an engine that serves no model.
        UnknownModel: nobody serves the model.
        NoSuchRoute: there is no such engine.
    """
    model, engine = data.get("model"), data.get("engine")
    if isinstance(model, str) and model:
        return await model_itself(router, model)
    if not isinstance(engine, str) or not engine:
        raise BadRequest('name a "model" or an "engine"')
    if engine not in router.engines:
        raise NoSuchRoute(f"no engine is called '{shown(engine)}'; there are: {', '.join(router.engines)}")
    for target in router.registry.targets():
        if target.engine == engine:
            return target
    if (resident := router.engines[engine].resident_of("")).model is None:
        return Target(engine, engine, resident, engine)
    raise BadRequest(f"engine '{engine}' has no model configured; name a model")


async def to_load(router: Router, data: Mapping[str, Any]) -> Target:
    """Find the `model` or the `engine` to make resident: of a route, what it chooses now; raises as `named` otherwise.

    Raises:
        ModelNotForKey: the request's key is for none of the route's models.
        NoModelForRoute: none of the route's models may be asked.
    """
    name = data.get("model")
    route = route_named(router.snapshot, name) if isinstance(name, str) else None
    if route is None:
        return await named(router, data)
    target = await router.routing.target(router.snapshot, route, scope_of(request), None)
    return router.placement.soonest(target)[0]


async def model_itself(router: Router, name: str) -> Target:
    """Find a model by a name of its own.

    Raises:
        BadRequest: it is the name of a route.
        UnknownModel: nobody serves it.
    """
    if (route := route_named(router.snapshot, name)) is not None:
        models = ", ".join(models_of(router.config.routes[route]))
        raise BadRequest(f"'{route}' is a route: name one of its models, {models}")
    return await router.resolve(name)
