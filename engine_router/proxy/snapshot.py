"""The configuration in force, with everything that is derived from it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import attrs
import trio
from attrs import field, frozen

from engine_router.config import Config, RemoteConfig, TraceSettings, trace_settings
from engine_router.engines.base import Engine
from engine_router.errors import BadRequest, UnknownModel
from engine_router.models.endpoints import EndpointSupport
from engine_router.models.facts import KnownModels
from engine_router.models.learned import Learned
from engine_router.models.registry import ModelRegistry
from engine_router.proxy.access import AccessCheck
from engine_router.proxy.forward_plan import ForwardPlanner
from engine_router.proxy.sessions import Sessions
from engine_router.residency.measurements import Measurements
from engine_router.residency.page_cache import Prefetch
from engine_router.residency.rules import ResidencySettings
from engine_router.residency.settings import make_settings
from engine_router.upstream.client import Upstream
from engine_router.upstream.forwarding import EngineRequests


@frozen(eq=False, repr=False)
class Snapshot:
    """One configuration and what follows from it. A reload exchanges it whole; a request keeps the one that it began with.

    Attributes:
        residency: the settings that the supervisor goes by.
        sessions: those of the router's page; every snapshot of a router has the same.
        instance_id: the id of this router, which peers are told; every snapshot of a router has the same.
        planner: plans how requests go to their engines.
        traces: the settings of traces; None where there are none.
    """

    config: Config
    engines: Mapping[str, Engine]
    registry: ModelRegistry
    known_models: KnownModels
    endpoint_support: EndpointSupport
    residency: ResidencySettings
    sessions: Sessions
    instance_id: str = ""
    access: AccessCheck = field(init=False)
    planner: ForwardPlanner = field(init=False)
    traces: TraceSettings | None = field(init=False)

    @property
    def requests(self) -> Mapping[str, EngineRequests]:
        """What makes requests to each engine, by its name."""
        return self.planner.requests

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none; none where that costs money, or may, and the configuration says nothing of it."""
        name, paid = self.config.server.default_model, self.config.paid_engines
        if name is None or not paid:
            return name
        try:
            target = self.registry.resolve(name)
        except (BadRequest, UnknownModel):
            route = self.config.routes.get(name)
            return None if route is None or route.allow_paid else name
        engine = self.config.engines[target.engine]
        return (
            name if not isinstance(engine, RemoteConfig) or engine.allow_default or not engine.paid else None
        )

    @functools.cached_property
    def providers(self) -> Mapping[str, str]:
        """What serves the models of each engine, by its name, as traces tell it."""
        from engine_router.engines.providers import provider_of  # noqa: PLC0415 - for traces only

        return {name: provider_of(name, engine) for name, engine in self.config.engines.items()}

    @traces.default
    def _make_traces(self) -> TraceSettings | None:
        return trace_settings(self.config.traces, os.environ)

    @access.default
    def _make_access(self) -> AccessCheck:
        return AccessCheck(self.config.server, self.sessions, self.instance_id)

    @planner.default
    def _make_planner(self) -> ForwardPlanner:
        traits_of = self.known_models.traits_of
        return ForwardPlanner(self.config, self.endpoint_support, traits_of, self.instance_id)


async def make_snapshot(
    config: Config,
    engines: Mapping[str, Engine],
    upstream: Upstream,
    state: Measurements,
    learned: Learned,
    sessions: Sessions,
    instance_id: str = "",
) -> Snapshot:
    """Derive everything from a configuration. Reads the headers of model files where a budget needs them.

    What takes long with thousands of models is done in threads.

    Args:
        engines: those of the configuration, by name.
        state, learned, sessions, instance_id: what is carried over from the run, and from the snapshot, before.
    """
    registry = await trio.to_thread.run_sync(ModelRegistry, config, engines)
    registry.learn_files(learned.served)
    registry.learn(state.models)
    residency = await make_settings(config, engines, registry, learned.headers)
    snapshot = await trio.to_thread.run_sync(
        lambda: Snapshot(
            config,
            engines,
            registry,
            KnownModels(config, registry, learned),
            EndpointSupport(config, upstream, learned),
            attrs.evolve(residency, files=Prefetch(config)),
            sessions,
            instance_id,
        )
    )
    registry.learn(state.models)  # engines may have listed something meanwhile
    return snapshot
