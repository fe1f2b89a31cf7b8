"""What programs read again and again, answered by both tiers: how the router is, and the lists of models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from engine_router.dialects.json_body import to_json
from engine_router.models.key_rights import MayUse
from engine_router.router import Router
from engine_router.web import ollama_lists
from engine_router.web.openai import model_list
from engine_router.web.status import status

_JSON: Final = "application/json"

Answer = tuple[str, bytes]
"""The type and the bytes of an answer."""


def _health(_router: Router) -> Answer:
    """Answer that the router lives. Says nothing about engines and waits for none."""
    return _JSON, to_json({"status": "ok"})


def _status(router: Router) -> Answer:
    return _JSON, to_json(status(router))


def _metrics(router: Router) -> Answer:
    return "text/plain; version=0.0.4; charset=utf-8", router.metrics.exposition()


async def metrics_with_engines(router: Router) -> Answer:
    """Return the metrics with those of the engines that are ready."""
    engines = await router.engine_metrics.exposition()
    content_type, own = _metrics(router)
    return content_type, own + engines


ANSWERS: Final[Mapping[str, Callable[[Router], Answer]]] = {
    "/health": _health,
    "/status": _status,
    "/metrics": _metrics,
}
"""The answers to a GET by which people and programs watch the router, by path."""

LISTS: Final[Mapping[str, Callable[[Router, MayUse], Awaitable[object]]]] = {
    "/v1/models": model_list,
    **{f"/api/{path}": ollama_lists.LISTS[path] for path in ("version", "tags", "ps")},
}
"""The lists that clients read first, by path."""

PATHS: Final = frozenset((*ANSWERS, *LISTS))


async def answer(router: Router, path: str, may_use: MayUse) -> Answer:
    """Return the answer to a GET of one of the paths, as far as whoever asks may see it."""
    if path in ANSWERS:
        return await watched(router, path)
    return _JSON, to_json(await LISTS[path](router, may_use))


async def watched(router: Router, path: str) -> Answer:
    """Return the answer to a GET by which the router is watched."""
    if path == "/status":  # so that nobody looks who holds memory while nobody asks
        await router.read_model.look_at_memory()
    return ANSWERS[path](router)
