"""Faults of the models that are to be loaded before anybody asks: `preload` and `default_model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engines import StartedConfig, SystemdConfig
from engine_router.config.faults import Fault, close, quoted
from engine_router.config.memories import pools_of_model
from engine_router.config.model import ModelConfig, SchedulingConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.template import is_scanned
from engine_router.config.values import shown

_LATEST = ":latest"
_MOST_NAMED = 10


def preload_faults(
    scheduling: SchedulingConfig,
    pools: Mapping[str, PoolConfig],
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
    *,
    has_scanned: bool = False,
) -> Iterator[Fault]:
    """Yield each name that no model has, and each default model whose engine uses another pool's memory.

    Args:
        has_scanned: the models in scanned folders are among the models; else any name may be one of theirs.
    """
    owners = owners_of(engines, models, aliases)
    wanted = scheduling.preload if isinstance(scheduling.preload, tuple) else ()
    for model in wanted:
        yield from name_faults(model, "scheduling.preload", engines, models, owners, has_scanned=has_scanned)
    for pool_name, pool in pools.items():
        name = pool.default_model
        if name is None:
            continue
        place = f"pools.{quoted(pool_name)}.default_model"
        yield from name_faults(name, place, engines, models, owners, has_scanned=has_scanned)
        owner = _owner(name, owners)
        engine = None if owner is None else engines.get(owner)
        if engine is not None and pool_name not in (used := pools_of_model(models.get(name), engine)):
            elsewhere = f"its engine {shown(owner)} uses pool {', '.join(map(shown, used))}"
            yield place, f"model {shown(name)} is not of this pool: {elsewhere}"


def owners_of(
    engines: Mapping[str, AnyEngineConfig], models: Mapping[str, ModelConfig], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Return the engine of each name; empty where only the engine knows the model that an alias means."""
    owners: dict[str, str] = {}
    for name, engine in engines.items():
        for known in engine.models:
            owners.setdefault(known, name)  # peers, which come last, may have it, too
    for model_id, model in models.items():
        owners.update(dict.fromkeys((model_id, *model.aliases, *model.other_names), model.engine))
        for name, variant in model.variants.items():
            owners.update(dict.fromkeys((f"{model_id}:{name}", *variant.aliases), model.engine))
    return {**{alias: owners.get(target, "") for alias, target in aliases.items()}, **owners}


def _owner(name: str, owners: Mapping[str, str]) -> str | None:
    """Return the engine of a name, with or without Ollama's default tag; None where nobody has it."""
    return next((owners[spelling] for spelling in tagged(name) if spelling in owners), None)


def tagged(name: str) -> tuple[str, ...]:
    """Return the spellings of a name: with and without Ollama's default tag."""
    return (name, name.removesuffix(_LATEST), name + _LATEST)


def name_faults(
    name: str,
    place: str,
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    owners: Mapping[str, str],
    *,
    has_scanned: bool = False,
) -> Iterator[Fault]:
    """Yield that no model has a name, where none may turn out to have it."""
    if _owner(name, owners) is not None or any(
        may_list(engine, e, models, has_scanned=has_scanned) for engine, e in engines.items()
    ):
        return
    near = close(name, list(owners))
    if near is not None:
        remedy = f"did you mean {shown(near)}?"
    elif name in engines:
        remedy = "that is an engine; name one of its models"
    else:
        known = ", ".join(islice(owners, _MOST_NAMED)) + (" ..." if len(owners) > _MOST_NAMED else "")
        remedy = f"known: {known}" if owners else "name it in the models of its engine"
    yield place, f"no model is called {shown(name)}; {remedy}"


def may_list(
    name: str, engine: AnyEngineConfig, models: Mapping[str, ModelConfig], *, has_scanned: bool = False
) -> bool:
    """Tell whether an engine may have models that the file does not name.

    A server of one command may list more than what is configured, but that is known only while it runs: who
    wants it loaded ahead has named one of its models.
    """
    if is_scanned(engine):
        return not has_scanned
    is_named = bool(engine.models) or any(model.engine == name for model in models.values())
    return engine.discover and not (is_named and isinstance(engine, (StartedConfig, SystemdConfig)))
