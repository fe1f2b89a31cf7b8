"""The pools from which engines and models take memory, and what they take of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engines import EngineConfig, RemoteConfig
from engine_router.config.faults import Fault, close, quoted
from engine_router.config.filled import filled_words
from engine_router.config.model import Config, ModelConfig, ModelSettings
from engine_router.config.pools import PoolConfig
from engine_router.config.values import shown


def pools_of_model(model: ModelSettings | None, engine: EngineConfig) -> tuple[str, ...]:
    """Return the pools that a model takes from: its own, or those of its engine."""
    return engine.memories if model is None or not model.pools else model.pools


def spans_of(config: Config) -> dict[str, tuple[str, ...]]:
    """Return, by engine, the pools that it and its models take from; all of one engine are planned together."""
    anywhere = dict.fromkeys(pool for family in config.families.values() for pool in family.pools)
    spans = {name: dict.fromkeys(engine.memories) for name, engine in config.engines.items()}
    local = {name for name, engine in config.engines.items() if not isinstance(engine, RemoteConfig)}
    for name in local:
        spans[name].update(
            anywhere
        )  # any of its models may be of such a family, those that it lists later included
    for model in config.models.values():
        if model.engine in local:
            spans[model.engine].update(dict.fromkeys(model.pools))
    return {name: tuple(pools) for name, pools in spans.items()}


def shares_of(memory_gb: float | Mapping[str, float], pools: Collection[str]) -> dict[str, float]:
    """Return what is declared for each pool, in GB: where that is one number, evenly."""
    if isinstance(memory_gb, Mapping):
        return dict(memory_gb)
    return dict.fromkeys(pools, memory_gb / len(pools))


def place_faults(
    name: str, engine: AnyEngineConfig, models: Mapping[str, ModelConfig], named_pools: Collection[str]
) -> Iterator[Fault]:
    """Yield what is wrong with the pools of an engine and its models, and with their shares of each."""
    path = f"engines.{quoted(name)}"
    if isinstance(engine, RemoteConfig):
        return
    if engine.pools and engine.pool != "default":
        yield f"{path}.pools", "give either pool or pools"
    elif not engine.pools:
        yield from _unknown(f"{path}.pool", engine.pool, named_pools)
    yield from _listed(path, engine.pools, named_pools)
    yield from _share_faults(path, engine.memory_gb, engine.memories)
    for model_id, model in models.items():
        place = f"models.{quoted(model_id)}"
        yield from _listed(place, model.pools, named_pools)
        yield from _share_faults(place, model.memory_gb, pools_of_model(model, engine))
        if model.pools and model.memory_gb is None:
            yield from _inherited(place, model, engine)


def _inherited(place: str, model: ModelConfig, engine: EngineConfig) -> Iterator[Fault]:
    if isinstance(engine.memory_gb, Mapping) and set(engine.memory_gb) != set(model.pools):
        yield f"{place}.memory_gb", "missing; the engine's memory_gb names other pools than the model's"


def _listed(path: str, pools: tuple[str, ...], named_pools: Collection[str]) -> Iterator[Fault]:
    for index, pool in enumerate(pools):
        if pool in pools[:index]:
            yield f"{path}.pools[{index}]", f"{shown(pool)} is named twice"
        else:
            yield from _unknown(f"{path}.pools[{index}]", pool, named_pools)


def _unknown(place: str, pool: str, named_pools: Collection[str]) -> Iterator[Fault]:
    if pool not in named_pools:
        near = close(pool, named_pools)
        hint = f"; did you mean {shown(near)}?" if near else "; declare it as [pools.NAME]"
        yield place, f"no pool is called {shown(pool)}{hint}"


def _share_faults(
    path: str, memory_gb: float | Mapping[str, float] | None, pools: tuple[str, ...]
) -> Iterator[Fault]:
    if not isinstance(memory_gb, Mapping):
        return
    for pool in memory_gb:
        if pool not in pools:
            yield f"{path}.memory_gb.{quoted(pool)}", f"its pools are {', '.join(pools)}"
    if missing := [pool for pool in pools if pool not in memory_gb]:
        yield f"{path}.memory_gb", f"names no amount for {', '.join(missing)}; give one for each of its pools"


def gpus_of(config: Config, engine: EngineConfig, model: ModelSettings | None) -> str:
    """Return the numbers of the GPUs of the pools from which a model takes memory, as CUDA_VISIBLE_DEVICES has them."""
    found = pool_settings(config.pools, pools_of_model(model, engine))
    return ",".join(str(pool.gpu) for pool in found)


def gpu_faults(
    name: str, engine: AnyEngineConfig, models: Mapping[str, ModelConfig], pools: Mapping[str, PoolConfig]
) -> Iterator[Fault]:
    """Yield the pools among which `{gpus}` would name a GPU twice."""
    if not any("{gpus}" in word for word in filled_words(engine)):
        return
    spans = {engine.memories, *(pools_of_model(model, engine) for model in models.values())}
    for span in sorted(spans):
        numbers = [pool.gpu for pool in pool_settings(pools, span)]
        if len(set(numbers)) < len(numbers):
            listed = " and ".join(span)
            yield (
                f"engines.{quoted(name)}",
                f"{{gpus}} would name a GPU twice: give {listed} the gpu that each is, counted from 0",
            )


def pool_settings(pools: Mapping[str, PoolConfig], names: Collection[str]) -> list[PoolConfig]:
    """Return the settings of some pools; those of one that is not declared are the defaults."""
    return [pools.get(name, PoolConfig()) for name in names]


def planned_together(pools: Collection[str], spans: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the pools in groups: those that some engine takes from at once are in one.

    >>> planned_together(("gpu0", "gpu1", "ram"), [("gpu0",), ("gpu0", "gpu1")])
    [('gpu0', 'gpu1'), ('ram',)]
    """
    groups = [{pool} for pool in pools]
    for span in spans:
        joined = [group for group in groups if not group.isdisjoint(span)]
        groups = [*(group for group in groups if group not in joined), set().union(*joined)]
    order = {pool: number for number, pool in enumerate(pools)}
    return sorted(
        (tuple(sorted(group, key=order.__getitem__)) for group in groups if group), key=lambda g: order[g[0]]
    )
