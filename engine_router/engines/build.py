"""The factory of configured engines."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from weakref import WeakKeyDictionary

import attrs
import httpx
import trio
from attrs import define, field

from engine_router.config import Config, HttpConfig, OllamaConfig, ProcessConfig, SystemdConfig
from engine_router.engines.base import Engine
from engine_router.engines.masking import MaskedEngine
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.engines.process.process_tree import Guardian
from engine_router.engines.remote.http_engine import HttpEngine
from engine_router.engines.remote.ollama_engine import OllamaEngine
from engine_router.engines.remote.systemd_engine import SystemdEngine
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.guards.masking import HiddenValues


@define(eq=False)
class EngineFactory:
    """The maker of a router's engines, with what they share.

    Attributes:
        client: for control calls.
        nursery: for the guardian, which is started with the first engine that needs it.
    """

    client: httpx.AsyncClient
    nursery: trio.Nursery
    _sleep_registry: SleepRegistry
    _guardian: Guardian | None = None
    _headers: WeakKeyDictionary[Engine, dict[str, str]] = field(factory=WeakKeyDictionary)
    _hidden: HiddenValues = field(factory=HiddenValues)

    async def make(self, name: str, config: Config) -> Engine:
        """Make an engine, of this name in a configuration."""
        is_process = isinstance(config.engines[name], ProcessConfig)
        if is_process and self._guardian is None and sys.platform != "win32":
            guardian = Guardian()
            await self.nursery.start(guardian.run)
            self._guardian = guardian
        # Headers can be renewed while models stay loaded: a key, for example. Each engine has its own: one that was
        # exchanged is stopped with those that it had.
        headers = dict(config.engines[name].headers)
        settings = attrs.evolve(config.engines[name], headers=headers)
        config = attrs.evolve(config, engines={**config.engines, name: settings})
        built = build_engine(name, config, self.client, self._guardian, self._sleep_registry)
        self._hidden.add(config.hidden)
        engine = MaskedEngine(built, self._hidden)
        self._headers[engine] = headers
        return engine

    def renew(self, engines: Mapping[str, Engine], config: Config) -> None:
        """Have engines send their headers of a configuration from now on."""
        self._hidden.add(config.hidden)
        for name, engine in engines.items():
            self._headers[engine].clear()
            self._headers[engine].update(config.engines[name].headers)

    async def forget(self, engines: Collection[str]) -> None:
        """Stop what sleeps of engines that are gone, or are others now."""
        await self._sleep_registry.clear([r for r in self._sleep_registry.residents if r.engine in engines])


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
