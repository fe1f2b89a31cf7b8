"""Families: settings for every model whose name matches, so that a folder of models needs no table for each."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs

from engine_router.config.engines import AnyEngineConfig
from engine_router.config.model import FamilyConfig, ModelConfig, ModelSettings
from engine_router.config.options import options_of

_ADDED = ("args", "strip")


def with_families(
    models: Mapping[str, ModelConfig],
    families: Mapping[str, FamilyConfig],
    engines: Mapping[str, AnyEngineConfig],
) -> dict[str, ModelConfig]:
    """Return the models with the settings of their families; those that engines name gain an entry of their own."""
    named = {model: name for name, engine in engines.items() for model in engine.models}
    whole = dict(models)
    for name, engine in named.items():
        if name not in whole and any(matches(family, name, ()) for family in families.values()):
            whole[name] = ModelConfig(engine=engine)
    return {name: with_family(name, model, families) for name, model in whole.items()}


def with_family(name: str, model: ModelConfig, families: Mapping[str, FamilyConfig]) -> ModelConfig:
    """Return a model with the settings of all families that it belongs to.

    What the model has itself counts most, then the family that stands last in the file. `args` and `strip` are
    joined, those of the families first; so is `set`, member by member.
    """
    own = [
        family for family in families.values() if matches(family, name, (*model.aliases, *model.other_names))
    ]
    if not own:
        return model
    return attrs.evolve(model, **dict(_joined([*own, model])))


def matches(family: FamilyConfig, name: str, aliases: tuple[str, ...]) -> bool:
    """Tell whether a model belongs to a family by one of its names; upper and lower case are the same."""
    return named_by(family.match, (name, *aliases))


def named_by(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Tell whether one of some names matches one of some patterns; upper and lower case are the same."""
    known = [name.lower() for name in names]
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in known)


def _joined(sources: list[ModelSettings]) -> Iterator[tuple[str, Any]]:
    """Yield each setting, the last source's that says something."""
    for field in options_of(ModelSettings):
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type,union-attr]
        values = [getattr(source, field.name) for source in sources]
        if field.name in _ADDED:
            yield field.name, functools.reduce(lambda one, other: (*one, *other), values)
        elif field.name == "set":
            yield field.name, {key: value for mapping in values for key, value in mapping.items()}
        else:
            yield field.name, next((value for value in reversed(values) if value != default), default)
