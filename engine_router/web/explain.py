"""`POST /admin/explain`: which model would answer a request now, and why. Nothing is started, and nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from engine_router.config import KeyConfig, rights_of
from engine_router.dialects.routed import model_in
from engine_router.errors import BadRequest, ModelNotForKey
from engine_router.guards.foreign_text import shown
from engine_router.models.key_rights import may_use
from engine_router.models.route_choice import RouteChoice
from engine_router.models.target import Target
from engine_router.proxy.request_body import off_loop
from engine_router.proxy.route_features import features_of
from engine_router.proxy.routes import is_proxied
from engine_router.proxy.routing import route_named
from engine_router.router import Router
from engine_router.upstream.http1 import Headers
from engine_router.web.connection import scope_of
from engine_router.web.params import fields
from engine_router.web.responses import json_response
from engine_router.web.status import state_of

_CHAT = "/v1/chat/completions"


async def explained(router: Router, data: Mapping[str, Any], key: KeyConfig | None) -> dict[str, Any]:
    """Return which model would answer a request now, and why.

    Args:
        data: `request`, its body; `path` and `headers`, where they matter; and `key`, where it is another's.
        key: the key with which it would come.

    Raises:
        BadRequest: something of it cannot be understood.
        UnknownModel: it names nothing that is known.
    """
    body, path, headers = data.get("request"), data.get("path", _CHAT), data.get("headers", {})
    if not isinstance(body, dict):
        raise BadRequest('"request" must be the body of a request: a JSON object')
    if not isinstance(path, str) or not is_proxied(path):
        raise BadRequest('"path" must be an endpoint that uses a model, such as /v1/chat/completions')
    wire, key_name = _wire(headers), None if key is None else key.name
    model, snapshot = model_in(body), router.snapshot
    name = route_named(snapshot, model)
    if name is None:
        snapshot, target = await router.find(model, snapshot)
        if not may_use(key, target):
            raise ModelNotForKey(model, key_name or "")
        reason = f"'{model}' is a model: no route looks at the request"
        return {"route": None, "reason": reason, "order": [target.model], **_target(router, target)}
    size_bytes = request.content_length or 0
    features = await off_loop(size_bytes, lambda: features_of(path, wire, body, key_name))
    choice = router.routing.choice(snapshot, name, lambda target: may_use(key, target), features)
    reason = choice.reason
    if choice.forbidden and data.get("key") is not None:  # only administrators ask for other keys
        reason += f"; not for this key: {', '.join(map(repr, choice.forbidden))}"
    found = {"route": name, "reason": reason, "order": []}
    if not isinstance(choice, RouteChoice):
        return {**found, "model": None, "engine": None, "state": None, "begins_in_s": None}
    order = list(choice.order if choice.fallback else choice.order[:1])
    return {**found, "order": order, **_target(router, snapshot.registry.resolve(choice.model))}


def _target(router: Router, target: Target) -> dict[str, Any]:
    place, availability = router.placement.soonest(target)
    return {
        "model": target.model,
        "engine": place.engine,
        "state": state_of(router, place),
        "begins_in_s": round(availability.wait_s, 3),
    }


def _wire(headers: object) -> Headers:
    """Return headers as they come with a request.

    Raises:
        BadRequest: they are none.
    """
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise BadRequest('"headers" must be an object of strings')
    return [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
    ]


def _key(router: Router, name: object) -> KeyConfig | None:
    """Return the key of a name; that of whoever asks where none is given.

    Raises:
        BadRequest: there is none of that name.
        AdminOnly: whoever asks may not speak for others.
    """
    if name is None:
        return scope_of(request).key
    scope_of(request).need_admin("explain requests of other keys")
    for key in rights_of(router.config.server.api_keys):
        if key.name == name:
            return key
    raise BadRequest(f"no key is called '{shown(str(name))}' in server.api_keys")


def add_explain(app: QuartTrio, router: Router) -> None:
    """Add the route."""

    async def explain() -> Response:
        data = await fields("request", "path", "headers", "key")
        return json_response(await explained(router, data, _key(router, data.get("key"))))

    app.add_url_rule("/admin/explain", "admin explain", explain, methods=["POST"])
