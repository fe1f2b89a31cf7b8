"""The warnings about names in a configuration that no model has: of aliases, of default models, of what is preloaded."""

from __future__ import annotations

from collections.abc import Iterator

from engine_router.config import Config
from engine_router.config.faults import close, quoted
from engine_router.config.preload import may_list, name_faults, owners_of, preload_faults
from engine_router.config.values import shown

Warned = tuple[str, str]


def name_warnings(config: Config, *, has_scanned: bool = False) -> Iterator[Warned]:
    """Yield the names that lead nowhere, as (place in the file, words).

    Args:
        has_scanned: the models in scanned folders are in the configuration; else any name may be one of theirs.
    """
    yield from _alias_warnings(config, has_scanned=has_scanned)
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
