"""The warnings about names in a configuration that lead nowhere: those of models, and those of clients' keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from engine_router.config import Config, rights_of
from engine_router.config.families import named_by
from engine_router.config.faults import close, quoted
from engine_router.config.preload import may_list, name_faults, owners_of, preload_faults
from engine_router.config.values import shown

Warned = tuple[str, str]

_LATEST: Final = ":latest"
_MOST_NAMED: Final = 10


def name_warnings(config: Config, *, has_scanned: bool = False) -> Iterator[Warned]:
    """Yield the names that lead nowhere, as (place in the file, words).

    Args:
        has_scanned: the models in scanned folders are in the configuration; else any name may be one of theirs.
    """
    yield from _alias_warnings(config, has_scanned=has_scanned)
    yield from _key_warnings(config)
    yield from _pattern_warnings(config, has_scanned=has_scanned)
    engines, models = config.engines, config.models
    if has_scanned:  # before, they are faults of the file
        yield from preload_faults(
            config.scheduling, config.pools, engines, models, config.aliases, has_scanned=True
        )
    if config.server.default_model is not None:
        owners = owners_of(engines, models, config.aliases)
        yield from name_faults(
            config.server.default_model,
            "server.default_model",
            engines,
            models,
            owners,
            has_scanned=has_scanned,
        )


def _alias_warnings(config: Config, *, has_scanned: bool) -> Iterator[Warned]:
    """Yield aliases of what no engine is known to have, and none may turn out to have."""
    known = {str(model) for engine in config.engines.values() for model in engine.models}
    for name, entry in config.models.items():
        known.update((str(name), *(entry.other_names if entry.found else ())))
    for alias, model in config.aliases.items():
        if model in known or model.removesuffix(":latest") in known or f"{model}:latest" in known:
            continue
        near = close(model, list(known))
        if near is not None:
            yield (
                f"aliases.{quoted(alias)}",
                f"no model is called {shown(model)}; did you mean {shown(near)}?",
            )
        elif not any(
            may_list(name, engine, config.models, has_scanned=has_scanned)
            for name, engine in config.engines.items()
        ):
            yield f"aliases.{quoted(alias)}", f"no model is called {shown(model)}, and no engine may list it"


def _key_warnings(config: Config) -> Iterator[Warned]:
    """Yield names of keys, and keys, that no client can have."""
    keys = rights_of(config.server.api_keys)
    names = [key.name for key in keys]
    for name in config.context.shared_by:
        if name not in names:
            yield "context.shared_by", _no_key(name, names)
    for route_name, route in config.routes.items():
        for index, rule in enumerate(route.rules):
            for pattern in rule.keys:
                if not named_by([pattern], names):
                    yield f"routes.{quoted(route_name)}.rules[{index}].keys", _no_key(pattern, names)
    strange = len(config.server.key_priorities.keys() - {key.key for key in keys})
    if strange:  # they may be secrets
        yield (
            "server.key_priorities",
            f"{strange} of its keys {'is none' if strange == 1 else 'are none'} of api_keys, so no request has that priority",
        )


def _no_key(name: str, names: Sequence[str]) -> str:
    if not names:
        return f"no key is called {shown(name)}: server.api_keys is empty"
    near = close(name, names)
    known = ", ".join(islice(map(shown, names), _MOST_NAMED)) + (" ..." if len(names) > _MOST_NAMED else "")
    return f"no key is called {shown(name)}; " + (
        f"did you mean {shown(near)}?" if near else f"known: {known}"
    )


def _pattern_warnings(config: Config, *, has_scanned: bool) -> Iterator[Warned]:
    """Yield patterns of models that none has, where no engine may turn out to have more."""
    engines, models = config.engines, config.models
    if any(may_list(name, engine, models, has_scanned=has_scanned) for name, engine in engines.items()):
        return
    owners = owners_of(engines, models, config.aliases)
    known = [*owners, *(name.removesuffix(_LATEST) for name in owners), *config.routes]
    places = [("history.captures", config.history.captures)]
    for index, key in enumerate(rights_of(config.server.api_keys)):
        places.append((f"server.api_keys[{index}].models", key.models or ()))
    for place, patterns in places:
        for pattern in patterns:
            if not named_by([pattern, pattern.removesuffix(_LATEST)], known):
                near = close(pattern, owners)
                hint = f"; did you mean {shown(near)}?" if near else ""
                yield place, f"no model is called {shown(pattern)}{hint}"
