"""Lists that engines gave: when each was seen last, and for how long it is believed once its engine is silent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen

from engine_router.config import (
    AnyEngineConfig,
    ContainerConfig,
    KubernetesConfig,
    ProcessConfig,
    SystemdConfig,
)
from engine_router.guards.limits import LISTED_MODELS, MODEL_NAME_CHARS

FORGET_AFTER_S: Final = 30 * 24 * 3600.0
"""A list is forgotten that no engine has confirmed for so long: 30 days."""

_WRITE_AGAIN_S: Final = 3600.0  # a list that stays the same need not be written every half minute


@frozen
class SeenModels:
    """The list that one engine gave last.

    Attributes:
        names: the models, in the engine's order.
        at: when it gave it, in seconds since the epoch.
        engine: what the engine was configured to be then, as `engine_mark` says it; empty where it is not known.
        is_live: it gave it when it was asked last; not remembered between runs.
    """

    names: tuple[str, ...]
    at: float
    engine: str = ""
    is_live: bool = False

    def is_old(self, now: float) -> bool:
        """Tell whether it is to be forgotten."""
        return not self.is_live and now - self.at > FORGET_AFTER_S

    def is_news(self, before: SeenModels | None) -> bool:
        """Tell whether it is worth writing down, the one before being written."""
        if before is None or (before.names, before.engine) != (self.names, self.engine):
            return True
        return not before.is_live or int(before.at / _WRITE_AGAIN_S) != int(self.at / _WRITE_AGAIN_S)


def engine_mark(config: AnyEngineConfig) -> str:
    """Return a short text that is another one when an engine is configured to be another server."""
    server: tuple[object, ...] = (config.type, config.base_url)
    if isinstance(config, ProcessConfig):
        server = (*server, config.argv, config.cwd)
    elif isinstance(config, ContainerConfig):
        server = (*server, config.argv, config.volumes)
    elif isinstance(config, SystemdConfig):
        server = (*server, config.unit, config.scope)
    elif isinstance(config, KubernetesConfig):
        server = (*server, config.workload, config.namespace, config.context)
    return hashlib.sha256(repr(server).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def seen_as_json(seen: Mapping[str, SeenModels]) -> dict[str, object]:
    """Return lists by engine as two members for a state file: the names, and beside them all else.

    Older routers read the names alone.
    """
    return {
        "models": {engine: list(models.names) for engine, models in seen.items()},
        "seen": {engine: {"at": models.at, "engine": models.engine} for engine, models in seen.items()},
    }


def seen_from_json(names: Mapping[str, object], seen: object, now: float) -> dict[str, SeenModels]:
    """Read what `seen_as_json` made, or an older router, which noted no times: then the lists are as of now."""
    notes = seen if isinstance(seen, dict) else {}
    found: dict[str, SeenModels] = {}
    for engine, listed in names.items():
        note = notes.get(engine)
        at, mark = (note.get("at"), note.get("engine")) if isinstance(note, dict) else (None, None)
        is_time = isinstance(at, (int, float)) and not isinstance(at, bool) and 0 <= at <= now
        found[engine] = SeenModels(
            names=_names(listed if isinstance(listed, list) else ()),
            at=float(at) if is_time and at is not None else now,
            engine=mark if isinstance(mark, str) else "",
        )
    return found


def _names(listed: Iterable[object]) -> tuple[str, ...]:
    names = (name for name in listed if isinstance(name, str) and 0 < len(name) <= MODEL_NAME_CHARS)
    return tuple(dict.fromkeys(names))[:LISTED_MODELS]
