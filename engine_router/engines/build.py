"""The factory of configured engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

from engine_router.config import Config, HttpConfig, OllamaConfig, ProcessConfig, SystemdConfig
from engine_router.engines.base import Engine
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian
from engine_router.engines.remote.http_engine import HttpEngine
from engine_router.engines.remote.ollama_engine import OllamaEngine
from engine_router.engines.remote.systemd_engine import SystemdEngine
from engine_router.engines.sleep.registry import SleepRegistry


def build_engine(
    name: str,
    config: Config,
    client: httpx.AsyncClient,
    guardian: Guardian | None,
    sleep_registry: SleepRegistry | None = None,
) -> Engine:
    """Make one configured engine.

    Args:
        client: for control calls; shared.
        guardian: kills process engines when the router dies; None where the platform needs none.
        sleep_registry: where residents sleep; without one they are stopped.
    """
    match config.engines[name]:
        case ProcessConfig() as process:
            paths = _paths(config, name)
            return ProcessEngine(
                name, process, client, guardian=guardian, sleep_registry=sleep_registry, paths=paths
            )
        case HttpConfig() as http:
            return HttpEngine(name, http, client, sleep_registry=sleep_registry)
        case OllamaConfig() as ollama:
            return OllamaEngine(name, ollama, client, _upstream_names(config, name))
        case SystemdConfig() as systemd:
            return SystemdEngine(name, systemd, client, sleep_registry=sleep_registry)


def _upstream_names(config: Config, engine: str) -> Sequence[str]:
    """Return the configured models of an engine, by the names that it knows."""
    named = [model.upstream or name for name, model in config.models.items() if model.engine == engine]
    return [*config.engines[engine].models, *named]


def _paths(config: Config, engine: str) -> Mapping[str, str]:
    """Return the paths of an engine's models, by the name that the engine knows them by."""
    return {
        model.upstream or name: model.path
        for name, model in config.models.items()
        if model.engine == engine and model.path is not None
    }
