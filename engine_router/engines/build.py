"""The factory of configured engines."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import attrs
import trio
from attrs import define, field

from engine_router.config import (
    Config,
    ContainerConfig,
    HttpConfig,
    KubernetesConfig,
    OllamaConfig,
    PeerConfig,
    ProcessConfig,
    RemoteConfig,
    StartedConfig,
    SystemdConfig,
)
from engine_router.config.remote import own_headers
from engine_router.config.template import TemplateModels
from engine_router.engines.base import Engine
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.engines.masking import MaskedEngine
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.guards.masking import HiddenValues
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.hops import HOPS_HEADER, new_instance_id

if TYPE_CHECKING:
    from engine_router.engines.process.process_tree import Guardian

# ruff: noqa: PLC0415 - a router imports the kinds of engines that it has: all of them take a tenth of its start


@define(eq=False, repr=False)
class EngineFactory:
    """The maker of a router's engines, with what they share.

    Attributes:
        client: for control calls.
        nursery: for the guardian, which is started with the first engine that needs it.
        keeper: of the context of those that keep it.
        hidden: the values that nobody is told.
        instance_id: the id of the router, which peers are told.
    """

    client: ControlClient
    nursery: trio.Nursery
    _sleep_registry: SleepRegistry
    keeper: ContextKeeper
    _guardian: Guardian | None = None
    _headers: WeakKeyDictionary[Engine, dict[str, str]] = field(factory=WeakKeyDictionary)
    _models: WeakKeyDictionary[Engine, TemplateModels] = field(factory=WeakKeyDictionary)
    hidden: HiddenValues = field(factory=HiddenValues)
    instance_id: str = field(factory=new_instance_id)

    async def make(self, name: str, config: Config) -> Engine:
        """Make an engine, of this name in a configuration."""
        is_started = isinstance(config.engines[name], StartedConfig)
        if is_started and self._guardian is None and sys.platform != "win32":
            from engine_router.engines.process.process_tree import Guardian

            guardian = Guardian()
            await self.nursery.start(guardian.run)
            self._guardian = guardian
        # Headers can be renewed while models stay loaded: a key, for example. Each engine has its own: one that was
        # exchanged is stopped with those that it had.
        # So do the models of a template, which come and go with their files.
        headers, models = self._own_headers(config, name), TemplateModels(name, config)
        settings = attrs.evolve(config.engines[name], headers=headers)
        config = attrs.evolve(config, engines={**config.engines, name: settings})
        built = build_engine(
            name, config, self.client, self._guardian, self._sleep_registry, models, self.keeper
        )
        self.hidden.add(config.hidden)
        engine = MaskedEngine(built, self.hidden)
        self._headers[engine], self._models[engine] = headers, models
        return engine

    def renew(self, engines: Mapping[str, Engine], config: Config) -> None:
        """Have engines send their headers of a configuration, and start its models, from now on."""
        self.hidden.add(config.hidden)
        for name, engine in engines.items():
            self._headers[engine].clear()
            self._headers[engine].update(self._own_headers(config, name))
            self._models[engine].config = config

    def _own_headers(self, config: Config, name: str) -> dict[str, str]:
        """Return the headers of control calls to an engine. Peers are told by whom they are asked; see `hops`."""
        headers = dict(own_headers(config.engines[name]))
        if isinstance(config.engines[name], PeerConfig):
            headers[HOPS_HEADER.decode("ascii")] = self.instance_id
        return headers

    async def forget(self, engines: Collection[str]) -> None:
        """Stop what sleeps of engines that are gone, or are others now."""
        await self._sleep_registry.clear([r for r in self._sleep_registry.residents if r.engine in engines])


def build_engine(  # noqa: PLR0911 - one for each type
    name: str,
    config: Config,
    client: ControlClient,
    guardian: Guardian | None,
    sleep_registry: SleepRegistry | None = None,
    models: TemplateModels | None = None,
    keeper: ContextKeeper | None = None,
) -> Engine:
    """Make one configured engine.

    Args:
        client: for control calls; shared.
        guardian: kills process engines when the router dies; None where the platform needs none.
        sleep_registry: where residents sleep; without one they are stopped.
        models: what each model fills into a template's command; those of the configuration when absent.
        keeper: of the context that engines keep; without one they keep none.
    """
    models = models or TemplateModels(name, config)
    match config.engines[name]:
        case ProcessConfig() as process:
            from engine_router.engines.process.process_engine import ProcessEngine

            return ProcessEngine(
                name,
                process,
                client,
                guardian=guardian,
                sleep_registry=sleep_registry,
                models=models,
                keeper=keeper,
            )
        case ContainerConfig() as container:
            from engine_router.engines.container.container_engine import ContainerEngine

            return ContainerEngine(
                name, container, client, guardian=guardian, sleep_registry=sleep_registry, models=models
            )
        case HttpConfig() as http:
            from engine_router.engines.remote.http_engine import HttpEngine

            return HttpEngine(name, http, client, sleep_registry=sleep_registry)
        case OllamaConfig() as ollama:
            from engine_router.engines.remote.ollama_engine import OllamaEngine

            return OllamaEngine(name, ollama, client, _upstream_names(config, name))
        case KubernetesConfig() as kubernetes:
            from engine_router.engines.kubernetes.kubernetes_engine import KubernetesEngine

            outlasts = config.leader_election.lease is not None
            return KubernetesEngine(name, kubernetes, client, outlasts=outlasts)
        case RemoteConfig() as remote:
            return _elsewhere(name, remote, client)
        case SystemdConfig() as systemd:
            from engine_router.engines.remote.systemd_engine import SystemdEngine

            return SystemdEngine(name, systemd, client, sleep_registry=sleep_registry, models=models)


def _elsewhere(name: str, config: RemoteConfig, client: ControlClient) -> Engine:
    """Make a remote, or a peer."""
    if isinstance(config, PeerConfig):
        from engine_router.engines.remote.peer import PeerEngine

        return PeerEngine(name, config, client)
    from engine_router.engines.remote.always_on import AlwaysOnEngine

    return AlwaysOnEngine(name, config, client)


def _upstream_names(config: Config, engine: str) -> Sequence[str]:
    """Return the configured models of an engine, by the names that it knows."""
    named = [model.upstream or name for name, model in config.models.items() if model.engine == engine]
    return [*config.engines[engine].models, *named]
