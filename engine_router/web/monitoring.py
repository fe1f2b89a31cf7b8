"""`/health`, `/status` and `/metrics`, by which people and programs watch the router: answered by both tiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engine_router.dialects.json_body import to_json
from engine_router.router import Router
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


ANSWERS: Final[Mapping[str, Callable[[Router], Answer]]] = {
    "/health": _health,
    "/status": _status,
    "/metrics": _metrics,
}
"""The answers to a GET, by path."""
