"""The entries of `/v1/models`, as OpenAI's clients read them. Both tiers answer with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine_router.models.key_rights import MayUse
from engine_router.models.registry import Target
from engine_router.residency.resident_state import Phase
from engine_router.router import Router
from engine_router.web.paced import paced
from engine_router.web.state_words import LISTED
from engine_router.web.status import state_of


def model_entry(router: Router, target: Target) -> dict[str, Any]:
    """Return the entry of one model."""
    resident = router.read_model.resident(target.resident)
    is_asleep = resident.phase in (None, Phase.STOPPING) and target.resident in router.sleeping()
    entry = {
        "id": target.model,
        "object": "model",
        "created": int(router.started_at),
        "owned_by": target.engine,
        "engine": target.engine,
        "state": state_of(router, target),
        "status": {"value": "sleeping" if is_asleep else LISTED.of(resident)},
        "aliases": list(target.aliases),
        "origin": target.origin,
    }
    context_length = router.known_models.of(target).context_length
    if context_length is not None:
        # The second name is vLLM's, which clients of OpenAI's API have learned to read.
        entry |= {"context_length": context_length, "max_model_len": context_length}
    return entry


async def model_entries(router: Router, may_use: MayUse) -> list[dict[str, Any]]:
    """Return the list: every model of every engine but the unlisted ones, from what is known, without a swap.

    An alias is listed as a model of its own, so that clients can offer it.

    Args:
        may_use: tells whether whoever asks may see a model.
    """
    data: list[dict[str, Any]] = []
    async for target in paced([*filter(may_use, router.registry.offered())]):
        entry = model_entry(router, target)
        data.append(entry)
        data += [{**entry, "id": alias, "aliases": [], "alias_of": target.model} for alias in target.aliases]
    return [*data, *_routes(router, may_use)]


def _routes(router: Router, may_use: MayUse) -> Iterator[dict[str, Any]]:
    """Yield the entry of each route: that of the model to which it leads now, under its own name."""
    for name, target in router.routing.offered(router.snapshot, may_use):
        yield route_entry(router, name, target)


def route_entry(router: Router, name: str, target: Target) -> dict[str, Any]:
    """Return the entry of a route that leads to a model now."""
    return {
        **model_entry(router, target),
        "id": name,
        "owned_by": "engine-router",
        "aliases": [],
        "origin": "route",
        "leads_to": target.model,
    }


async def model_list(router: Router, may_use: MayUse) -> dict[str, Any]:
    """Return the answer to `GET /v1/models`."""
    return {"object": "list", "data": await model_entries(router, may_use)}
