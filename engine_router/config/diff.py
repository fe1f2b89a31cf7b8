"""The differences between two configurations, and what they mean for a router that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs
from attrs import frozen

from engine_router.config import Config, ModelConfig, PoolConfig, ProcessConfig, RemoteConfig
from engine_router.config.filled import filled_text, filled_words
from engine_router.config.memories import planned_together, pools_of_model, spans_of
from engine_router.config.options import options_of
from engine_router.config.template import ModelArguments, is_template, model_command
from engine_router.errors import ConfigError

# Settings that are used once, when the router starts.
_AT_START = (
    "server.host",
    "server.port",
    "server.fast_path",
    "server.max_body_mb",
    "log",
    "history.enabled",
    "history.file",
    "leader_election",
    "context.encryption_key",
    "context.plain_dir",
    "state_file",
)


@frozen(kw_only=True)
class Changes:
    """The changes that a reload made.

    Attributes:
        added, removed: engines.
        restarted: engines that changed: each is stopped once its requests are done, and starts anew when it is wanted.
        moved: models whose pools are others: each is stopped once its requests are done, and starts in those when it is
            wanted.
        settings: what else is different, by its place in the file; in force at once.
        needs_restart: what is different, and takes effect only when the router starts again.
        found: models in folders that are new, or have other files.
        gone: models in folders that are not there any more.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if anything is different."""
        return any(attrs.astuple(self, recurse=False))

    def as_dict(self) -> dict[str, list[str]]:
        """Return the changes as plain data."""
        return {name: list(value) for name, value in attrs.asdict(self, recurse=False).items()}


def compare(old: Config, new: Config, source: str) -> Changes:
    """Compare two configurations.

    Raises:
        ConfigError: a running router cannot take over the new one: its memories differ, or an engine or a model is to lie in
            some that were not planned together so far.
    """
    _refuse_other_pools(old, new, source)
    both = [name for name in new.engines if name in old.engines]
    changed = {name for name in both if _made_of(old, name) != _made_of(new, name)}
    goes_on = [name for name in both if name not in changed]
    moved = tuple(name for name in new.models if _is_moved(name, old, new, goes_on))
    different = [
        place for place in _differences(old, new) if place not in {f"models.{name}" for name in moved}
    ]
    return Changes(
        added=tuple(name for name in new.engines if name not in old.engines),
        removed=tuple(name for name in old.engines if name not in new.engines),
        restarted=tuple(name for name in both if name in changed),
        moved=moved,
        settings=tuple(place for place in different if not place.startswith(_AT_START)),
        needs_restart=tuple(place for place in different if place.startswith(_AT_START)),
        found=tuple(
            name
            for name, model in new.models.items()
            if model.found and _is_other(model, old.models.get(name))
        ),
        gone=tuple(name for name, model in old.models.items() if model.found and name not in new.models),
    )


def _is_other(model: ModelConfig, before: ModelConfig | None) -> bool:
    """Tell whether a model is new, or has other files."""
    files = (model.engine, model.path, model.mmproj)
    return before is None or files != (before.engine, before.path, before.mmproj)


def _refuse_other_pools(old: Config, new: Config, source: str) -> None:
    remedy = "this takes effect only when the router starts again; nothing was changed"
    faults = [
        (f"pools.{name}", remedy)
        for name in sorted({*old.pools, *new.pools, "default"})
        if _gauge(old.pools.get(name)) != _gauge(new.pools.get(name))
        or (name != "default" and (name in old.pools) != (name in new.pools))
        or (_is_auto(new.pools.get(name)) and _budget(old.pools.get(name)) != _budget(new.pools.get(name)))
    ]
    faults += _never_together(old, new, remedy)
    if faults:
        raise ConfigError(source, faults)


def _never_together(old: Config, new: Config, remedy: str) -> Iterator[tuple[str, str]]:
    """Yield the places where an engine or its models would lie in pools that its own were not planned together with."""
    groups = planned_together({"default": None, **old.pools}, spans_of(old).values())
    home = {pool: group for group in groups for pool in group}
    families = {f"families.{name}.pools": family.pools for name, family in new.families.items()}
    for name, engine in new.engines.items():
        if isinstance(engine, RemoteConfig):
            continue
        began = old.engines.get(name, engine).memories[0]
        models = {
            f"models.{id_}.pools": model.pools for id_, model in new.models.items() if model.engine == name
        }
        own = {f"engines.{name}.pool{'s' if engine.pools else ''}": engine.memories}
        for place, pools in (own | models | families).items():
            others = sorted({began, *pools})
            if not set(pools) <= {*home.get(began, ())} and set(pools) <= home.keys():
                yield place, f"{' and '.join(others)} were not planned together so far; {remedy}"


def _is_moved(name: str, old: Config, new: Config, engines: Collection[str]) -> bool:
    """Tell whether a model of an engine that goes on lies in other pools than before."""
    before, after = old.models.get(name), new.models[name]
    if before is None or before.engine != after.engine or after.engine not in engines:
        return False
    pools = (
        pools_of_model(before, old.engines[before.engine]),
        pools_of_model(after, new.engines[after.engine]),
    )
    return pools[0] != pools[1]


def _gauge(pool: PoolConfig | None) -> tuple[Any, ...]:
    pool = pool or PoolConfig()
    return pool.gauge, pool.gpu, pool.command, pool.nodes


def _budget(pool: PoolConfig | None) -> tuple[Any, ...]:
    pool = pool or PoolConfig()
    return pool.mode, pool.budget_gb, pool.reserve_gb


def _is_auto(pool: PoolConfig | None) -> bool:
    """Tell whether what is free has to be measured for it, while nothing runs."""
    return pool is not None and pool.mode == "budget" and not isinstance(pool.budget_gb, float)


def _is_found(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    """Tell whether an entry is a model in a folder, now or before, and none of the file."""
    entries = [mapping[name] for mapping in (before, after) if name in mapping]
    return all(isinstance(entry, ModelConfig) and entry.found for entry in entries)


# Settings of an engine that are the router's business, and none of the engine that runs.
_BESIDE = frozenset(
    (
        "models",
        "memory_gb",
        "group",
        "pinned",
        "evict_cost",
        "idle_timeout_s",
        "discover",
        "endpoints",
        "headers",
        "stream_upstream",
        "cache_salt",
        "api_key",
        "dialects",
        "max_in_flight",
        "paid",
        "allow_default",
        "metrics_path",
        "prefix",
        "scan",
        "scan_formats",
    )
)


def _made_of(config: Config, engine: str) -> tuple[Any, ...]:
    """Return what an engine runs with."""
    settings = config.engines[engine]
    names = [field.name for field in attrs.fields(type(settings)) if field.name not in _BESIDE]
    return type(settings), [getattr(settings, name) for name in names], _commands(config, engine)


def _commands(config: Config, engine: str) -> dict[str, list[str | None]]:
    """Return what a template's models of the file fill in; those that a scan found come and go by themselves."""
    settings = config.engines[engine]
    if not is_template(settings):
        return {}
    arguments = {
        model.upstream or name: ModelArguments.of(model)
        for name, model in config.models.items()
        if model.engine == engine and not model.found
    }
    words = list(filled_words(settings))
    argv = settings.argv if isinstance(settings, ProcessConfig) else ()
    return {
        name: [
            *(model_command(argv, own, own.values(name)) if argv else own.args),
            *(filled_text(word, own.values(name)) for word in words[len(argv) :]),
        ]
        for name, own in arguments.items()
    }


def _differences(old: Config, new: Config) -> list[str]:
    """Return the places that differ, engines that were added, removed or restarted left out."""
    places: list[str] = []
    for field in options_of(Config):
        if field.name == "peers":  # they are among the engines
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(before, Mapping):
            both = [name for name in {**before, **after} if not _is_found(before, after, name)]
            places += [f"{field.name}.{name}" for name in both if before.get(name) != after.get(name)]
        elif attrs.has(type(before)):
            names = [part.name for part in attrs.fields(type(before))]
            places += [
                f"{field.name}.{name}" for name in names if getattr(before, name) != getattr(after, name)
            ]
        elif before != after:
            places.append(field.name)
    engines = {f"engines.{name}" for name in {*old.engines, *new.engines}}
    unchanged = {
        f"engines.{n}" for n in old.engines.keys() & new.engines if _made_of(old, n) == _made_of(new, n)
    }
    return [place for place in places if place not in engines or place in unchanged]
