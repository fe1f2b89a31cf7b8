"""The lists below `/api/` that Ollama's clients read first, from what is known. Both tiers answer with them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio

from engine_router.config import RemoteConfig
from engine_router.models.key_rights import MayUse
from engine_router.models.registry import Target
from engine_router.residency.read_model import ResidentStatus
from engine_router.router import Router
from engine_router.web import ollama_shapes
from engine_router.web.paced import paced

# Clients read features from the version: this is the release whose answers `tests/test_ollama_cases.py` lists.
OLLAMA_VERSION = "0.33.0"


async def _version(_router: Router, _may_use: MayUse) -> dict[str, Any]:
    return {"version": OLLAMA_VERSION}


async def _status(router: Router, may_use: MayUse) -> dict[str, Any]:
    """Return whether models that run at ollama.com can be used: where a daemon lists one of these."""
    remote = any(
        router.known_models.of(target).listed.get("remote_model")
        for target in filter(may_use, router.registry.offered())
    )
    return {"cloud": {"disabled": not remote, "source": "none" if remote else "config"}}


async def _recommendations(_router: Router, _may_use: MayUse) -> dict[str, Any]:
    """Recommend nothing: what can be used here is listed, and `ollama launch` offers that."""
    return {"recommendations": []}


async def _tags(router: Router, may_use: MayUse) -> dict[str, Any]:
    since = router.started_at
    entries: list[dict[str, Any]] = []
    async for target in paced([*filter(may_use, router.registry.offered())]):
        facts = router.known_models.of(target)
        entries += [
            ollama_shapes.tag(name, target, facts, since=since) for name in (target.model, *target.aliases)
        ]
    entries += [
        ollama_shapes.tag(name, target, router.known_models.of(target), since=since)
        for name, target in router.routing.offered(router.snapshot, may_use)
    ]
    return {"models": entries}


async def _ps(router: Router, may_use: MayUse) -> dict[str, Any]:
    """List what is in memory, as Ollama does what stays longest first, under every name of `/api/tags`."""
    targets = filter(may_use, router.registry.offered())
    elsewhere = {name for name, e in router.config.engines.items() if isinstance(e, RemoteConfig)}
    here = (target for target in targets if target.engine not in elsewhere)
    statuses = [(target, router.read_model.resident(target.resident)) for target in here]
    loaded = [(_left_s(status), target, status) for target, status in statuses if status.is_usable]
    loaded.sort(key=lambda entry: int(entry[0]), reverse=True)
    return {"models": [entry for found in loaded for entry in _loaded(router, *found)]}


def _loaded(router: Router, left_s: float, target: Target, status: ResidentStatus) -> list[dict[str, Any]]:
    facts = router.known_models.of(target)
    until = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=left_s)
    size_bytes = status.footprint_bytes or 0
    return [
        ollama_shapes.loaded(name, target, facts, size_bytes=size_bytes, expires_at=until)
        for name in (target.model, *target.aliases)
    ]


def _left_s(status: ResidentStatus) -> float:
    """Return the seconds until a resident is unloaded if nobody uses it; Ollama's own figure where it never is.

    One that is in use counts as used now, as with Ollama.
    """
    longest_s = ollama_shapes.FOR_EVER.total_seconds()
    return longest_s if status.expires_at is None else min(status.expires_at - trio.current_time(), longest_s)


LISTS: Final[Mapping[str, Callable[[Router, MayUse], Awaitable[dict[str, Any]]]]] = {
    "version": _version,
    "tags": _tags,
    "ps": _ps,
    "status": _status,
    "experimental/model-recommendations": _recommendations,
}
"""What makes each list, as far as whoever asks may see it, by its path below `/api/`."""
