"""`/v1/models`: the model list of OpenAI's clients."""

from __future__ import annotations

from typing import Any

from quart import Response, request

from engine_router.models.registry import Target
from engine_router.residency.resident_state import Phase
from engine_router.router import Router
from engine_router.web.anthropic import model_info, model_page, speaks_anthropic
from engine_router.web.paced import paced
from engine_router.web.responses import json_response
from engine_router.web.state_words import LISTED, OWN


def _entry(router: Router, target: Target) -> dict[str, Any]:
    resident = router.read_model.resident(target.resident)
    is_asleep = resident.phase in (None, Phase.STOPPING) and target.resident in router.sleeping()
    entry = {
        "id": target.model,
        "object": "model",
        "created": int(router.started_at),
        "owned_by": target.engine,
        "engine": target.engine,
        "state": OWN.of(resident),
        "status": {"value": "sleeping" if is_asleep else LISTED.of(resident)},
        "aliases": list(target.aliases),
    }
    context_length = router.known_models.of(target).context_length
    if context_length is not None:
        # The second name is vLLM's, which clients of OpenAI's API have learned to read.
        entry |= {"context_length": context_length, "max_model_len": context_length}
    return entry


class ModelList:
    """The model list: every model of every engine but the unlisted ones, from what is known, without a swap."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def listed(self) -> Response:
        """`GET /v1/models`. An alias is listed as a model of its own, so that clients can offer it."""
        if speaks_anthropic(request):
            return json_response(model_page(await self.entries(), request.args))
        return json_response({"object": "list", "data": await self.entries()})

    async def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the list."""
        data: list[dict[str, Any]] = []
        async for target in paced(self._router.registry.offered()):
            entry = _entry(self._router, target)
            data.append(entry)
            data += [
                {**entry, "id": alias, "aliases": [], "alias_of": target.model} for alias in target.aliases
            ]
        return data

    async def one(self, model: str) -> Response:
        """`GET /v1/models/{id}`.

        Raises:
            UnknownModel: there is none.
        """
        target = self._router.registry.resolve(model)
        entry = _entry(self._router, target)
        entry = {**entry, "id": model}
        return json_response(model_info(entry) if speaks_anthropic(request) else entry)
