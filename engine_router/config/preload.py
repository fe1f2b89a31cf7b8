"""Faults of the models that are to be loaded before anybody asks: `preload` and `default_model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine_router.config.engines import AnyEngineConfig, ProcessConfig, SystemdConfig
from engine_router.config.faults import Fault, close, quoted
from engine_router.config.model import ModelConfig, PoolConfig, SchedulingConfig
from engine_router.config.template import is_scanned
from engine_router.config.values import shown

_LATEST = ":latest"


def preload_faults(
    scheduling: SchedulingConfig,
    pools: Mapping[str, PoolConfig],
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
) -> Iterator[Fault]:
    """Yield each name that no model has, and each default model whose engine uses another pool's memory."""
    owners = _owners(engines, models, aliases)
    wanted = scheduling.preload if isinstance(scheduling.preload, tuple) else ()
    for model in wanted:
        yield from _name_faults(model, "scheduling.preload", engines, models, owners)
    for pool_name, pool in pools.items():
        name = pool.default_model
        if name is None:
            continue
        place = f"pools.{quoted(pool_name)}.default_model"
        yield from _name_faults(name, place, engines, models, owners)
        owner = _owner(name, owners)
        engine = None if owner is None else engines.get(owner)
        if engine is not None and engine.pool != pool_name:
            elsewhere = f"its engine {shown(owner)} uses pool {shown(engine.pool)}"
            yield place, f"model {shown(name)} is not of this pool: {elsewhere}"


def _owners(
    engines: Mapping[str, AnyEngineConfig], models: Mapping[str, ModelConfig], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Return the engine of each name; empty where only the engine knows the model that an alias means."""
    owners = {model: name for name, engine in engines.items() for model in engine.models}
    for model_id, model in models.items():
        owners.update(dict.fromkeys((model_id, *model.aliases), model.engine))
    return {**{alias: owners.get(target, "") for alias, target in aliases.items()}, **owners}


def _owner(name: str, owners: Mapping[str, str]) -> str | None:
    """Return the engine of a name, with or without Ollama's default tag; None where nobody has it."""
    spellings = (name, name.removesuffix(_LATEST), name + _LATEST)
    return next((owners[spelling] for spelling in spellings if spelling in owners), None)


def _name_faults(
    name: str,
    place: str,
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    owners: Mapping[str, str],
) -> Iterator[Fault]:
    if _owner(name, owners) is not None or any(may_list(engine, e, models) for engine, e in engines.items()):
        return
    near = close(name, list(owners))
    if near is not None:
        remedy = f"did you mean {shown(near)}?"
    elif name in engines:
        remedy = "that is an engine; name one of its models"
    else:
        remedy = f"known: {', '.join(owners)}" if owners else "name it in the models of its engine"
    yield place, f"no model is called {shown(name)}; {remedy}"


def may_list(name: str, engine: AnyEngineConfig, models: Mapping[str, ModelConfig]) -> bool:
    """Tell whether an engine may have models that the file does not name.

    A server of one command may list more than what is configured, but that is known only while it runs: who
    wants it loaded ahead has named one of its models.
    """
    if is_scanned(engine):
        return True
    is_named = bool(engine.models) or any(model.engine == name for model in models.values())
    return engine.discover and not (is_named and isinstance(engine, (ProcessConfig, SystemdConfig)))
