"""Twins: an engine of a configuration that would serve what another one serves already."""

from __future__ import annotations

from engine_router.config import AnyEngineConfig, Config, ProcessConfig, StartedConfig, SystemdConfig
from engine_router.config.values import expanded
from engine_router.guards.foreign_text import shown
from engine_router.models.found import formats_of
from engine_router.models.scan.places import CACHES


def twin_of(name: str, config: Config) -> str | None:
    """Return words about the engine that serves the same as a new one; None where none does."""
    new = config.engines[name]
    for other, engine in config.engines.items():
        if other != name and (same := _common(new, engine)) is not None:
            return f"engine {shown(other)} {same} already"
    return None


def _common(new: AnyEngineConfig, old: AnyEngineConfig) -> str | None:
    """Return what an engine does that another does, too."""
    if isinstance(new, ProcessConfig) and isinstance(old, ProcessConfig):
        places = {_place(place) for place in old.scan} if formats_of(new) == formats_of(old) else set()
        for place in new.scan:
            if _place(place) in places:
                return f"scans {shown(place)}"
        if not new.scan and (new.argv, new.env, new.cwd) == (old.argv, old.env, old.cwd):
            return None if "{" in "".join(new.argv).replace("{port}", "") else "runs this command"
        return None
    if isinstance(new, SystemdConfig) and isinstance(old, SystemdConfig):
        return f"is unit {shown(old.unit)}" if (new.unit, new.scope) == (old.unit, old.scope) else None
    if isinstance(new, StartedConfig | SystemdConfig) or isinstance(old, StartedConfig | SystemdConfig):
        return None
    return f"is at {shown(old.base_url)}" if new.base_url == old.base_url else None


def _place(place: str) -> str:
    return place if place in CACHES else str(expanded(place).absolute())
