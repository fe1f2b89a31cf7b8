"""Residency's settings, made from the configuration: rules, capacities of pools, traits of residents."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping

import trio
from attrs import evolve

from engine_router.config import (
    REMOTES,
    Config,
    ModelConfig,
    PeerConfig,
    PoolConfig,
    RemoteConfig,
    StartedConfig,
)
from engine_router.config.memories import pools_of_model, shares_of
from engine_router.config.template import NO_ARGUMENTS, ModelArguments
from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import BadRequest, UnknownModel
from engine_router.memory import Gauge, make_gauge
from engine_router.models.estimate import Estimate, estimate_of
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.prefix_cache import keeps_context, loses_by_stop
from engine_router.models.registry import ModelRegistry, Target
from engine_router.models.weights import model_config
from engine_router.residency.rules import EVENLY, Capacity, ResidencySettings, Rules, Traits

logger = logging.getLogger(__name__)

_GB = 10**9


def make_rules(config: Config) -> Rules:
    """Return the ledgers' rules."""
    scheduling = config.scheduling
    return Rules(
        drain_timeout_s=scheduling.drain_timeout_s,
        max_wait_s=scheduling.max_wait_s,
        abandon_grace_s=scheduling.abandon_grace_s,
        failed_start_memory_s=scheduling.failed_start_memory_s,
        max_queue=scheduling.max_queue,
        max_queue_per_model=scheduling.max_queue_per_model,
        min_resident_s=scheduling.min_resident_s,
        hold_s=scheduling.hold_s if isinstance(scheduling.hold_s, float) else None,
    )


async def make_settings(
    config: Config, engines: Mapping[str, Engine], registry: ModelRegistry, headers: HeaderMemory
) -> ResidencySettings:
    """Return how residents share the memories. Reads the headers of model files where a budget wants them."""
    capacities = {name: _capacity(name, pool, config, registry) for name, pool in pools_of(config).items()}
    capacities[REMOTES] = Capacity(is_boundless=True)
    counted = {name for name, pool in pools_of(config).items() if pool.mode == "budget"}
    counted |= {
        tenant.pool for tenant in config.tenants
    }  # what others hold there is looked at before a start
    estimates: Mapping[ResidentId, Estimate] = {}
    if counted:
        estimates = await trio.to_thread.run_sync(_estimates, config, counted, engines, registry, headers)
    known: dict[ResidentId, Traits] = {}

    def traits(resident: ResidentId) -> Traits:
        if (found := known.get(resident)) is None:
            found = traits_of(config, resident)
            if (guess := estimates.get(resident)) is not None:
                found = evolve(found, estimated_bytes=guess.need_bytes, weights_bytes=guess.weights_bytes)
            known[resident] = found
        return found

    def resident_of(engine: str, model: str) -> ResidentId | None:
        target = registry.find(model)
        return target.resident if target is not None and target.engine == engine else None

    return ResidencySettings(
        capacities=capacities,
        traits=traits,
        resident_of=resident_of,
        preload=tuple(_preload(config, registry)),
        always_there=tuple(
            ResidentId(n) for n, e in config.engines.items() if isinstance(e, RemoteConfig) and not e.sleeps
        ),
        has_remotes=any(isinstance(engine, RemoteConfig) for engine in config.engines.values()),
        tenants={
            name: [tenant for tenant in config.tenants if tenant.pool == name] for name in pools_of(config)
        },
    )


def pools_of(config: Config) -> dict[str, PoolConfig]:
    """Return all memories by their names, with the one that exists without being declared."""
    return {"default": PoolConfig(), **config.pools}


def gauges_of(config: Config) -> dict[str, Gauge]:
    """Return the gauge of each pool's memory. Nothing is read yet."""
    return {name: _gauge_of(pool) for name, pool in pools_of(config).items()}


def _gauge_of(pool: PoolConfig) -> Gauge:
    if pool.gauge != "kubernetes" or pool.nodes is None:
        return make_gauge(pool.gauge, gpu=pool.gpu, command=pool.command or ())
    from engine_router.engines.kubernetes.nodes import NodesGauge  # noqa: PLC0415 - few pools are of a cluster

    return NodesGauge(pool.nodes)


def traits_of(config: Config, resident: ResidentId) -> Traits:
    """Return what the configuration says of a resident: of its model first, then of its engine."""
    engine = config.engines.get(resident.engine)
    if engine is None:  # it was taken out of the configuration: it goes as soon as nobody uses it
        return Traits(idle_timeout_s=0.0)
    if isinstance(engine, RemoteConfig):
        most = engine.max_in_flight or math.inf
        if not isinstance(engine, PeerConfig) or not engine.sleeps:
            return Traits(is_always_there=True, max_leases=most)
        return Traits(idle_timeout_s=engine.suspend_after_s or math.inf, max_leases=most)
    model = None if resident.model is None else model_config(config, resident.engine, resident.model)
    model = model or ModelConfig(engine=resident.engine)  # says nothing
    pools, memory_gb = pools_of_model(model, engine), model.memory_gb or engine.memory_gb
    shares = {} if memory_gb is None else shares_of(memory_gb, pools)
    declared = {pool: int(amount * _GB) for pool, amount in shares.items()}
    idle_s = config.scheduling.idle_timeout_s if engine.idle_timeout_s is None else engine.idle_timeout_s
    return Traits(
        pools=pools,
        declared_bytes=sum(declared.values()) if declared else None,
        declared_needs=declared if len(pools) > 1 else EVENLY,
        groups=model.group or engine.group or (),
        pinned=engine.pinned if model.pinned is None else model.pinned,
        evict_cost=engine.evict_cost if model.evict_cost is None else model.evict_cost,
        idle_timeout_s=idle_s or math.inf,
        keeps_context=keeps_context(engine),
        cache_sleeps=loses_by_stop(engine),
    )


def _capacity(name: str, pool: PoolConfig, config: Config, registry: ModelRegistry) -> Capacity:
    default_model = None if pool.default_model is None else _target(pool.default_model, registry)
    if default_model is not None and name not in traits_of(config, default_model.resident).pools:
        logger.warning("'%s' is not of pool '%s', so it is not its default model", default_model.model, name)
        default_model = None
    capacity = Capacity(
        max_resident=pool.max_resident,
        default_model=None if default_model is None else default_model.resident,
        return_after_s=pool.return_after_s,
        reserve_bytes=int(pool.reserve_gb * _GB),
        yields_under_pressure=pool.evict_under_pressure and pool.gauge != "none",
    )
    if pool.mode == "exclusive":
        return capacity
    if isinstance(pool.budget_gb, float):
        return evolve(capacity, budget_bytes=int(pool.budget_gb * _GB))
    return evolve(capacity, is_auto=True)


def _preload(config: Config, registry: ModelRegistry) -> Iterator[ResidentId]:
    wanted = config.scheduling.preload
    if isinstance(wanted, tuple):
        targets = [target for name in wanted if (target := _target(name, registry)) is not None]
    else:
        targets = [target for target in registry.targets() if not _is_unasked(target, config)]
    yield from dict.fromkeys(target.resident for target in targets)


def _is_unasked(target: Target, config: Config) -> bool:
    """Tell whether a model is one of a folder's, or a peer's: nobody wants all of those loaded, or a peer woken."""
    entry = config.models.get(target.model)
    return target.is_peers or (entry is not None and entry.found)


def _target(name: str, registry: ModelRegistry) -> Target | None:
    try:
        return registry.resolve(name)
    except (BadRequest, UnknownModel) as error:  # an engine may list it later, but then nobody waits for it
        logger.warning("%s, so it is not preloaded", error)
        return None


def _estimates(
    config: Config,
    counted: Collection[str],
    engines: Mapping[str, Engine],
    registry: ModelRegistry,
    headers: HeaderMemory,
) -> dict[ResidentId, Estimate]:
    """Estimate the residents of some pools. Blocks: it reads files."""
    found: dict[ResidentId, Estimate] = {}
    for target in registry.targets():
        settings = config.engines[target.engine]
        if not isinstance(settings, StartedConfig):
            continue
        model = model_config(config, target.engine, target.upstream)
        if not set(counted).isdisjoint(pools_of_model(model, settings)):
            arguments = NO_ARGUMENTS if model is None else ModelArguments.of(model)
            values = arguments.values(target.upstream)
            need = _estimate(engines[target.engine], target, settings, values, headers)
            if need is not None:
                found[target.resident] = need
    return found


def _estimate(
    engine: Engine,
    target: Target,
    settings: StartedConfig,
    values: Mapping[str, str],
    headers: HeaderMemory,
) -> Estimate | None:
    try:
        argv = engine.command(target.resident)
        return None if argv is None else estimate_of(settings, argv, values, headers.read)
    except (OSError, ValueError) as error:
        logger.info("what %s needs cannot be estimated: %s", target.model, error)
        return None
